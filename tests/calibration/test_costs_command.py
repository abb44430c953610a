"""`cascade-trt calibrate costs`, as a user runs it."""

from __future__ import annotations

import dataclasses
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support import build, fixture_arguments, random_features

from cascade_trt.calibration.costs import TreeCosts, Turns, doubt, measure_rounds, outside
from cascade_trt.calibration.subjects import conditioning
from cascade_trt.cli import cli
from cascade_trt.commands import calibrate_costs
from cascade_trt.commands.calibrate_costs import with_costs
from cascade_trt.engines.publish import amend_bundle
from cascade_trt.runtime.auto import candidates_of
from cascade_trt.runtime.bundle import CostInfo, read_manifest
from cascade_trt.runtime.costs import Costs, Measured, stored
from cascade_trt.runtime.files import check_files
from cascade_trt.runtime.pipeline import Pipeline
from cascade_trt.runtime.stats import Stats
from cascade_trt.runtime.tree import NO_TREE, get_tree

ELSEWHERE = CostInfo("ort-cpu", "1.0", "elsewhere", 64, [1], [1], [[1.0]], {}, 0.1, 0.0, {}, 1)


def calibrate(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["calibrate", "costs", *map(str, arguments)])


KEPT = "--keep-doubtful"  # tests run on busy machines


@pytest.fixture
def bundle(small_vocabulary: Pipeline, tmp_path: Path) -> Path:
    """A copy that may be changed, and knows another machine."""
    own = tmp_path / "bundle"
    shutil.copytree(small_vocabulary.folder, own)
    amend_bundle(own, lambda _, manifest: dataclasses.replace(manifest, costs=[ELSEWHERE]))
    return own


def test_auto_chooses_by_what_was_measured(bundle: Path) -> None:
    before = read_manifest(bundle)
    result = calibrate("--bundle", bundle, "--slots", 2, "--slots", 1, "--num-images", 2, "--repeats", 1,
                       "--threads", 1, KEPT)  # fmt: skip
    assert result.exit_code == 0, result.output
    manifest = read_manifest(bundle)
    check_files(bundle, manifest)
    other, info = manifest.costs
    assert other == ELSEWHERE
    assert dataclasses.replace(manifest, costs=before.costs) == before
    candidates = candidates_of(manifest)
    assert info.slots == [1, 2]
    assert info.nodes == sorted({1, *(one.tree().size for one in candidates.values())})
    assert info.draft.keys() == {one.engine for one in candidates.values()} - {None}
    assert info.accepted.keys() == candidates.keys()
    assert info.images == 2
    assert info.rounds.keys() == {NO_TREE, *candidates}
    assert all(len(times) == 2 and min(times) > 0 for times in info.rounds.values())
    pipe = Pipeline.load(bundle, threads=1)
    here = pipe.identity
    assert stored(manifest, here.backend, here.version, here.machine, here.threads) == info
    runs = [
        pipe.generate(**conditioning(manifest, (), number), seed=number, rule="exact", tree="small_9").stats
        for number in range(2)
    ]
    tau = sum(stats.tokens for stats in runs) / sum(stats.rounds for stats in runs)
    assert info.accepted["small_9"] == pytest.approx(tau)
    auto = pipe.generate(**random_features(pipe, 1), rule="exact", tree="auto").stats
    assert f"costs measured on {here.machine}" in auto.why
    for said in ("auto draws with", "small_9", "target, 1 node", "draft."):
        assert said in result.output


def test_the_entry_of_the_same_machine_is_replaced(bundle: Path) -> None:
    for seed in (0, 1):
        result = calibrate("--bundle", bundle, "--slots", 1, "--num-images", 1, "--repeats", 1, "--threads", 1,
                           "--seed", seed, KEPT)  # fmt: skip
        assert result.exit_code == 0, result.output
    assert [info.threads for info in read_manifest(bundle).costs] == [64, 1]
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]
    newer = dataclasses.replace(ELSEWHERE, backend_version="2.0")
    assert with_costs(dataclasses.replace(read_manifest(bundle), costs=[ELSEWHERE]), newer).costs == [newer]


def test_without_a_drafter(tmp_path: Path) -> None:
    arguments = [str(one) for one in fixture_arguments(tmp_path / "bundle")]
    at = arguments.index("--drafter")
    build(*arguments[:at], *arguments[at + 2 :])
    result = calibrate("--bundle", tmp_path / "bundle", "--slots", 1, "--num-images", 1, "--repeats", 1, KEPT)
    assert result.exit_code == 0, result.output
    info = read_manifest(tmp_path / "bundle").costs[0]
    assert info.draft == {}
    assert info.accepted and all(name.startswith("jacobi") for name in info.accepted)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--num-images", "0"], "--num-images must be at least 1"),
        (["--num-images", 10**12], "--num-images must be at most 100000"),
        (["--repeats", 10**12], "--repeats must be at most 100000"),
        (["--repeats", "0"], "--repeats must be at least 1"),
        (["--slots", "0"], "--slots must be from 1 to 1024, not 0"),
        (["--slots", "2", "--slots", "5000"], "--slots must be from 1 to 1024, not 5000"),
        (["--threads", "0"], "threads must be a whole number of at least 1, not 0"),
    ],
)
def test_refusals(bundle: Path, arguments: list[str], said: str) -> None:
    result = calibrate("--bundle", bundle, *arguments)
    assert result.exit_code == 2
    assert said in result.output
    assert read_manifest(bundle).costs == [ELSEWHERE]


IDLE = dataclasses.replace(
    ELSEWHERE, slots=[1, 2, 4], nodes=[1, 9, 33], draft={"draft.chain_1": [0.5, 0.6, 0.9]},
    target=[[1.2, 1.6, 3.1], [1.3, 2.4, 5.9], [1.7, 4.6, 12.0]],
)  # fmt: skip


def test_figures_of_an_idle_machine() -> None:
    """Calls that cost nearly the same, calls in proportion, and some noise on both."""
    assert doubt(IDLE) is None
    assert doubt(dataclasses.replace(IDLE, target=[[1.2, 1.1, 1.2]] * 3)) is None
    assert doubt(dataclasses.replace(IDLE, target=[[s * n for n in (1.0, 9.9, 33.0)] for s in (1.0, 2.2, 4.0)])) is None
    assert doubt(ELSEWHERE) is None


@pytest.mark.parametrize(
    ("slot", "node", "ms", "said"),
    [
        (1, 1, 10.4, "a target call with 9 nodes an image takes 1.60 ms for 1 image but 10.40 ms for 2"),
        (2, 0, 0.5, "a target call with 1 node an image takes 1.30 ms for 2 images but 0.50 ms for 4"),
        (0, 0, 9.0, "a target call with 1 node an image takes 9.00 ms for 1 image but 1.30 ms for 2"),
        (0, 2, 40.0, "a target call with 33 nodes an image takes 40.00 ms for 1 image but 5.90 ms for 2"),
    ],
)
def test_a_figure_of_a_busy_machine_is_named(slot: int, node: int, ms: float, said: str) -> None:
    target = [list(row) for row in IDLE.target]
    target[slot][node] = ms
    assert doubt(dataclasses.replace(IDLE, target=target)) == said


def test_the_worst_figure_is_named() -> None:
    """Among nodes, and of a draft engine, whose excess is larger."""
    nodes = dataclasses.replace(IDLE, slots=[2], target=[[1.3, 2.4, 25.0]], draft={})
    assert doubt(nodes) == "a target call for 2 images takes 2.40 ms with 9 nodes but 25.00 ms with 33"
    worse = dataclasses.replace(IDLE, target=[[1.2, 1.6, 3.1], [1.3, 2.4, 5.9], [1.7, 4.6, 40.0]],
                                draft={"draft.chain_1": [0.5, 50.0, 60.0]})  # fmt: skip
    assert doubt(worse) == "a call of draft.chain_1 takes 0.50 ms for 1 image but 50.00 ms for 2"


@pytest.mark.parametrize(("busy", "more", "code"), [(True, [], 2), (True, [KEPT], 0), (False, [], 0)])
def test_figures_of_a_busy_machine_are_kept_only_when_asked(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, busy: bool, more: list[str], code: int
) -> None:
    measure, before = calibrate_costs.measure_calls, (bundle / "manifest.json").read_bytes()

    def measured(*args: Any, **more: Any) -> Measured:
        found = measure(*args, **more)
        second = 6.5 if busy else 1.0
        return Measured([[ms] * len(found.target[0]) for ms in (1.0, second)], {key: [1.0, 1.0] for key in found.draft})

    monkeypatch.setattr(calibrate_costs, "measure_calls", measured)
    monkeypatch.setattr(calibrate_costs, "measure_rounds", lambda _, trees, *more: dict.fromkeys(trees, 1.0))  # noqa: ARG005
    result = calibrate("--bundle", bundle, "--slots", 1, "--slots", 2, "--num-images", 1, "--repeats", 1, *more)
    assert result.exit_code == code, result.output
    said = "takes 1.00 ms for 1 image but 6.50 ms for 2, as no idle machine does: "
    assert [said in line for line in result.stderr.splitlines()] == [True] * busy
    assert "auto draws with" in result.stdout  # what is doubted can be looked at
    if code:
        assert "nothing is written; run it again when nothing else runs, or with --keep-doubtful." in result.stderr
        assert (bundle / "manifest.json").read_bytes() == before
    else:
        assert read_manifest(bundle).costs[-1].target[1][0] == (6.5 if busy else 1.0)


def drawn(tau: float, host: float) -> Stats:
    """A hundred rounds with `host` ms outside the engines each."""
    stats = Stats("exact", "any", tokens=round(100 * tau), rounds=100, engine_seconds=0.5)
    stats.seconds["verify"] = 0.5 + 1e-3 * 60 * host
    stats.seconds["accept"] = 1e-3 * 40 * host
    stats.seconds["prefill"] = 7.0
    return stats


def test_a_round_and_a_token_outside_the_engines() -> None:
    runs = [[drawn(1, 0.3), drawn(1, 0.3), drawn(1, 9.0)], [drawn(3, 0.5)], [drawn(5, 0.7)]]
    assert outside(runs) == pytest.approx((0.2, 0.1))


def test_host_costs_are_never_negative() -> None:
    assert outside([[drawn(1, 0.6)], [drawn(5, 0.2)]]) == pytest.approx((0.4, 0.0))
    assert outside([[drawn(1, 0.1)], [drawn(5, 5.0)]]) == pytest.approx((2.25, 0.1))
    assert outside([[drawn(1, 0.3)]]) == pytest.approx((0.3, 0.0))


def test_rounds_of_images_that_change_their_trees(small_vocabulary: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tree in its turn; only rounds behind one of their own kind count, and all images must be in them."""
    turns: list[Turns] = []

    class Kept(Turns):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            self.rounds: list[tuple[str, int, float | None]] = []
            turns.append(self)

        def observe(self, tree: str, tokens: int, rounds: int, busy: int, milliseconds: float | None) -> None:
            self.rounds.append((tree, busy, milliseconds))
            super().observe(tree, tokens, rounds, busy, milliseconds)

    monkeypatch.setattr("cascade_trt.calibration.costs.Turns", Kept)
    trees = [NO_TREE, "chain", "jacobi_8"]
    found = measure_rounds(small_vocabulary, trees, 2, (), 0, repeats=5)
    assert found.keys() == set(trees)
    assert all(0 < ms < 1e4 for ms in found.values())
    seen = turns[0].rounds
    for before, (tree, _, ms) in zip([None, *seen], seen, strict=False):
        assert ms is None or (before is not None and before[0] == tree)
    counted = {tree: [ms for name, busy, ms in seen if name == tree and busy == 2 and ms] for tree in trees}
    assert min(map(len, counted.values())) == 5
    assert found == {tree: pytest.approx(statistics.median(times)) for tree, times in counted.items()}


def test_drafting_costs_of_trees_that_were_not_drawn() -> None:
    """A line over levels and inner nodes where there are enough trees, else in proportion to the levels."""
    rounds = Costs(dataclasses.replace(ELSEWHERE, nodes=[1, 11], target=[[1.0, 6.0]]))
    trees = {name: get_tree(name) for name in ("chain", "small_9", "deep_5", "pair_4")}
    cost = {name: 1.0 + 0.5 * tree.depth + 0.25 * len(tree.internal) for name, tree in trees.items()}
    other = get_tree("mc_sim_7b_63")
    target = 1 + 0.5 * (other.size - 1) + 0.1
    every = TreeCosts(rounds, cost, trees)
    assert every.of(other) == pytest.approx(target + 1.0 + 0.5 * other.depth + 0.25 * len(other.internal))
    one = TreeCosts(rounds, {"chain": 3.0}, {"chain": trees["chain"]})
    assert one.of(other) == pytest.approx(target + 3.0 / 6 * (1 + other.depth))
