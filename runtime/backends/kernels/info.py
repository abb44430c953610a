"""What a bundle says of its compiled kernels, whether they are whole, and which of them a GPU can run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...digests import whole_digest
from ...errors import CascadeError
from ...schema import Count

FOLDER = Path(__file__).parent
_AGAIN = "run `cascade-trt compile BUNDLE --target cuda` again"
# GPUs on a board with their CPU run no code for cards, nor the other way round, whatever their numbers say.
_BOARDS = frozenset({(5, 3), (6, 2), (7, 2), (8, 7), (10, 1), (11, 0)})


@dataclass(frozen=True)
class KernelInfo:
    """All kernels, compiled for one architecture: `file` is relative to the bundle, `architecture` is like "sm90",
    `compiler` like "nvrtc 13.5", `source` the digest of the source and its options (`source_digest`)."""

    file: str
    architecture: str
    compiler: str
    source: str
    bytes: Count
    sha256: str

    @property
    def capability(self) -> tuple[int, int]:
        """The compute capability that it was compiled for."""
        number = int(self.architecture.removeprefix("sm"))
        return number // 10, number % 10


def sources() -> dict[str, str]:
    """The text of every source file, by name."""
    return {path.name: path.read_text() for path in sorted(FOLDER.iterdir()) if path.suffix in (".cu", ".h")}


def source_digest(options: Sequence[str] = ()) -> str:
    """sha256 over names and texts of the source, and the compiler's options."""
    digest = hashlib.sha256()
    for part in (*options, *(text for item in sources().items() for text in item)):
        digest.update(f"{len(part)}:".encode() + part.encode())
    return digest.hexdigest()


def serving(kernels: Iterable[KernelInfo], capability: tuple[int, int]) -> KernelInfo | None:
    """The kernels that a GPU of a compute capability can run, None without: the code of its own architecture, or of an
    earlier one with the same first number."""
    major, minor = capability
    fitting = [
        info for info in kernels if info.capability[0] == major and info.capability[1] <= minor
        and (info.capability == capability or not _BOARDS & {info.capability, capability})
    ]  # fmt: skip
    return max(fitting, key=lambda info: info.capability, default=None)


def check_kernels(bundle: Path, kernels: Iterable[KernelInfo], source: str) -> None:
    """Raises CascadeError for the first file that is missing, has changed, or was made from other source than `source`,
    whose arrays may lie otherwise."""
    for info in kernels:
        path = bundle / info.file
        if info.source != source:
            raise CascadeError(f"the kernels {path} belong to another version of cascade-trt: {_AGAIN}.")
        try:
            whole = path.stat().st_size == info.bytes and whole_digest(path) == info.sha256
        except OSError as error:
            raise CascadeError(f"the kernels {path} cannot be read ({error.strerror}): {_AGAIN}.") from None
        if not whole:
            raise CascadeError(f"the kernels {path} have changed since they were compiled: {_AGAIN}.")
