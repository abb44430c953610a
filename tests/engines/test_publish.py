"""Publishing is all or nothing: a reader sees the old bundle or the new one, never a part."""

from __future__ import annotations

import ast
import ctypes
import errno
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cascade_trt.engines import exchange
from cascade_trt.engines import publish as publishing
from cascade_trt.engines.publish import amend_bundle, check_replaceable, staged_bundle
from cascade_trt.runtime.bundle import Manifest, read_manifest
from cascade_trt.runtime.errors import CascadeError
from cascade_trt.runtime.files import check_files


@pytest.fixture(autouse=True)
def folders_of_any_content(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most tests here publish folders whose manifest is a word: what is in them is not looked at."""
    if "amended" not in request.fixturenames:
        monkeypatch.setattr(publishing, "require_loadable", lambda *_: None)


def publish(out: Path, content: str) -> None:
    with staged_bundle(out) as stage:
        assert not any(stage.iterdir())
        (stage / "manifest.json").write_text(content)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_new_and_replaced(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "bundle"
    for content in ("first", "second"):
        publish(out, content)
        assert (out / "manifest.json").read_text() == content
        assert names(out.parent) == ["bundle"]
    assert out.stat().st_mode & 0o777 == 0o755


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    publish(tmp_path / "bundle", "new")
    assert names(tmp_path) == ["bundle"]


def fail_half_way(out: Path, error: type[BaseException]) -> None:
    with staged_bundle(out) as stage:
        (stage / "target.data").write_text("half")
        assert (out / "manifest.json").read_text() == "old"
        raise OSError(errno.ENOSPC, "No space left on device") if error is OSError else error


@pytest.mark.parametrize("error", [KeyboardInterrupt, CascadeError, ZeroDivisionError, OSError])
def test_a_failure_leaves_the_old_bundle(tmp_path: Path, error: type[BaseException]) -> None:
    out = tmp_path / "bundle"
    publish(out, "old")
    with pytest.raises(CascadeError if error is OSError else error):
        fail_half_way(out, error)
    assert names(tmp_path) == ["bundle"]
    assert names(out) == ["manifest.json"]


def test_a_link_is_followed(tmp_path: Path) -> None:
    """The bundle behind the link is replaced, the link stays."""
    real, link = tmp_path / "real", tmp_path / "link"
    publish(real, "old")
    link.symlink_to(real)
    publish(link, "new")
    assert link.is_symlink()
    assert (real / "manifest.json").read_text() == "new"
    assert names(tmp_path) == ["link", "real"]


def test_locked_while_it_is_built(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    with staged_bundle(out) as stage:
        with pytest.raises(CascadeError, match="another build"), staged_bundle(out):
            pass
        assert stage.is_dir()
        (stage / "manifest.json").write_text("mine")
    assert (out / "manifest.json").read_text() == "mine"
    assert names(tmp_path) == ["bundle"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_not_a_bundle_stays(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "photos"
    if kind == "file":
        out.write_text("precious")
    else:
        out.mkdir()
        (out / "holiday.jpg").write_text("precious")
    with pytest.raises(CascadeError, match="is not a bundle"), staged_bundle(out):
        pass
    assert names(tmp_path) == ["photos"]
    assert (out if kind == "file" else out / "holiday.jpg").read_text() == "precious"


def test_a_bundle_keeps_its_mode_and_a_new_one_has_the_users(tmp_path: Path) -> None:
    """Nothing of how it was made, which mkstemp and mkdtemp would show, is in the result."""
    out, before = tmp_path / "bundle", os.umask(0o027)
    try:
        publish(out, "first")
        assert modes(out) == (0o750, 0o640)
        out.chmod(0o700)
        os.umask(0o002)
        publish(out, "second")
        assert modes(out) == (0o700, 0o664)
    finally:
        os.umask(before)


def modes(out: Path) -> tuple[int, int]:
    return out.stat().st_mode & 0o777, (out / "manifest.json").stat().st_mode & 0o777


def test_what_killed_builds_left_is_cleared_and_nothing_else(tmp_path: Path) -> None:
    """Not what a builder of a bundle with a longer name is using."""
    left = [tmp_path / f".bundle.{name}" for name in ("0123abcd.part", "x_12yz34.part", "0123abcd.old")]
    theirs = (".bundle.b.0123abcd.part", ".bundle.part", ".bundles.0123abcd.part", "bundle.0123abcd.part")
    others = [tmp_path / name for name in theirs]
    for folder in (*left, *others):
        (folder / "deep").mkdir(parents=True)
        (folder / "deep" / "file").touch()
        (folder / "deep").chmod(0o500)
    (tmp_path / ".bundle.lock").touch()
    publish(tmp_path / "bundle", "new")
    assert names(tmp_path) == sorted(["bundle", *(folder.name for folder in others)])


def test_without_an_exchange_of_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old file systems rename twice. A builder that was killed in between has put the old bundle aside."""
    monkeypatch.setattr(exchange, "_exchange", lambda *_: False)
    out = tmp_path / "bundle"
    for content in ("first", "second"):
        publish(out, content)
        assert (out / "manifest.json").read_text() == content
    os.rename(out, tmp_path / ".bundle.0123abcd.old")
    with pytest.raises(ZeroDivisionError):
        find_then_fail(out, "second")
    assert names(tmp_path) == ["bundle"]
    real = os.rename

    def refuse(source: Path, target: Path) -> None:
        if source.suffix == ".part" and target == out:
            raise OSError(errno.EPERM, "Operation not permitted", str(source))
        real(source, target)

    monkeypatch.setattr(exchange.os, "rename", refuse)
    with pytest.raises(CascadeError, match="Operation not permitted"):
        publish(out, "third")
    assert (out / "manifest.json").read_text() == "second"
    assert names(tmp_path) == ["bundle"]


def find_then_fail(out: Path, content: str) -> None:
    with staged_bundle(out):
        assert (out / "manifest.json").read_text() == content
        raise ZeroDivisionError


def test_a_folder_that_came_meanwhile_stays(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    with pytest.raises(CascadeError, match="is not a bundle"):
        publish_late(out)
    assert names(tmp_path) == ["bundle"]
    assert names(out) == ["holiday.jpg"]


def publish_late(out: Path) -> None:
    with staged_bundle(out) as stage:
        (stage / "manifest.json").write_text("new")
        out.mkdir()
        (out / "holiday.jpg").write_text("precious")


def test_folders_made_for_nothing_go(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), staged_bundle(tmp_path / "far" / "away" / "bundle"):
        raise ZeroDivisionError
    assert names(tmp_path) == []
    check_replaceable(tmp_path / "far" / "bundle")
    assert names(tmp_path) == []


def test_an_error_that_is_not_of_the_bundles_place_is_raised_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), staged_bundle(tmp_path / "bundle"):
        (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(CascadeError, match="cannot write .*the disk is full"), staged_bundle(tmp_path / "bundle"):
        raise OSError("7 requested and 3 written")  # numpy's


PLACES = """
import os, sys
from pathlib import Path
from cascade_trt.engines.publish import check_replaceable
from cascade_trt.runtime.errors import CascadeError
for name in sys.argv[1:]:
    try:
        check_replaceable(Path(name))
        print("fine")
    except CascadeError as error:
        print(error)
"""


def told(*command: str, places: list[Path], **how: Any) -> list[str]:
    """What is said of each place, in a process of its own."""
    run = subprocess.run([*command, sys.executable, "-c", PLACES, *places], capture_output=True, text=True, **how)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def test_a_mount_point_is_told_before_the_work(tmp_path: Path) -> None:
    """A file system of its own, and a folder of this one that is mounted on another."""
    own, bound = tmp_path / "own", tmp_path / "bound"
    for folder in (own, bound):
        publish(folder, "old")
    mounts = f"mount -t tmpfs none '{own}' && mount --bind '{bound}' '{bound}' && exec \"$@\""
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", mounts, "sh"]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    said = told(*command, places=[own, bound, own / "bundle"])
    assert all(f"{place} is a mount point" in line and f"{place}/bundle" in line
               for place, line in zip((own, bound), said, strict=False))  # fmt: skip
    assert said[2:] == ["fine"]
    assert names(tmp_path) == ["bound", "own"]
    assert names(bound) == ["manifest.json"]


def as_any_user() -> None:
    """Gives up what lets root write anywhere."""
    for capability in (1, 2, 3):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER
        ctypes.CDLL(None).prctl(24, capability)


def test_read_only_places_are_told_before_the_work(tmp_path: Path) -> None:
    closed, inside, free = (tmp_path / name for name in ("closed", "inside", "free"))
    for folder in (closed, inside / "bundle", free):
        publish(folder, "old")
    (tmp_path / "link").symlink_to(free)
    (tmp_path / "loop").symlink_to("loop")
    (free / "kept").mkdir()
    (free / "kept").chmod(0o555)
    closed.chmod(0o555)
    inside.chmod(0o555)
    long = tmp_path / ("a" * 250)
    places = [closed, inside / "bundle", inside / "new", free, tmp_path / "link", tmp_path / "loop", long]
    said = told(places=places, preexec_fn=as_any_user)
    closed.chmod(0o755)
    inside.chmod(0o755)
    assert "it is read-only" in said[0]
    assert all("(Permission denied)" in line for line in said[1:3])
    assert said[3:5] == ["fine"] * 2
    assert "is not a bundle" in said[5] and "File name too long" in said[6]
    assert names(tmp_path) == ["closed", "free", "inside", "link", "loop"]


AMENDS = """
import collections, os, sys, time
from dataclasses import replace
from pathlib import Path
from cascade_trt.engines.publish import amend_bundle
bundle, until, said = Path(sys.argv[1]), time.time() + float(sys.argv[2]), collections.Counter()
def change(stage, manifest):
    os.mkdir(bundle.parent / "inside")  # fails where another is inside
    time.sleep(0.0005)
    os.rmdir(bundle.parent / "inside")
    return replace(manifest, request=str(int(manifest.request or 0) + 1))
print("ready", flush=True)
while time.time() < until:
    try:
        amend_bundle(bundle, change)
        said["done"] += 1
    except BaseException as error:
        said[repr(error)] += 1
print(dict(said))
"""


@pytest.fixture
def amended(plain_bundle: Path, tmp_path: Path) -> Path:
    bundle = Path(shutil.copytree(plain_bundle, tmp_path / "bundle"))
    amend_bundle(bundle, lambda _, manifest: replace(manifest, request="0"))
    return bundle


def test_changes_of_several_processes_follow_one_another(amended: Path) -> None:
    """Never two inside, no error, no change that is lost."""
    command = [sys.executable, "-c", AMENDS, amended, "3"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [ast.literal_eval(process.communicate(timeout=60)[0].splitlines()[-1]) for process in processes]
    assert {reason for one in said for reason in one} == {"done"}, said
    assert int(read_manifest(amended).request) == sum(one["done"] for one in said)
    assert names(amended.parent) == ["bundle"]


def test_the_bundle_is_whole_whenever_a_builder_is_killed(amended: Path) -> None:
    """And what the killed ones leave, the next one clears."""
    for kill in range(6):
        command = [sys.executable, "-c", AMENDS, amended, "60"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.1 + 0.0037 * kill)
        process.kill()
        process.communicate()
        check_files(amended, read_manifest(amended), thorough=True)
        shutil.rmtree(amended.parent / "inside", ignore_errors=True)
    assert int(read_manifest(amended).request) > 6
    amend_bundle(amended, lambda _, manifest: manifest)
    assert names(amended.parent) == ["bundle"]


SPOILS = ("cannot be printed", "out of all bounds", "lacks its file", "has changed")


def spoilt(how: str, stage: Path, manifest: Manifest) -> Manifest:
    """The manifest, once it or a file beside it is of no use."""
    if how == "lacks its file":
        (stage / "decode.data").unlink()
    if how == "has changed":
        rewritten(stage / "decode.data")
    if how == "cannot be printed":
        return replace(manifest, name="a\tb")
    if how == "out of all bounds":
        return replace(manifest, target=replace(manifest.target, max_top_k=10**20))
    return manifest


def rewritten(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[7] ^= 1
    file.unlink()  # the published bundle shares its bytes
    file.write_bytes(content)


@pytest.mark.parametrize("reason", SPOILS)
def test_what_could_not_be_loaded_is_not_published(amended: Path, reason: str) -> None:
    before = read_manifest(amended)
    with pytest.raises(CascadeError, match=f"new bundle could not be loaded .*({reason})") as told:
        amend_bundle(amended, partial(spoilt, reason))
    assert f"{amended} is left as it was" in str(told.value) and ".part" not in str(told.value)
    assert read_manifest(amended) == before
    check_files(amended, before, thorough=True)
    assert names(amended.parent) == ["bundle"]


@pytest.mark.parametrize("inside", [False, True])
def test_the_working_directory_is_not_exchanged(amended: Path, inside: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell in it would be left in a folder that is gone."""
    here = amended / "inside" if inside else amended
    here.mkdir(exist_ok=True)
    monkeypatch.chdir(here)
    with pytest.raises(CascadeError, match="run the command from another folder"):
        amend_bundle(Path(os.pardir if inside else os.curdir), lambda _, manifest: manifest)
    assert Path.cwd() == here
    assert names(amended.parent) == ["bundle"]


def test_a_path_that_engines_cannot_be_loaded_from(tmp_path: Path) -> None:
    with pytest.raises(CascadeError, match="is not UTF-8"):
        check_replaceable(tmp_path / os.fsdecode(b"\xff") / "bundle")
    assert names(tmp_path) == []


def test_results_of_other_weights_are_not_written(amended: Path) -> None:
    """A bundle that was built again while something was measured."""
    measured = read_manifest(amended)
    target = measured.provenance["target"]
    other = replace(measured, provenance=measured.provenance | {"target": target | {"sha256": "0" * 64}})
    amend_bundle(amended, lambda _, manifest: replace(manifest, request="7"), measured)
    with pytest.raises(CascadeError, match="built with other weights meanwhile"):
        amend_bundle(amended, lambda _, manifest: replace(manifest, request="8"), other)
    assert read_manifest(amended).request == "7"
    with pytest.raises(CascadeError, match="there is no bundle"):
        amend_bundle(amended.parent / "nowhere" / "bundle", lambda _, manifest: manifest)
    assert names(amended.parent) == ["bundle"]
