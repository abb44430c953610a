"""The files of a bundle against what its manifest says of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from .bundle import FileInfo, Manifest
from .errors import CascadeError

_HASHED_WHOLE = 256 << 20  # bytes; larger files are checked by size and by samples when a bundle is loaded
_SAMPLES, _SAMPLE_BYTES = 32, 64 << 10


def describe_file(path: Path, sha256: str | None = None) -> FileInfo:
    """Size and digests of a file; pass `sha256` when it is already known."""
    if sha256 is None:
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return FileInfo(path.stat().st_size, sha256, _sampled_digest(path))


def _sampled_digest(path: Path) -> str:
    size, digest = path.stat().st_size, hashlib.sha256()
    with open(path, "rb") as file:
        for index in range(_SAMPLES):
            file.seek(max(size - _SAMPLE_BYTES, 0) * index // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def check_files(folder: Path, manifest: Manifest, thorough: bool = False) -> None:
    """Compares the bundle's files with the manifest. Raises CascadeError at the first that differs.

    Files over 256 MiB are compared by size and 32 samples of 64 KiB unless `thorough`.
    """
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise CascadeError(f"bundle {folder} lacks its file {name}: build it again.")
        same = path.stat().st_size == expected.bytes
        if same and (thorough or expected.bytes <= _HASHED_WHOLE):
            with open(path, "rb") as file:
                same = hashlib.file_digest(file, "sha256").hexdigest() == expected.sha256
        elif same:
            same = _sampled_digest(path) == expected.samples
        if not same:
            raise CascadeError(f"{path} has changed since the bundle was built: build it again.")
