"""One builder of a bundle at a time."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..runtime.errors import CascadeError

_PAUSE = 0.02  # seconds between two tries


@contextmanager
def locked(out: Path, patience: float) -> Iterator[None]:
    """Holds the lock of `out`, the file `.NAME.lock` beside it, which is gone afterwards.

    The system lets go of the lock when its holder ends in any way. Raises CascadeError when another still has it after
    `patience` seconds, and OSError when there can be no such file.
    """
    path = out.parent / f".{out.name}.lock"
    handle = _acquire(path, out, time.monotonic() + patience)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # only its holder does this, and whoever waits looks for a new file
        os.close(handle)


def _acquire(path: Path, out: Path, deadline: float) -> int:
    """A locked descriptor of the file that is now called `path`."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_file_of(handle, path):
                return handle
            os.close(handle)  # the last holder unlinked it between opening and locking
            continue
        except BlockingIOError:
            os.close(handle)
        except BaseException:
            os.close(handle)
            raise
        if time.monotonic() >= deadline:
            raise CascadeError(f"another build of {out} is running: wait for it, or choose another folder.")
        time.sleep(_PAUSE)


def _is_file_of(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False
