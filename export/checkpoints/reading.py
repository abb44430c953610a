"""Configs in JSON, and what files of every kind have in common."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from ...runtime.errors import CascadeError
from ...runtime.schema import without_doubles

_LARGEST_CONFIG = 64 << 20  # bytes
_POINTER = b"version https://git-lfs.github.com/spec/"
_LONGEST_NAME = 120


def spelt(name: str) -> str:
    """A name from a file as a sentence can hold it: on one line, printable, not too long."""
    short = name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}..."
    return short if short.isprintable() else repr(short.encode("ascii", "backslashreplace").decode())


def shown(value: Any) -> str:
    """A value of a config as a sentence can hold it."""
    try:
        return spelt(repr(value))
    except RecursionError:
        return "a deep nesting"


def refuse_pointer(path: Path, head: bytes | None = None) -> None:
    """Raises CascadeError where a file, which begins with `head`, only says where Git LFS has it."""
    if head is None:
        with open(path, "rb") as file:
            head = file.read(len(_POINTER))
    if head.startswith(_POINTER):
        raise CascadeError(f"{path} is a Git LFS pointer: fetch the file itself (`git lfs pull`, or another download).")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises CascadeError when it is missing or malformed."""
    try:
        found = Path(path).stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > _LARGEST_CONFIG:
            raise CascadeError(f"{path} is not a JSON file of a config's size: check the path.")
        refuse_pointer(path)
        content = json.loads(Path(path).read_text("utf-8-sig"), object_pairs_hook=without_doubles)
    except FileNotFoundError:
        raise CascadeError(f"there is no file {path}: check the path.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CascadeError(f"{path} is not readable JSON ({spelt(str(error))}): correct the file.") from None
    if not isinstance(content, dict):
        raise CascadeError(f"{path} must hold a JSON object.")
    return content
