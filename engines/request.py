"""Whether a build would only repeat itself: a digest of everything that was asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..runtime.bundle import read_manifest
from ..runtime.errors import CascadeError
from ..runtime.files import check_files

_EXPORTER = Path(__file__).resolve().parent.parent / "export"


def request_digest(options: Mapping[str, Any], files: list[Path]) -> str:
    """Hex digest of `options`, of the exporter's source, and of path, size and time of every input file.

    Folders count with all their files. Checkpoints are not read: they may be large.
    """
    digest = hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode())
    for source in sorted(_EXPORTER.rglob("*.py")):
        digest.update(source.read_bytes())
    for given in files:
        found = sorted(path for path in given.rglob("*") if path.is_file()) if given.is_dir() else [given]
        for path in found:
            if path.is_file():
                state = path.stat()
                digest.update(f"{path.resolve()} {state.st_size} {state.st_mtime_ns}".encode())
    return digest.hexdigest()


def already_built(out: Path, request: str) -> bool:
    """Whether the bundle in `out` answers `request` and its files are unharmed."""
    try:
        manifest = read_manifest(out)
        if manifest.request != request:
            return False
        check_files(out, manifest)
    except CascadeError:
        return False
    return True
