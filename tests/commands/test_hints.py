"""Commands in sentences: what a user without an activated environment can type."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from cascade_trt.cli import cli
from cascade_trt.commands.hints import usable

SCRIPT = Path(sys.executable).parent / "cascade-trt"
pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="the command is not installed")


def said(folder: Path, path: str) -> str:
    """What `info` answers in a folder where there is no bundle."""
    environment = {**os.environ, "PATH": path}
    command = [str(SCRIPT), "info", "nowhere"]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    return result.stderr


def test_the_command_can_be_typed(tmp_path: Path) -> None:
    assert "`cascade-trt build`" in said(tmp_path, f"{SCRIPT.parent}:{os.environ['PATH']}")
    apart = said(tmp_path, "/usr/bin:/bin")
    assert f"`{SCRIPT} build`" in apart
    (tmp_path / ".venv").symlink_to(SCRIPT.parent.parent)
    (tmp_path / "bin").mkdir()
    result = subprocess.run([".venv/bin/cascade-trt", "info", "nowhere"], cwd=tmp_path, capture_output=True, text=True,
                            env={**os.environ, "PATH": "/usr/bin:/bin"}, check=False)  # fmt: skip
    assert "`.venv/bin/cascade-trt build`" in result.stderr


def test_what_is_rewritten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "my env" / "bin" / "python"))
    monkeypatch.setattr(sys, "argv", ["pytest"])
    python = "'my env/bin/python'"
    sentence = "this cascade-trt reads version 4: run `cascade-trt build x`, or (pip install 'cascade-trt[cpu]')."
    with click.Context(cli):
        said, kept = usable(sentence), usable("x -m pip install y; .venv/bin/cascade-trt build")
    assert said == (
        f"this cascade-trt reads version 4: run `{python} -m cascade_trt build x`, or "
        f"({python} -m pip install 'cascade-trt[cpu]')."
    )
    assert kept == "x -m pip install y; .venv/bin/cascade-trt build"
