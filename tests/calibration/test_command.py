"""`cascade-trt calibrate tree`, as a user runs it; and the watch that it learns from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from support import build, fixture_arguments, random_features, save_checkpoints, save_text_encoder

from cascade_trt.calibration.states import StateSums, StateWatch
from cascade_trt.calibration.swaps import Swaps
from cascade_trt.calibration.watch import Acceptance, Watched
from cascade_trt.cli import cli
from cascade_trt.commands.calibrate_thresholds import write_rule
from cascade_trt.runtime.errors import CascadeError
from cascade_trt.runtime.pipeline import Pipeline
from cascade_trt.runtime.rules import get_rule
from cascade_trt.runtime.tree import get_tree


def calibrate(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["calibrate", "tree", *map(str, arguments)])


def test_a_tree_that_can_be_built_with(small_vocabulary: Pipeline, tmp_path: Path) -> None:
    out = tmp_path / "mine.json"
    result = calibrate("--bundle", small_vocabulary.folder, "--num-images", 2, "--max-nodes", 12, "--out", out)
    assert result.exit_code == 0, result.output
    tree = get_tree(str(out))
    assert 2 <= tree.size <= 13
    assert json.loads(out.read_text()) == tree.paths()
    assert f"--tree {out}" in result.output.replace("\n", " ")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.json"]


def test_a_given_number_of_nodes(small_vocabulary: Pipeline, tmp_path: Path) -> None:
    out = tmp_path / "wide.json"
    result = calibrate("--bundle", small_vocabulary.folder, "--num-images", 1, "--nodes", 20, "--out", out)
    assert result.exit_code == 0, result.output
    assert get_tree(str(out)).size == 21


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--nodes", "0"], "--nodes must be at least 1"),
        (["--nodes", "1024"], "--nodes must be at most 1023, not 1024"),
        (["--nodes", "1000000"], "--nodes must be at most 1023, not 1000000"),
        (["--max-nodes", "1024"], "--max-nodes must be at most 1023"),
        (["--max-depth", "1024"], "--max-depth must be at most 1023"),
        (["--num-images", "100001"], "--num-images must be at most 100000"),
        (["--rule", "ar"], "rule ar has no tree"),
        (["--rule", "cascade:tau_pos=3"], "tau_pos must lie between 0 and 1"),
        (["--num-images", "0"], "--num-images must be at least 1"),
        (["--max-nodes", "0"], "--max-nodes must be at least 1"),
        (["--out", "tree.txt"], "--out must be a .json file"),
    ],
)
def test_refusals(small_vocabulary: Pipeline, arguments: list[str], said: str) -> None:
    result = calibrate("--bundle", small_vocabulary.folder, *arguments)
    assert result.exit_code == 2
    assert said in result.output


def test_without_a_drafter(tmp_path: Path) -> None:
    """Nothing is measured, and a further tree alone would not help."""
    arguments = [str(one) for one in fixture_arguments(tmp_path / "bundle")]
    at = arguments.index("--drafter")
    build(*arguments[:at], *arguments[at + 2 :])
    result = calibrate("--bundle", tmp_path / "bundle", "--num-images", 1, "--out", tmp_path / "mine.json")
    assert result.exit_code == 2
    assert "has no drafter" in result.stderr
    assert "build it with --drafter and --tree" in result.stderr
    assert not (tmp_path / "mine.json").exists()


def test_watching_changes_nothing_and_counts_what_was_accepted(small_vocabulary: Pipeline) -> None:
    given = random_features(small_vocabulary, 3)
    watched = Watched(get_rule("exact"))
    seen = small_vocabulary.generate(**given, rule=watched, tree="naive_extend_57")
    plain = small_vocabulary.generate(**given, rule="exact", tree="naive_extend_57")
    np.testing.assert_array_equal(seen.codes, plain.codes)
    assert sum(watched.acceptance.accepted.values()) == plain.stats.causes["strict"]
    assert watched.acceptance.visited[0, 0] == plain.stats.rounds
    assert all(-1.001 <= value <= 1.001 for values in watched.similarities.breadth.values() for value in values)
    assert set(watched.similarities.depth) <= {1, 2, 3, 4, 5}


def test_rare_ranks_borrow_from_the_depth_above() -> None:
    acceptance = Acceptance()
    acceptance.visited.update({(0, 0): 100, (0, 1): 100, (1, 0): 40, (1, 1): 3})
    acceptance.accepted.update({(0, 0): 50, (0, 1): 20, (1, 0): 10, (1, 1): 3})
    np.testing.assert_allclose(acceptance.table(), [[0.5, 0.2], [0.25, 0.2]])


def test_a_table_of_states_serves_swap(text_bundle: Path, tmp_path: Path) -> None:
    """Without the table a sentence; with it the rule draws, and thresholds sweep the draw's signal too."""
    own, prompts, out = tmp_path / "bundle", tmp_path / "prompts.txt", tmp_path / "report"
    shutil.copytree(text_bundle, own)
    prompts.write_text("red apple\nblue bird\n")
    rule = "swap:tau_draw=0.0"
    with pytest.raises(CascadeError, match="run `cascade-trt calibrate states` on it first"):
        Pipeline.load(own).generate(["red apple"], rule=rule)
    before = (own / "manifest.json").stat().st_ino
    result = CliRunner().invoke(cli, [
        "calibrate", "states", "--bundle", str(own), "--num-images", "3", "--prompts", str(prompts),
    ])  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "table of states from" in result.output
    assert (own / "manifest.json").stat().st_ino != before
    pipe = Pipeline.load(own)
    exact, relaxed = (
        pipe.generate(["red apple"], seed=1, rule=name, tree="pair_4").stats for name in ("exact", rule)
    )
    assert relaxed.tau > exact.tau
    assert relaxed.causes["swapped"] > 0
    result = CliRunner().invoke(cli, [
        "calibrate", "thresholds", "--bundle", str(own), "--judge", "none", "--prompts", str(prompts),
        "--num-images", "1", "--out", str(out), "--rule", "swap",
    ])  # fmt: skip
    assert result.exit_code == 0, result.output
    points = json.loads((out / "thresholds.json").read_text())["points"]
    assert points[0]["rule"] == "swap:tau_draw=off"
    drawn = [point for point in points if point["signals"] == "draw"]
    assert len(drawn) == 5
    assert all("tau_draw=" in point["rule"] for point in drawn)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_watching_states_changes_nothing(small_vocabulary: Pipeline) -> None:
    given, model = random_features(small_vocabulary, 2), small_vocabulary.manifest.model
    watch = StateWatch(get_rule("exact"), StateSums.empty(model.vocab_size, model.features))
    seen = small_vocabulary.generate(**given, rule=watch, tree="naive_extend_57")
    plain = small_vocabulary.generate(**given, rule="exact", tree="naive_extend_57")
    np.testing.assert_array_equal(seen.codes, plain.codes)
    # Each round's tokens are draws, but for those that the end of the image cut off; prefill drew the first.
    assert watch.sums.used.sum() >= plain.codes.size - len(plain.codes)
    assert watch.sums.count.sum() > plain.codes.size
    table = watch.sums.table()
    lengths = np.linalg.norm(table.rows.astype(np.float32), axis=1)
    np.testing.assert_allclose(lengths[watch.sums.count >= 3], 1, atol=1e-2)
    assert (lengths[watch.sums.count < 3] == 0).all()


def test_signals_are_compared_with_the_states_themselves(small_vocabulary: Pipeline) -> None:
    """Every draw that was not drafted is met again as the next round's root, and cosines are cosines."""
    given = random_features(small_vocabulary, 1)
    watched = Watched(get_rule("exact"), swaps=Swaps())
    stats = small_vocabulary.generate(**given, rule=watched, tree="naive_extend_57").stats
    assert watched.swaps is not None
    alike, signals = watched.swaps.alike, watched.swaps.signals
    assert set(signals) == {"siblings", "parent"}
    assert len(alike) == len(signals["siblings"]) == len(signals["parent"]) > stats.rounds / 2
    assert all(-1.001 <= value <= 1.001 for values in (alike, *signals.values()) for value in values)
    assert all(-1 <= value <= 1 for value in watched.swaps.correlations().values())


def test_a_signal_that_tells_everything_correlates_fully() -> None:
    swaps = Swaps({"good": [0.1, 0.5, 0.9], "bad": [3.0, 2.0, 1.0], "none": [1.0, 1.0, 1.0]}, [0.2, 0.3, 0.8])
    assert swaps.correlations() == pytest.approx({"good": 1.0, "bad": -1.0})
    assert Swaps().correlations() == {}


def test_too_few_states_are_a_sentence() -> None:
    with pytest.raises(CascadeError, match="draw more images"):
        StateSums.empty(8, 4).table()


def test_states_refuse_no_images(small_vocabulary: Pipeline) -> None:
    command = ["calibrate", "states", "--bundle", str(small_vocabulary.folder), "--num-images", "0"]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 2
    assert "--num-images must be at least 1" in result.output


def test_thresholds_are_swept_and_the_bare_rule_follows_the_bundle(text_bundle: Path, tmp_path: Path) -> None:
    """Without a judge: cosines, curve and points. With an operating point: plain `cascade` means it from then on."""
    prompts, out = tmp_path / "prompts.txt", tmp_path / "report"
    prompts.write_text("red apple\nblue bird\n")
    result = CliRunner().invoke(cli, [
        "calibrate", "thresholds", "--bundle", str(text_bundle), "--judge", "none", "--prompts", str(prompts),
        "--num-images", "2", "--out", str(out),
    ])  # fmt: skip
    assert result.exit_code == 0, result.output
    report = json.loads((out / "thresholds.json").read_text())
    assert report["operating_point"] is None
    assert {entry["signals"] for entry in report["points"]} == {"none", "breadth", "depth", "both"}
    assert all(entry["tau"] >= 1 for entry in report["points"])
    assert (out / "curve.png").stat().st_size > 1000
    assert (out / "similarities.png").stat().st_size > 1000
    own = tmp_path / "bundle"
    shutil.copytree(text_bundle, own)
    write_rule(own, "cascade:children=coupled,tau_pos=0.5,tau_seq=off")
    stats = Pipeline.load(own).generate(["red apple"], rule="cascade").stats
    assert stats.rule == "cascade:children=coupled,tau_pos=0.5,tau_seq=off"
    assert Pipeline.load(text_bundle).generate(["red apple"], rule="cascade").stats.rule == "cascade"


def test_thresholds_are_found_on_the_tree_that_the_rule_draws_with(tmp_path: Path) -> None:
    """One with siblings, although the bundle's first tree has none: else tau_pos would never be tried."""
    arguments = save_checkpoints(tmp_path / "checkpoints", vocab=32, grid=4)
    text = save_text_encoder(tmp_path / "encoder", width=16)
    build(*arguments, "--text", text, "--tree", "chain_2", "--tree", "pair_4", "--out", tmp_path / "bundle")
    prompts, out = tmp_path / "prompts.txt", tmp_path / "report"
    prompts.write_text("red apple\n")
    result = CliRunner().invoke(cli, [
        "calibrate", "thresholds", "--bundle", str(tmp_path / "bundle"), "--judge", "none", "--prompts", str(prompts),
        "--num-images", "1", "--out", str(out),
    ])  # fmt: skip
    assert result.exit_code == 0, result.output
    report = json.loads((out / "thresholds.json").read_text())
    assert report["tree"] == Pipeline.load(tmp_path / "bundle", warm=False).tree_for("cascade") == "pair_4"
    assert "breadth" in {entry["signals"] for entry in report["points"]}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--children", "greedy"], "--children must be one of"),
        (["--rule", "lantern"], "--rule must be cascade or swap"),
        (["--rule", "swap", "--children", "sampled"], "swap draws on coupled children alone"),
        (["--num-images", "0"], "--num-images must be at least 1"),
        (["--num-images", "1000000000000"], "--num-images must be at most 100000"),
        (["--tolerance", "1.5"], "--tolerance must lie between 0 and 1, not 1.5"),
        (["--judge", "none"], "give a file with --prompts"),
        (["--judge", "nowhere.safetensors"], "there is no judge in"),
    ],
)
def test_thresholds_refusals(text_bundle: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    command = ["calibrate", "thresholds", "--bundle", str(text_bundle), "--out", str(tmp_path / "out"), *arguments]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 2
    assert said in result.output
