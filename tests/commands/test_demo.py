"""Which bundle a command draws with when it is given none."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import threading
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

import cascade_trt
from cascade_trt.cli import cli
from cascade_trt.commands import demo
from cascade_trt.runtime.bundle import MANIFEST
from cascade_trt.runtime.errors import CascadeError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and an empty folder to be in."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cascade-trt"


@pytest.fixture
def built(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that were built, each with a small bundle instead of the demo's."""
    folders: list[Path] = []

    def build(folder: Path, digest: str) -> None:
        folders.append(folder)
        shutil.copytree(tiny_bundle, folder, dirs_exist_ok=True)
        content = json.loads((folder / MANIFEST).read_text()) | {"request": digest}
        (folder / MANIFEST).write_text(json.dumps(content))

    monkeypatch.setattr(demo, "_build", build)
    return folders


def test_a_bundle_that_is_given_is_taken(cache: Path, built: list[Path]) -> None:
    demo.HERE.mkdir(parents=True)
    assert demo.bundle_or_demo(Path("another")) == Path("another")
    assert demo.bundle_or_demo(None) == Path("build/emoji")
    assert not built and not cache.exists()


def test_info_shows_what_generate_would_draw_with(cache: Path, built: list[Path], tiny_bundle: Path) -> None:
    """Built on first use, and none of it when there is one in build/."""
    shown = CliRunner().invoke(cli, ["info", "--json"])
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout) == json.loads((built[0] / MANIFEST).read_text())
    assert len(built) == 1 and built[0].parent == cache
    shutil.copytree(tiny_bundle, demo.HERE)
    shown = CliRunner().invoke(cli, ["info"])
    assert shown.exit_code == 0, shown.output
    assert "build/emoji" in shown.stdout and len(built) == 1


def test_the_demo_is_built_once_and_told_once(
    cache: Path, built: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = demo.bundle_or_demo(None)
    assert folder.parent == cache and built == [folder]
    assert str(folder) in capsys.readouterr().err
    assert demo.bundle_or_demo(None) == folder and built == [folder]
    assert capsys.readouterr() == ("", "")


def test_a_damaged_bundle_is_built_again(cache: Path, built: list[Path]) -> None:
    folder = demo.bundle_or_demo(None)
    (folder / "target.data").write_bytes(b"")
    assert demo.bundle_or_demo(None) == folder
    assert built == [folder] * 2 and cache.is_dir()


def test_an_upgrade_has_a_bundle_of_its_own(
    cache: Path, built: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "weights"
    (weights / "text").mkdir(parents=True)
    (weights / "text" / "config.json").write_text("{}")
    monkeypatch.setattr(demo, "DEMO", weights)
    folders = [demo.bundle_or_demo(None)]
    os.utime(weights / "text" / "config.json", (1, 1))  # installed anew
    assert demo.bundle_or_demo(None) == folders[0]
    (weights / "text" / "config.json").write_text("[]")
    folders.append(demo.bundle_or_demo(None))
    monkeypatch.setattr(demo, "SCHEMA_VERSION", 99)
    folders.append(demo.bundle_or_demo(None))
    monkeypatch.setattr(demo, "__version__", "99.0")
    folders.append(demo.bundle_or_demo(None))
    assert len(set(folders)) == 4 and built == folders and all(folder.parent == cache for folder in folders)


def test_two_at_once_build_once(cache: Path, built: list[Path]) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(demo.bundle_or_demo(None))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1 and found == built * 4
    assert list(cache.iterdir()) == built  # no lock is left


@pytest.mark.parametrize(
    ("missing", "extras"),
    [({"torch"}, "export"), ({"safetensors"}, "export"), ({"onnxruntime"}, "cpu"), ({"onnx", "onnxruntime"},
     "export,cpu")],
)  # fmt: skip
def test_what_is_missing_is_told_before_anything_is_made(
    cache: Path, built: list[Path], monkeypatch: pytest.MonkeyPatch, missing: set[str], extras: str
) -> None:
    there = demo.find_spec
    monkeypatch.setattr(demo, "find_spec", lambda name: None if name in missing else there(name))
    result = CliRunner().invoke(cli, ["generate", "a red apple"])
    assert result.exit_code == 2 and f"'cascade-trt[{extras}]'" in result.output
    assert all(name in result.output for name in missing)
    assert not built and not cache.exists() and not os.listdir()


def test_the_modules_are_those_of_the_extras() -> None:
    project = tomllib.loads((Path(cascade_trt.__file__).parent / "pyproject.toml").read_text())["project"]
    for extra, modules in demo.NEEDED.items():
        names = [re.split("[^a-z-]", requirement)[0] for requirement in project["optional-dependencies"][extra]]
        assert [name.replace("-", "_") for name in names] == list(modules)


@pytest.mark.parametrize("place", ["/dev/null", "/proc/cache"])
def test_a_cache_that_cannot_be_written_is_a_sentence(
    cache: Path, built: list[Path], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", place)
    result = CliRunner().invoke(cli, ["generate", "a red apple"])
    assert result.exit_code == 2 and "set XDG_CACHE_HOME to a folder of yours" in result.output
    assert not built and not cache.exists()


@pytest.mark.parametrize(
    ("platform", "environment", "folder"),
    [("linux", {"XDG_CACHE_HOME": "/caches"}, "/caches/cascade-trt"),
     ("linux", {"XDG_CACHE_HOME": "relative"}, "/home/ann/.cache/cascade-trt"),
     ("linux", {}, "/home/ann/.cache/cascade-trt"),
     ("darwin", {}, "/home/ann/Library/Caches/cascade-trt"),
     ("win32", {"LOCALAPPDATA": "/local"}, "/local/cascade-trt/Cache"),
     ("win32", {}, "/home/ann/AppData/Local/cascade-trt/Cache")],
)  # fmt: skip
def test_where_the_cache_is(
    monkeypatch: pytest.MonkeyPatch, platform: str, environment: dict[str, str], folder: str
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"HOME": "/home/ann"} | environment).items():
        monkeypatch.setenv(name, value)
    assert demo.cache_folder() == Path(folder)


def test_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(CascadeError, match="no home folder"):
        demo.cache_folder()


@pytest.mark.parametrize(
    "command",
    [["generate", "a red apple"], ["bench"], ["eval"], ["calibrate", "costs"], ["calibrate", "states"],
     ["calibrate", "tree"], ["calibrate", "thresholds"]],
)  # fmt: skip
@pytest.mark.usefixtures("cache")
def test_every_command_takes_the_demo(monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
    def refuse() -> Path:
        raise CascadeError("the demo was asked for.")

    monkeypatch.setattr(demo, "demo_bundle", refuse)
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 2 and "the demo was asked for." in result.output
