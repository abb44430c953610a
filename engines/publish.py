"""Staging and publishing of bundle folders: built beside the target, locked, renamed into place."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..runtime.bundle import MANIFEST, Manifest, read_manifest
from ..runtime.errors import CascadeError

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)  # the disk's fault, not the program's


@contextmanager
def staged_bundle(out: Path) -> Iterator[Path]:
    """Yields an empty folder beside `out`; when the block ends well, that folder becomes `out`.

    After an error or Ctrl-C the staging folder is gone and an older bundle in `out` is as it was. Raises
    CascadeError when `out` cannot be written, holds something that is not a bundle, or is being built.
    """
    out = Path(os.path.realpath(out))  # through a link, so that the bundle behind it is the one replaced
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (out / MANIFEST).is_file())):
        raise CascadeError(f"{out} exists and is not a bundle: choose another --out.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock = open(out.parent / f".{out.name}.lock", "w")  # noqa: SIM115 - closed below
    except OSError as error:
        raise CascadeError(f"cannot write {out} ({error.strerror}): choose another folder.") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CascadeError(
                f"another build of {out} is running: wait for it, or choose another folder."
            ) from None
        stage = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.", suffix=".part"))
        try:
            yield stage
            stage.chmod(0o755)
            _replace(stage, out)
        except OSError as error:
            if error.errno not in _DISK:
                raise
            raise CascadeError(
                f"cannot write {out} ({error.strerror}): free space or choose another folder."
            ) from error
        finally:
            shutil.rmtree(stage, ignore_errors=True)
            Path(lock.name).unlink(missing_ok=True)


def _replace(stage: Path, out: Path) -> None:
    """Puts `stage` in the place of `out`; the old bundle is kept until the new one stands."""
    if not out.exists():
        os.rename(stage, out)
        return
    old = stage.with_suffix(".old")
    os.rename(out, old)
    try:
        os.rename(stage, out)
    except BaseException:
        os.rename(old, out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def linked_copy(bundle: Path, stage: Path) -> None:
    """Fills the empty folder `stage` with `bundle`'s files as hard links (copies where links do not work).

    Whoever changes a file in the stage must write it anew: a link shares its bytes with the published bundle.
    """

    shutil.copytree(bundle, stage, copy_function=link, dirs_exist_ok=True)


def link(source: str | Path, target: str | Path) -> None:
    """A hard link, or a copy where links do not work."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def write_new(path: Path, text: str) -> None:
    """Writes a file anew: never through a hard link that the published bundle shares."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    os.replace(part, path)


def amend_bundle(bundle: Path, change: Callable[[Path, Manifest], Manifest]) -> None:
    """Replaces `bundle` as a whole by a copy of itself, after `change`.

    `change` gets the folder of the copy, whose files it must write anew, and the manifest, and returns the new one.
    """
    with staged_bundle(bundle) as stage:
        linked_copy(bundle, stage)
        manifest = change(stage, read_manifest(bundle))
        write_new(stage / MANIFEST, manifest.to_json())
