"""Places to write to: told before the work, nothing made by a check, nothing half-written."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from cascade_trt.cli import cli
from cascade_trt.commands.files import check_file, check_writable
from cascade_trt.runtime.errors import CascadeError
from cascade_trt.runtime.staging import write_file, write_new_file


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with 16 KiB of room, one page of it free."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(place)]
    if os.name != "posix" or os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small disk")
    (place / "filler").write_bytes(bytes(8192))
    yield place
    subprocess.run(["umount", str(place)], check=True)


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


@pytest.mark.parametrize("make", [False, True])
def test_a_check_makes_nothing(tmp_path: Path, make: bool) -> None:
    folder = tmp_path / "a" / "b"
    if make:
        folder.mkdir(parents=True)
    before = entries(tmp_path)
    check_writable(folder, ["x" * 255])
    check_file(folder / "x.json")
    assert entries(tmp_path) == before


def test_places_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    before = entries(tmp_path)
    for folder in ("file", "file/sub", "loop", "loop/sub", "dangling", "x" * 300, f"new/{'x' * 300}/sub", "pipe",
                   "/".join(["x" * 200] * 30)):  # fmt: skip
        with pytest.raises(CascadeError, match="cannot write to .*: choose another place"):
            check_writable(tmp_path / folder)
    for file, said in (
        ("loop", "symbolic links"), ("pipe", "no ordinary file"), (".", "a folder"), ("x" * 300, "name too long"),
        (f"new/{'x' * 300}", "name too long"), ("file/x", "Not a directory"),
    ):  # fmt: skip
        with pytest.raises(CascadeError, match=f"(?i){said}"):
            check_file(tmp_path / file)
    assert entries(tmp_path) == before
    check_file(tmp_path / "file")


def test_a_full_disk_is_told_before(full_disk: Path) -> None:
    with pytest.raises(CascadeError, match="No space left on device"):
        check_file(full_disk / "x.json")
    with pytest.raises(CascadeError, match="No space left on device"):
        write_file(full_disk / "x.json", bytes(1 << 16))
    with pytest.raises(CascadeError, match="No space left on device"):
        write_new_file(full_disk / "x.json", bytes(1 << 16))
    assert entries(full_disk) == ["filler"]


def test_a_file_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "new" / f"{'x' * 250}.json"
    write_file(file, b"one")
    link = tmp_path / "link"
    link.symlink_to(file)
    write_file(link, b"two")
    assert link.is_symlink() and file.read_bytes() == b"two"

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_file(file, b"three")
    assert file.read_bytes() == b"two" and entries(file.parent) == [file.name]


@pytest.mark.parametrize("links", [True, False])
def test_new_files_take_free_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    """On file systems without hard links, too."""
    if not links:

        def refuse(*_: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "a-2.png").symlink_to("nowhere")  # taken, though nothing is there
    names = [write_new_file(tmp_path / "a.png", bytes([i])).name for i in range(3)]
    assert names == ["a.png", "a-3.png", "a-4.png"]
    assert [(tmp_path / name).read_bytes() for name in names] == [b"\0", b"\1", b"\2"]
    assert entries(tmp_path) == sorted(["a-2.png", *names])


@pytest.mark.parametrize(
    "command",
    [("calibrate", "tree", "--out", "tree.json"), ("bench", "--json", "bench.json"), ("bench", "--markdown", "b.md"),
     ("generate", "red", "--out", "a.png"), ("generate", "red", "--out", "folder")],
)  # fmt: skip
def test_commands_say_so_before_the_work(full_disk: Path, command: tuple[str, ...]) -> None:
    """There is not even a bundle."""
    *asked, out = command
    result = CliRunner().invoke(cli, [*asked, str(full_disk / out), "--bundle", str(full_disk / "none")])
    assert result.exit_code == 2 and "No space left on device" in result.stderr, result.output
    assert len(result.stderr.splitlines()) == 1 and entries(full_disk) == ["filler"]
