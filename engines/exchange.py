"""One folder in the place of another, in one step where the file system can."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

from ..runtime.errors import CascadeError

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux


def put_in_place(stage: Path, out: Path) -> None:
    """Renames `stage` to `out`; what was there has the name `stage` then.

    `out` is never missing where the file system exchanges names. Elsewhere it is for a moment, and a builder that is
    killed in it leaves the old bundle as `.NAME.XXXXXXXX.old`.
    """
    if not out.exists():
        os.rename(stage, out)
    elif not _exchange(stage, out):
        _exchange_in_steps(stage, out)


def _exchange(first: Path, second: Path) -> bool:
    """Whether the two names were exchanged."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    return renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0


def _exchange_in_steps(stage: Path, out: Path) -> None:
    old = stage.with_suffix(".old")
    os.rename(out, old)
    try:
        os.rename(stage, out)
    except BaseException:
        if not out.exists():
            os.rename(old, out)
        raise
    os.rename(old, stage)


def require_movable(out: Path, stage: Path) -> None:
    """Raises CascadeError when the folder `out` cannot be replaced by `stage`, which is empty.

    The system itself says it: renamed onto a folder that is not empty, `out` stays where it is, and the error tells
    whether that was the only thing in the way.
    """
    if not os.access(out, os.R_OK | os.W_OK | os.X_OK):
        raise CascadeError(f"cannot write {out} (it is read-only): make it writable, or choose another folder.")
    something = stage / "something"
    something.touch()
    try:
        os.rename(out, stage)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise CascadeError(
                f"{out} is a mount point, which cannot be replaced as a whole: choose a folder inside it, such as "
                f"{out / 'bundle'}."
            ) from None
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise CascadeError(
                f"{out} cannot be replaced where it is ({error.strerror}): copy it elsewhere, or choose another folder."
            ) from None
    else:  # a file system that does not look
        os.rename(stage, out)
        stage.mkdir()
        return
    something.unlink()
