"""Size and digests of files."""

from __future__ import annotations

import hashlib
from pathlib import Path

from .engine_info import FileInfo

_SAMPLES, _SAMPLE_BYTES = 32, 64 << 10


def describe_file(path: Path, sha256: str | None = None) -> FileInfo:
    """Size and digests of a file; pass `sha256` when it is already known."""
    return FileInfo(path.stat().st_size, sha256 or whole_digest(path), sampled_digest(path))


def whole_digest(path: Path) -> str:
    """sha256 of all of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sampled_digest(path: Path) -> str:
    """sha256 of 32 samples of 64 KiB, evenly spaced: quick whatever the file's size."""
    size, digest = path.stat().st_size, hashlib.sha256()
    with open(path, "rb") as file:
        for index in range(_SAMPLES):
            file.seek(max(size - _SAMPLE_BYTES, 0) * index // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()
