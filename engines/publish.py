"""Staging and publishing of bundle folders: built beside the target under a lock, exchanged in one step.

One builder at a time is inside (`lock.py`). What it makes lies in a hidden folder beside the bundle and takes the
bundle's place at once (`exchange.py`), so that a killed builder leaves the old bundle or the new one. The hidden folder
that it leaves, too, is cleared by the next builder.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ..runtime.bundle import MANIFEST, Manifest, read_manifest
from ..runtime.errors import CascadeError
from ..runtime.files import check_files, require_utf8
from .exchange import put_in_place, require_movable
from .lock import locked
from .origin import same_target

_PATIENCE = 60.0  # seconds that a change of a bundle waits for another builder: what it writes may have taken hours
_GLANCE = 5.0  # seconds that a check before the work waits
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BROKEN = (errno.EIO, errno.EROFS)  # the disk's fault, too, wherever it shows


@contextmanager
def staged_bundle(out: Path, patience: float = 0.0) -> Iterator[Path]:
    """Yields an empty folder beside `out`; when the block ends well, that folder becomes `out`.

    After an error or Ctrl-C the staging folder is gone and an older bundle in `out` is as it was; at every moment `out`
    is the old bundle or the new one. Raises CascadeError, before the block, when `out` cannot be replaced, holds
    something that is not a bundle, or is still being built by another after `patience` seconds; and after it when the
    disk is full, or what was staged cannot be loaded.
    """
    out = Path(os.path.realpath(out))  # through a link, so that the bundle behind it is the one replaced
    with _staging(out, patience) as stage:
        yield stage
        require_loadable(stage, out)
        _refuse_others(out)  # once more: a build is long
        if out.exists():
            stage.chmod(stat.S_IMODE(out.stat().st_mode))
        put_in_place(stage, out)


def check_replaceable(out: Path) -> None:
    """Raises CascadeError, before any work, when `staged_bundle` could not publish `out` now. Changes nothing."""
    with _staging(Path(os.path.realpath(out)), _GLANCE):
        pass


@contextmanager
def _staging(out: Path, patience: float) -> Iterator[Path]:
    """An empty folder beside `out` that is gone afterwards, unless it was moved, with no other builder inside."""
    with ExitStack() as stack:
        stack.enter_context(_as_sentence(out))
        require_utf8(out)
        _refuse_others(out)
        _refuse_working_folder(out)
        stack.callback(_remove_empty, [folder for folder in out.parents if not folder.exists()])
        out.parent.mkdir(parents=True, exist_ok=True)
        stack.enter_context(locked(out, patience))
        _clear_stale(out)
        stage = out.parent / f".{out.name}.{secrets.token_hex(4)}.part"
        stack.callback(remove_tree, stage)
        stage.mkdir()  # with the mode that the user's umask gives
        if out.exists():
            require_movable(out, stage)
        yield stage


@contextmanager
def _as_sentence(out: Path) -> Iterator[None]:
    """Turns what the disk refuses, or a place that a build of `out` writes to, into a CascadeError."""
    try:
        yield
    except OSError as error:
        full = error.errno is None or error.errno in _FULL  # numpy's short writes carry no number
        if not (full or error.errno in _BROKEN or _is_written_to(str(error.filename or ""), out)):
            raise
        reason = error.strerror or "the disk is full"
        advice = "free space or choose another folder" if full else "choose another folder"
        raise CascadeError(f"cannot write {out} ({reason}): {advice}.") from error


def _is_written_to(place: str, out: Path) -> bool:
    """Whether `place` is the bundle, something in it or hidden beside it, or a folder above it."""
    path, hidden = Path(place), f"{out.parent}{os.sep}.{out.name}."  # the lock, the staging folder
    return place.startswith(hidden) or path == out or out in path.parents or (place != "" and path in out.parents)


def _refuse_others(out: Path) -> None:
    """Raises CascadeError when `out` holds something that is neither a bundle nor empty."""
    if os.path.lexists(out) and not (out.is_dir() and (not any(out.iterdir()) or (out / MANIFEST).is_file())):
        raise CascadeError(f"{out} exists and is not a bundle: choose another --out.")


def _refuse_working_folder(out: Path) -> None:
    """Raises CascadeError where the exchange would take the caller's working directory away: a shell in it would be
    left in a folder that is gone."""
    try:
        here = Path.cwd()
    except FileNotFoundError:  # it is gone already
        return
    if out == here or out in here.parents:
        raise CascadeError(
            f"{out} is the folder that this command runs in, or is above it, and a bundle is replaced as a whole: run "
            "the command from another folder."
        )


def require_loadable(stage: Path, out: Path) -> None:
    """Raises CascadeError when the bundle in `stage`, which is to become `out`, could not be loaded there."""
    try:
        check_files(stage, read_manifest(stage))
    except CascadeError as error:
        reason = str(error).replace(str(stage), str(out)).rstrip(".").removesuffix(": build the bundle again")
        raise CascadeError(
            f"the new bundle could not be loaded ({reason}), so {out} is left as it was: correct what was asked for, "
            "or report this."
        ) from None


def _clear_stale(out: Path) -> None:
    """Removes what killed builders of `out` left, and puts an old bundle back that one had only just moved aside.

    Under the lock no other folder of these names is in use; those of bundles with longer names have another part.
    """
    ours = re.compile(rf"\.{re.escape(out.name)}\.[a-z0-9_]{{8}}\.(part|old)")
    left = [path for path in out.parent.iterdir() if ours.fullmatch(path.name)]
    aside = [path for path in left if path.suffix == ".old" and (path / MANIFEST).is_file()]
    if aside and not out.exists():
        os.rename(max(aside, key=lambda path: path.stat().st_mtime_ns), out)
    for path in left:
        remove_tree(path)


def remove_tree(folder: Path) -> None:
    """Removes a folder if it is there, read-only ones in it too, as far as the user may."""

    def again(function: Callable[[str], object], path: str, _: object) -> None:
        with suppress(OSError):
            os.chmod(os.path.dirname(path), 0o700)
            function(path)

    if folder.exists():
        shutil.rmtree(folder, onerror=again)


def _remove_empty(folders: list[Path]) -> None:
    """Removes parents that were made for a build that came to nothing, the innermost first."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def linked_copy(bundle: Path, stage: Path) -> None:
    """Fills the empty folder `stage` with `bundle`'s files as hard links (copies where links do not work).

    Whoever changes a file in the stage must write it anew: a link shares its bytes with the published bundle.
    """
    for path in files_below(bundle):
        link(path, stage / path.relative_to(bundle))


def files_below(folder: Path) -> Iterator[Path]:
    """Everything below a folder that is not a folder itself; links are not followed."""
    for where, folders, files in os.walk(folder):
        for name in files + [name for name in folders if os.path.islink(os.path.join(where, name))]:
            yield Path(where, name)


def link(source: Path, target: Path) -> None:
    """A hard link, or a copy where links do not work; makes the folders above it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        if source.is_symlink():
            target.symlink_to(os.readlink(source))
        else:
            shutil.copyfile(source, target)


def make_folder(bundle: Path, name: str) -> None:
    """The folder `name` of a bundle, where it is not there yet. Raises CascadeError where a file is in the way."""
    try:
        (bundle / name).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise CascadeError(f"the bundle has a file in the place of its folder {name}: move it away.") from None


def write_new(path: Path, text: str) -> None:
    """Writes a file anew: never through a hard link that the published bundle shares."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    os.replace(part, path)


def amend_bundle(
    bundle: Path, change: Callable[[Path, Manifest], Manifest], measured: Manifest | None = None
) -> None:
    """Replaces `bundle` as a whole by a copy of itself, after `change`.

    `change` gets the folder of the copy, whose files it must write anew, and the manifest, and returns the new one.
    Changes by several processes follow one another. `measured` is the manifest of the bundle that the change goes back
    to. Raises CascadeError when the bundle cannot be replaced, has other weights than `measured` by now, or is still
    being built by another process after a minute.
    """
    read_manifest(bundle)  # a place without a bundle is told before anything is made beside it
    with staged_bundle(bundle, _PATIENCE) as stage:
        manifest = read_manifest(bundle)
        if measured is not None and not same_target(manifest, measured):
            raise CascadeError(f"{bundle} was built with other weights meanwhile: run this command again.")
        linked_copy(bundle, stage)
        write_new(stage / MANIFEST, change(stage, manifest).to_json())
