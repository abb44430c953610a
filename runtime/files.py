"""The files of a bundle against what its manifest says of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .bundle import MANIFEST, FileInfo, Manifest
from .digests import describe_file, sampled_digest, whole_digest
from .errors import CascadeError
from .graph_check import check_graphs
from .schema import short
from .tables import check_tables

__all__ = ["as_folder", "check_files", "describe_file", "require_utf8"]

_HASHED_WHOLE = 256 << 20  # bytes; larger files are checked by size and by samples when a bundle is loaded


def as_folder(given: Any) -> Path:
    """`given` as the path of a folder. Raises CascadeError for what is no path of text."""
    if not isinstance(given, str | os.PathLike) or not isinstance(os.fspath(given), str):
        raise CascadeError(f"a bundle's folder must be a path or its text, not {short(given)}.")
    return Path(given)


def require_utf8(folder: Path) -> None:
    """Raises CascadeError for a path that ONNX Runtime cannot be given: it takes UTF-8 alone."""
    try:
        os.path.abspath(folder).encode()
    except UnicodeEncodeError:
        raise CascadeError(
            f"the path {folder} is not UTF-8, and engines cannot be loaded from it: choose or rename the folder."
        ) from None


def check_files(folder: Path, manifest: Manifest, thorough: bool = False) -> None:
    """Compares the bundle's files with the manifest: sizes and digests, what the graphs declare, what the tables hold.

    Raises CascadeError at the first that differs, is missing or lies outside of the bundle. Files over 256 MiB are
    compared by size and 32 samples of 64 KiB unless `thorough`.
    """
    compiled = [file for plan in manifest.plans for file in plan.files]
    for name in (MANIFEST, *manifest.files, *compiled, *(info.file for info in manifest.kernels)):
        if not _is_inside(folder, name):
            raise CascadeError(f"the file {name} of bundle {folder} is a link that leaves it: build it again.")
    for name, expected in manifest.files.items():
        _check_file(folder, name, expected, thorough)
    check_graphs(folder, manifest)
    check_tables(folder, manifest)


def _is_inside(folder: Path, name: str) -> bool:
    root = os.path.realpath(folder)
    return os.path.commonpath([root, os.path.realpath(folder / name)]) == root


def _check_file(folder: Path, name: str, expected: FileInfo, thorough: bool) -> None:
    path = folder / name
    if not path.is_file():
        raise CascadeError(f"bundle {folder} lacks its file {name}: build it again.")
    try:
        whole = thorough or expected.bytes <= _HASHED_WHOLE
        same = path.stat().st_size == expected.bytes and (
            whole_digest(path) == expected.sha256 if whole else sampled_digest(path) == expected.samples
        )
    except OSError as error:
        raise CascadeError(f"{path} cannot be read ({error.strerror}): check its permissions.") from None
    if not same:
        raise CascadeError(f"{path} has changed since the bundle was built: build it again.")
