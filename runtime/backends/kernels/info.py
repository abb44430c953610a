"""What a bundle says of its compiled kernels, whether they are whole, and which of them a GPU can run."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ...errors import CascadeError
from ...schema import Within
from ..device import LEAST_CAPABILITY

FOLDER = Path(__file__).parent
ARCHITECTURES = ("sm75", "sm80", "sm86", "sm89", "sm90", "sm100", "sm120")  # of `--target cuda`
OPTIONS = ("--std=c++17", "--fmad=false")  # no fused multiply-add: what tests see on the CPU is what a GPU computes
SPELT = re.compile(r"sm[1-9][0-9]{1,2}")  # an architecture
SUFFIX = ".cubin"
_LARGEST = 64 << 20  # bytes of a file, which is read as a whole
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
    bytes: Annotated[int, Within(1, _LARGEST)]
    sha256: str

    @property
    def capability(self) -> tuple[int, int]:
        """The compute capability that it was compiled for."""
        number = int(self.architecture.removeprefix("sm"))
        return number // 10, number % 10


@dataclass(frozen=True)
class MachineCode:
    """`code` is what a GPU loads, compiled for `architecture`. Where there is none, `why` says in a sentence what is
    missing and what to do; it can follow a colon."""

    code: bytes | None
    architecture: str = ""
    why: str = ""


def sources() -> dict[str, str]:
    """The text of every source file, by name."""
    return {path.name: path.read_text() for path in sorted(FOLDER.iterdir()) if path.suffix in (".cu", ".h")}


def source_digest(options: Sequence[str] = ()) -> str:
    """sha256 over names and texts of the source, and the compiler's options."""
    digest = hashlib.sha256()
    for part in (*options, *(text for item in sources().items() for text in item)):
        digest.update(f"{len(part)}:".encode() + part.encode())
    return digest.hexdigest()


def kernel_source() -> str:
    """The digest that kernels of this version have (`KernelInfo.source`)."""
    return source_digest(OPTIONS)


def serving(kernels: Iterable[KernelInfo], capability: tuple[int, int]) -> KernelInfo | None:
    """The kernels that a GPU of a compute capability can run, None without: the code of its own architecture, or of an
    earlier one with the same first number."""
    major, minor = capability
    fitting = [
        info for info in kernels if info.capability[0] == major and info.capability[1] <= minor
        and (info.capability == capability or not _BOARDS & {info.capability, capability})
    ]  # fmt: skip
    return max(fitting, key=lambda info: info.capability, default=None)


def kernels_for(bundle: Path, kernels: Sequence[KernelInfo], capability: tuple[int, int]) -> MachineCode:
    """The machine code for a GPU of a compute capability, out of `kernels`, the manifest's entries of `bundle`.

    Code of other source than this version's is not taken: its arrays may lie otherwise. The file is compared with the
    manifest.
    """
    here = ".".join(map(str, capability))
    if capability < LEAST_CAPABILITY:
        least = ".".join(map(str, LEAST_CAPABILITY))
        return MachineCode(None, why=f"kernels need a GPU of compute capability {least} or newer, this one has {here}.")
    if not kernels:
        return MachineCode(None, why=f"{bundle} holds no kernels: {again(bundle)}.")
    source = kernel_source()
    info = serving([info for info in kernels if info.source == source], capability)
    if info is not None:
        try:
            return MachineCode(read_code(bundle, info), info.architecture)
        except CascadeError as error:
            return MachineCode(None, why=str(error))
    if (other := serving(kernels, capability)) is not None:
        return MachineCode(None, why=of_another_version(bundle, other))
    held = ", ".join(dict.fromkeys(info.architecture for info in kernels))
    what = f"none of the kernels in {bundle} fits this GPU (compute capability {here}; they are for {held})"
    return MachineCode(None, why=f"{what}: {again(bundle, f'cuda:sm{capability[0]}{capability[1]}')}.")


def kernel_problem(bundle: Path, info: KernelInfo, source: str) -> str | None:
    """A sentence on what keeps kernels from being used on any GPU, None where nothing does. `source` is
    `kernel_source()`."""
    if info.source != source:
        return of_another_version(bundle, info)
    try:
        read_code(bundle, info)
    except CascadeError as error:
        return str(error)
    return None


def read_code(bundle: Path, info: KernelInfo) -> bytes:
    """The machine code. Raises CascadeError where its file is missing, or is not what the manifest says."""
    path, advice = bundle / info.file, again(bundle, _target(info))
    try:
        whole = path.stat().st_size == info.bytes
        code = path.read_bytes() if whole else b""
    except OSError as error:
        raise CascadeError(f"the kernels {path} cannot be read ({error.strerror}): {advice}.") from None
    if not whole or hashlib.sha256(code).hexdigest() != info.sha256:
        raise CascadeError(f"the kernels {path} have changed since they were compiled: {advice}.")
    return code


def of_another_version(bundle: Path, info: KernelInfo) -> str:
    """The sentence on kernels of other source than this version's."""
    return f"the kernels in {bundle} belong to another version of cascade-trt: {again(bundle, _target(info))}."


def again(bundle: Path, target: str = "cuda") -> str:
    """How to compile what is missing."""
    return f"run `cascade-trt compile {bundle} --target {target}`"


def _target(info: KernelInfo) -> str:
    """What compiles these kernels again, and others that were compiled with them."""
    return "cuda" if info.architecture in ARCHITECTURES else f"cuda:{info.architecture}"
