"""`cascade-trt bench --judge`: speed and quality of every rule in one report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cascade_trt.benchmarks.quality import add_flat_cost
from cascade_trt.cli import cli

RELAXED = "cascade:children=coupled,tau_pos=0.1,tau_seq=0.1,guard=0"


def bench(bundle: Path, folder: Path, *options: object) -> Result:
    fixed = ("--images", folder / "images", "--json", folder / "bench.json", "--threads", 1)
    return CliRunner().invoke(cli, ["bench", "--bundle", str(bundle), *map(str, (*fixed, *options))])


def test_every_row_is_judged(text_bundle: Path, judge_file: Path, tmp_path: Path) -> None:
    asked = ("--rule", "exact", "--rule", RELAXED, "--num-images", 2, "--judge", judge_file, "--judged", 8)
    result = bench(text_bundle, tmp_path, *asked, "--plots", tmp_path / "plots", "--markdown", tmp_path / "bench.md")
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "bench.json").read_text())
    plain, auto, exact, relaxed = content["rows"]
    assert auto["tree"] == "auto"
    assert (content["images"], content["judged"]) == (2, 8)
    assert plain["tau_interval"] == [1, 1] and plain["relaxed_share"] == 0
    assert exact["quality"]["against_plain"]["concept"] == {"mean": 0, "low": 0, "high": 0, "pairs": 8}
    assert exact["tau_interval"][0] <= exact["tau"] <= exact["tau_interval"][1]
    assert relaxed["relaxed_share"] > 0 and relaxed["tau"] > exact["tau"]
    for row in content["rows"]:
        assert row["quality"]["images"] == 8 and 0 <= row["quality"]["concept"] <= 1
        assert row["speed_up_interval"][0] <= row["speed_up"] <= row["speed_up_interval"][1]
    assert content["spread"]["second"] == "ar, other seeds"
    assert {p.name for p in (tmp_path / "plots").iterdir()} == {"accepts.png", "speed.png", "quality.png"}
    lines = (tmp_path / "bench.md").read_text().splitlines()
    assert {line.count("|") for line in lines[:6]} == {13} and "8 prompts" in lines[-1]
    assert lines[4].startswith("| `exact` | pair_4 |") and "+0.0 [+0.0, +0.0]" in lines[4]
    drawn = {file: file.stat().st_mtime_ns for file in (tmp_path / "images").rglob("*.png")}
    assert len(drawn) == 5 * 8

    assert bench(text_bundle, tmp_path, *asked).exit_code == 0
    assert {file: file.stat().st_mtime_ns for file in drawn} == drawn  # kept images are not drawn again
    assert json.loads((tmp_path / "bench.json").read_text())["rows"][3]["quality"] == relaxed["quality"]


def test_flat_cost_is_tau_over_the_drafters_share() -> None:
    rows = [
        {"tau": 1.0, "ms_per_round": 2.0, "ms_per_stage": {"verify": 1.8}},
        {"tau": 3.0, "ms_per_round": 9.0, "ms_per_stage": {"verify": 7.8}},
    ]
    add_flat_cost(rows)
    assert rows[0]["flat_cost_speed_up"] == pytest.approx(1)
    assert rows[1]["flat_cost_speed_up"] == pytest.approx(3.0 * 2.0 / (1.8 + 1.2))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--judge", "nowhere.safetensors"), "there is no judge"),
        (("--judge", "demo", "--judged", 0), "--judged must be at least 1"),
        (("--rule", "gsd:children=topk"), "gsd divides by the drafter's q"),
    ],
)
def test_refusals(text_bundle: Path, tmp_path: Path, options: tuple[object, ...], said: str) -> None:
    result = bench(text_bundle, tmp_path, *options)
    assert result.exit_code == 2 and said in result.stderr
    assert not list(tmp_path.rglob("*.png")) and not (tmp_path / "bench.json").exists()
