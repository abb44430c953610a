"""What a plan file says of itself, read without a GPU and without TensorRT."""

from __future__ import annotations

from pathlib import Path

_MAGICS = (b"vtrt", b"ptrt", b"ftrt")  # TensorRT-RTX 1.7 writes "vtrt"; TensorRT "ptrt" and "ftrt"
_RTX_VERSION = slice(24, 28)


def plan_problem(path: Path) -> str | None:
    """Why `path` cannot be a plan ("is empty", "does not start like a TensorRT plan"), or None."""
    with open(path, "rb") as file:
        head = file.read(64)
    if not head:
        return "is empty"
    if len(head) < 64 or head[:4] not in _MAGICS:
        return "does not start like a TensorRT plan"
    return None


def rtx_version(path: Path) -> str | None:
    """The version of TensorRT-RTX that wrote the plan ("1.7.1.116"), or None for other files."""
    with open(path, "rb") as file:
        head = file.read(64)
    if len(head) < 64 or head[:4] != b"vtrt":
        return None
    return ".".join(str(part) for part in head[_RTX_VERSION])
