"""What a shell's user meets: closed pipes, full disks, locales without the letters, output under odd names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="the system has no /dev/full")


def shell(line: str, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a line in which `cascade` is the command and $1, $2, ... are the words."""
    command = f'cascade() {{ "$PYTHON" -m cascade_trt "$@"; }}; set -o pipefail; {line}'
    environment = {**os.environ, "PYTHON": sys.executable, **environment}
    return subprocess.run(["bash", "-c", command, "bash", *map(str, words)], capture_output=True, check=False,
                          env=environment, text=True, encoding="utf-8", errors="surrogateescape")  # fmt: skip


DRAW = 'cascade generate red --rule ar --bundle "$1" --out "$2"'


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "cp1252"}, {"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
     {"PYTHONIOENCODING": "ascii:strict", "PYTHONUNBUFFERED": "1"}],
)  # fmt: skip
def test_letters_that_cannot_be_printed(text_bundle: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    line = 'cascade generate "a rüd äpple 図" --rule ar --bundle "$1" --out "$2"'
    result = shell(line, text_bundle, tmp_path / "図", **environment)
    assert result.returncode == 0 and "Traceback" not in result.stderr, result.stderr
    (file,) = (tmp_path / "図").iterdir()
    assert file.suffix == ".png" and "r" in file.name
    assert len(result.stdout.splitlines()) == 1


def test_names_are_printed_as_they_are(text_bundle: Path, tmp_path: Path) -> None:
    result = shell(DRAW, text_bundle, os.fsdecode(os.fsencode(tmp_path) + b"/not-utf8-\xff"))
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.rstrip("\n")).is_file()


@pytest.mark.parametrize(
    ("end", "said"),
    [("| head -0", ""), ("--json | head -0", ""), ("2>&1 | head -0", ""), (">&-", ""), ("2>&-", ""),
     pytest.param(">/dev/full", "Warning: standard output could not be written", marks=needs_full),
     pytest.param("--json >/dev/full", "red-0.png", marks=needs_full),
     pytest.param(">/dev/full 2>&1", "", marks=needs_full)],
)  # fmt: skip
def test_an_image_that_is_drawn_is_a_success(text_bundle: Path, tmp_path: Path, end: str, said: str) -> None:
    result = shell(f"{DRAW} {end}", text_bundle, tmp_path)
    assert result.returncode == 0, result.stderr
    assert said in result.stderr and "Traceback" not in result.stderr and "BrokenPipe" not in result.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["red-0.png"]


@needs_full
def test_a_listing_that_is_lost_is_a_failure() -> None:
    result = shell("cascade models --json >/dev/full")
    assert result.returncode == 1
    assert result.stderr == "Error: standard output could not be written (No space left on device).\n"
    assert shell("cascade models | head -1").returncode == 0
