"""Checks of places to write to, before any work is done. They make nothing."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ..runtime.errors import CascadeError

_ROOM = 1 << 16  # bytes that a place must have room for


def check_writable(folder: Path, names: Sequence[str] = ()) -> None:
    """Raises CascadeError when the folder can neither be written to nor be made, or has no room for such names."""
    try:
        nearest = _nearest(folder, names)
        with tempfile.TemporaryFile(dir=nearest) as file:
            file.write(bytes(_ROOM))
            file.flush()
    except OSError as error:
        raise CascadeError(f"cannot write to {folder} ({_reason(error)}): choose another place.") from None


def check_file(file: Path) -> None:
    """Raises CascadeError when the file can neither be made nor written over."""
    check_writable(file.parent, [file.name])
    try:
        mode = file.stat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise CascadeError(f"cannot write {file} ({_reason(error)}): choose another place.") from None
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "no ordinary file"
        raise CascadeError(f"{file} is {what}: choose the name of a file.")


def check_apart(files: Mapping[str, Path | None]) -> None:
    """Raises CascadeError when two of the files, by the options that name them, are one: the last would be left."""
    seen: dict[str, str] = {}
    for option, file in files.items():
        if file is not None and (other := seen.setdefault(os.path.realpath(file), option)) != option:
            raise CascadeError(f"{other} and {option} are both {file}: give each a file of its own.")


def _nearest(folder: Path, names: Sequence[str]) -> Path:
    """The folder, or the nearest one above it that is there. Raises OSError where no such folder or names can be."""
    folder, missing = folder.absolute(), list(names)
    for place in (folder, *folder.parents):
        try:
            mode = place.stat().st_mode
        except FileNotFoundError:
            if place.is_symlink():
                raise OSError(errno.ENOENT, "it is a link that leads nowhere") from None
            missing.append(place.name)
            continue
        if not stat.S_ISDIR(mode):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        for name in missing:
            with suppress(FileNotFoundError):  # but a name may be too long
                (place / name).lstat()
        return place
    raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))


def _reason(error: OSError) -> str:
    return error.strerror or (os.strerror(error.errno) if error.errno else str(error))
