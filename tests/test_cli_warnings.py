"""What was done otherwise than it was asked for is said on stderr, and the image is drawn."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cascade_trt.cli import cli
from cascade_trt.runtime.errors import CascadeWarning
from cascade_trt.runtime.machine import cores
from cascade_trt.runtime.pipeline import Pipeline


def generate(bundle: Path, out: Path, *arguments: object) -> Result:
    return CliRunner().invoke(cli, ["generate", *map(str, arguments), "--bundle", str(bundle), "--out", str(out)])


def test_more_threads_than_cores(text_bundle: Path, tmp_path: Path) -> None:
    for _ in range(2):  # said every time
        result = generate(text_bundle, tmp_path, "a red apple", "--threads", 1000)
        assert result.exit_code == 0, result.output
        assert f"Warning: 1000 threads were asked for, this machine lets us use {cores()} cores" in result.stderr
    assert "Warning" not in generate(text_bundle, tmp_path, "a red apple", "--threads", 1).stderr


def test_more_threads_than_cores_in_python(text_bundle: Path) -> None:
    with pytest.warns(CascadeWarning, match="1000 threads were asked for"):
        pipe = Pipeline.load(text_bundle, threads=1000, warm=False)
    assert pipe.identity.threads == cores()


def test_words_that_go(text_bundle: Path, tmp_path: Path) -> None:
    result = generate(text_bundle, tmp_path, "a red 猫 R2D2")
    assert result.exit_code == 0, result.output
    assert "Warning: prompt 1: the model's rules for captions removed '猫', 'r2d2'." in result.stderr


@pytest.mark.parametrize("prompt", ["一只猫", "https://example.com/a", "512x512", "R2D2", "." * 20000])
def test_a_prompt_of_which_nothing_is_left(text_bundle: Path, tmp_path: Path, prompt: str) -> None:
    result = generate(text_bundle, tmp_path / "out", prompt)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("Error: nothing of prompt 1 is left") and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
