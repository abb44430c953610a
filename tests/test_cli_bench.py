"""`cascade-trt bench`: the table, its JSON, its plots, and what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from cascade_trt.cli import cli

RELAXED = "cool:delta=1"


def bench(bundle: Path, *options: object):
    return CliRunner().invoke(cli, ["bench", "--bundle", str(bundle), *map(str, options)])


def test_figures_and_plots(tiny_bundle: Path, tmp_path: Path) -> None:
    asked = ("--rule", "exact", "--rule", RELAXED, "--tree", "small_9", "--num-images", 2, "--threads", 1)
    result = bench(tiny_bundle, *asked, "--json", tmp_path / "bench.json", "--plots", tmp_path / "plots")
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "bench.json").read_text())
    plain, exact, relaxed = content["rows"]
    assert [row["rule"] for row in content["rows"]] == ["ar", "exact", RELAXED]
    assert plain["speed_up"] == 1 and plain["tau"] == 1 and plain["relaxed_share"] == 0
    assert exact["tau"] >= 1 and exact["relaxed_share"] == 0
    assert relaxed["causes"]["relaxed"] > 0 and set(exact["ms_per_stage"]) >= {"draft", "verify", "accept", "commit"}
    for name in ("accepts.png", "speed.png"):
        with Image.open(tmp_path / "plots" / name) as image:
            assert min(image.size) > 200


def test_pairs_that_do_not_fit_are_left_out(tiny_bundle: Path, tmp_path: Path) -> None:
    """Children drawn at random on a tree that keeps the likeliest, and guesses, which have no distribution: the
    other rule and the other trees are measured."""
    trees = ("--tree", "chain_2", "--tree", "eagle2_60", "--tree", "mixed_8")
    asked = ("--rule", "exact", "--rule", "strict", *trees, "--num-images", 1)
    written = ("--json", tmp_path / "bench.json", "--markdown", tmp_path / "bench.md")
    result = bench(tiny_bundle, *asked, *written)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "bench.md").read_text().startswith("| rule | tree | speed-up |")
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    pairs = [("ar", None), ("exact", "chain_2"), ("exact", "eagle2_60"), ("exact", "mixed_8"), ("strict", "chain_2")]
    assert [(row["rule"], row["tree"]) for row in rows] == pairs
    assert "Left out: rule strict tests children that were drawn at random" in result.stderr
    assert "Left out: rule strict tests nodes against the drafter's distribution" in result.stderr
    result = bench(tiny_bundle, "--rule", "strict", "--tree", "eagle2_60")
    assert result.exit_code == 2 and len(result.stderr.strip().splitlines()) == 1


def test_what_auto_took(tiny_bundle: Path, tmp_path: Path) -> None:
    """Rounds by tree of all runs, and the reason, in the JSON and in words; other rows say their trees in the JSON."""
    asked = ("--rule", "exact", "--tree", "auto", "--tree", "small_9", "--num-images", 2, "--threads", 1)
    written = ("--json", tmp_path / "bench.json", "--markdown", tmp_path / "bench.md")
    result = bench(tiny_bundle, *asked, *written)
    assert result.exit_code == 0, result.output
    plain, auto, fixed = json.loads((tmp_path / "bench.json").read_text())["rows"]
    tokens = 8 * 8 - 1  # of an image, but for that of the prefill
    assert plain["trees"] == {"none": 2 * tokens}
    assert fixed["trees"] == {"small_9": round(2 * tokens / fixed["tau"])}
    assert auto["tree"] == "auto"
    assert sum(auto["trees"].values()) == round(2 * tokens / auto["tau"])
    assert "costs measured just now" in auto["why"]
    took = ", ".join(f"{tree} {count}" for tree, count in auto["trees"].items())
    line = f"exact auto, rounds by tree: {took}; last choice: {auto['why']}"
    assert line in result.stdout.splitlines()
    assert f"{line}." in (tmp_path / "bench.md").read_text().splitlines()
    assert result.stdout.count("rounds by tree") == 1


def test_what_it_refuses(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for options, sentence in (
        (("--rule", "magic"), "unknown rule 'magic'"),
        (("--tree", "oak"), "oak"),
        (("--num-images", 0), "--num-images must be at least 1"),
        (("--num-images", 10**12), "--num-images must be at most 100000"),
        (("--judged", 10**12), "--judged must be at most 100000"),
        (("--plots", tmp_path / "file" / "plots"), "choose another place"),
    ):
        result = bench(tiny_bundle, *options)
        assert result.exit_code == 2 and sentence in result.stderr
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("cascade_trt.commands.bench.find_spec", lambda _: None)
    result = bench(tiny_bundle, "--plots", tmp_path)
    assert result.exit_code == 2 and "pip install matplotlib" in result.stderr


def test_two_outputs_in_one_file_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However they are spelt: one of both would be lost."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("same.x")
    for other in ("same.x", tmp_path / "same.x", "./new/../same.x", "link"):
        result = bench(tmp_path / "no-bundle", "--json", "same.x", "--markdown", other)
        assert result.exit_code == 2 and "--json and --markdown are both" in result.stderr
    result = bench(tmp_path / "no-bundle", "--json", "plots/speed.png", "--plots", "plots")
    assert result.exit_code == 2 and "--json and --plots (speed.png) are both" in result.stderr
    result = bench(tmp_path / "no-bundle", "--json", "same.x", "--markdown", "other.x")
    assert "there is no bundle" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link"]


def test_outputs_are_checked_before_the_work(tmp_path: Path) -> None:
    """Nothing is measured, and nothing made."""
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    for option, place in (
        ("--json", "x" * 300), ("--json", "/dev/full"), ("--json", "."), ("--markdown", "loop/a.md"),
        ("--markdown", "file/a.md"), ("--plots", "loop"), ("--plots", f"new/{'x' * 300}"),
    ):  # fmt: skip
        result = bench(tmp_path / "no-bundle", option, tmp_path / place)
        assert result.exit_code == 2 and "there is no bundle" not in result.stderr, result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "loop"]


def test_a_disk_that_is_full_in_the_end(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    old = tmp_path / "bench.json"
    old.write_text("{}")
    result = bench(tiny_bundle, "--rule", "exact", "--tree", "pair_4", "--num-images", 1, "--json", old)
    assert result.exit_code == 2, result.output
    assert "No space left on device" in result.stderr and result.stderr.startswith("Error: cannot write")
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"] and old.read_text() == "{}"
    assert "speed-up" in result.stdout  # the table was shown
    assert max(map(len, result.stdout.split("speed-up: median")[0].splitlines())) <= 80
