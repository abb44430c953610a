"""Publishing is all or nothing: a reader sees the old bundle or the new one, never a part."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from cascade_trt.engines.publish import staged_bundle
from cascade_trt.runtime.errors import CascadeError


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
