"""Progress off a terminal: lines on stderr, stdout stays clean."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from cascade_trt.cli import cli
from cascade_trt.commands import progress as module
from cascade_trt.commands.progress import progress


def test_lines_say_how_far_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.02)
    with progress() as bar:
        first, second = bar.add_task("drawing", total=4), bar.add_task("judging", total=None)
        bar.update(first, completed=3)
        time.sleep(0.1)
        bar.update(first, completed=4)
        bar.advance(second)
        time.sleep(0.1)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "drawing: 3 of 4, 0 s so far" in shown.err and "judging: 1, 0 s so far" in shown.err
    time.sleep(0.1)
    assert capsys.readouterr().err == ""  # it ends with its block


def test_nothing_is_said_of_short_work(capsys: pytest.CaptureFixture[str]) -> None:
    with progress() as bar:
        bar.advance(bar.add_task("drawing", total=2))
    assert capsys.readouterr() == ("", "")


def test_generate_says_it_and_json_stays_json(
    text_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.02)
    asked = ["generate", "red", "--num-images", "8", "--json", "--bundle", str(text_bundle), "--out", str(tmp_path)]
    result = CliRunner().invoke(cli, asked)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["stats"]["images"] == 8
    assert re.search(r"^tokens: \d+ of 288, \d+ s so far", result.stderr, re.MULTILINE)
