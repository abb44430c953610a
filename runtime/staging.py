"""Files that are written whole: staged beside their place and moved there, so that nothing half-written is found."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from .errors import CascadeError


def write_file(path: Path, data: bytes) -> None:
    """Writes `data`, in the place of what is there; makes the folder. Through a link its target is written.

    Raises CascadeError when the place cannot be written.
    """
    path = Path(os.path.realpath(path))
    with _staged(path, data) as staged:
        os.replace(staged, path)


def write_new_file(path: Path, data: bytes) -> Path:
    """Writes `data` under the first name that is free: `path`, or with a number, as in apple-2.png. Returns that name.

    Nothing that is there is written over, even where another program takes the same names at the same time. Raises
    CascadeError when the place cannot be written.
    """
    with _staged(path, data) as staged:
        for number in count(1):
            taken = path if number == 1 else path.with_stem(f"{path.stem}-{number}")
            with suppress(FileExistsError):
                _move_to_new(staged, taken)
                return taken
    raise AssertionError  # `count` has no end


def _move_to_new(staged: Path, path: Path) -> None:
    """Raises FileExistsError when `path` is taken."""
    try:
        os.link(staged, path)
        return
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        os.replace(staged, path)
    except BaseException:
        path.unlink()
        raise


@contextmanager
def _staged(path: Path, data: bytes) -> Iterator[Path]:
    """A file with `data` beside `path`; gone in the end, wherever it was not moved."""
    staged = path.with_name(f".{uuid.uuid4().hex[:16]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(staged, "xb") as file:
            file.write(data)
        yield staged
    except OSError as error:
        raise CascadeError(f"cannot write {path} ({error.strerror or error}): choose another place.") from None
    finally:
        with suppress(OSError):
            staged.unlink()
