"""`cascade-trt bench --judge`: quality beside the speed."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from cascade_trt.cli import cli


def bench(bundle: Path, *options: object):
    return CliRunner().invoke(cli, ["bench", "--bundle", str(bundle), *map(str, options)])


def test_judged_pictures(text_bundle: Path, judge_file: Path, tmp_path: Path) -> None:
    """`exact` draws the pictures of plain decoding: nothing may be lost against plain decoding."""
    asked = ("--rule", "exact", "--tree", "pair_4", "--num-images", 6, "--judge", judge_file)
    result = bench(text_bundle, *asked, "--json", tmp_path / "bench.json", "--plots", tmp_path)
    assert result.exit_code == 0, result.output
    plain, exact = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert plain["quality"]["images"] == 6
    assert exact["quality"]["concept"] == plain["quality"]["concept"]
    assert exact["quality"]["against_plain"]["concept"]["mean"] == 0
    low, high = exact["tau_interval"]
    assert 1 <= low <= exact["tau"] <= high
    assert (tmp_path / "quality.png").is_file()
    assert "paired by prompt and seed" in result.output
    result = bench(text_bundle, "--judge", tmp_path / "none.safetensors")
    assert result.exit_code == 2 and "none.safetensors" in result.stderr
