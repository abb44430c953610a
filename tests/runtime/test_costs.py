"""Costs of rounds: interpolation by hand and as properties, what is stored, and how they are measured."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import random_features

from cascade_trt.runtime.backends import Identity
from cascade_trt.runtime.bundle import CostInfo, Manifest, read_manifest
from cascade_trt.runtime.costs import Costs, measure, measure_at_once, stored
from cascade_trt.runtime.drafting import Eagle, Jacobi
from cascade_trt.runtime.errors import CascadeError
from cascade_trt.runtime.machine import cores, engine_threads, processor
from cascade_trt.runtime.pipeline import Pipeline
from cascade_trt.runtime.tree import AnyTree, Tree, get_tree

INFO = CostInfo(
    "ort-cpu", "1.32.0", "a machine", 2, [1, 4], [1, 9, 17], [[2.0, 6.0, 8.0], [6.0, 20.0, 30.0]],
    {"draft.chain_7": [3.0, 6.0]}, 0.5, 0.1, {"jacobi_8": 2.6}, 4,
)  # fmt: skip


def of_nodes(nodes: int) -> Tree:
    return Tree("any", tuple(range(-1, nodes - 1)))


@pytest.mark.parametrize(
    ("nodes", "engine", "busy", "target", "draft"),
    [
        (1, None, 1, 2.0, 0.0),
        (9, None, 4, 20.0, 0.0),
        (5, None, 1, 4.0, 0.0),
        (13, None, 1, 7.0, 0.0),
        (5, None, 2, 4.0 + (13.0 - 4.0) / 3, 0.0),  # 4 with one slot, 13 with four
        (17, "draft.chain_7", 1, 8.0, 3.0),
        (17, "draft.chain_7", 3, 8.0 + 22.0 * 2 / 3, 5.0),
        (25, None, 1, 10.0, 0.0),  # the slope between 9 and 17 goes on
        (1, None, 7, 10.0, 0.0),  # and that between 1 and 4 slots
        (25, "draft.chain_7", 7, 40.0 + 30.0, 9.0),
    ],
)
def test_between_and_beyond_what_was_measured(
    nodes: int, engine: str | None, busy: int, target: float, draft: float
) -> None:
    assert Costs(INFO).of(of_nodes(nodes), engine, busy) == pytest.approx(target + draft + 0.5 * busy)


def test_never_below_the_nearest_measured() -> None:
    falling = dataclasses.replace(INFO, target=[[2.0, 6.0, 5.0], [6.0, 20.0, 12.0]])
    assert Costs(falling).of(of_nodes(60), None, 1) == pytest.approx(5.5)
    late = dataclasses.replace(INFO, slots=[2, 4])
    assert Costs(late).of(of_nodes(1), None, 1) == pytest.approx(2.5)


def test_one_size_is_all_sizes() -> None:
    alone = dataclasses.replace(INFO, slots=[1], nodes=[1], target=[[6.0]], draft={})
    assert Costs(alone).of(of_nodes(33), None, 8) == pytest.approx(6 + 8 * 0.5)


rising = st.lists(st.floats(0.01, 100), min_size=3, max_size=3).map(sorted)


@given(st.lists(rising, min_size=2, max_size=2), st.integers(1, 40), st.integers(1, 10))
def test_costs_rise_where_what_was_measured_rises(rows: list[list[float]], nodes: int, busy: int) -> None:
    above = [max(a, b) for a, b in zip(*rows, strict=True)]
    costs = Costs(dataclasses.replace(INFO, target=[rows[0], above]))
    here, slack = costs.of(of_nodes(nodes), None, busy), 1e-9
    if nodes <= 17:  # beyond what was measured lines may cross
        assert here <= costs.of(of_nodes(nodes), None, busy + 1) + slack
    if busy <= 4:
        assert here <= costs.of(of_nodes(nodes + 1), None, busy) + slack


def test_whole_rounds_by_images_at_the_same_time() -> None:
    costs = Costs(dataclasses.replace(INFO, rounds={"jacobi_8": [7.0, 22.0]}))
    assert costs.whole("none", 1) is None
    assert [costs.whole("jacobi_8", busy) for busy in (1, 2, 4, 5)] == pytest.approx([7.0, 12.0, 22.0, 27.0])


def test_an_engine_that_was_not_measured() -> None:
    costs = Costs(INFO)
    assert costs.knows(None) and costs.knows("draft.chain_7") and not costs.knows("draft.chain_1")
    with pytest.raises(KeyError):
        costs.of(of_nodes(2), "draft.chain_1", 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"slots": []}, "slots that are not rising"),
        ({"slots": [4, 1]}, "slots that are not rising"),
        ({"nodes": [0, 9, 17]}, "nodes that are not rising"),
        ({"nodes": [1, 1, 17]}, "nodes that are not rising"),
        ({"nodes": [2, 9, 17]}, "no times of one node"),
        ({"host": 1e300}, "not positive"),
        ({"target": [[2.0, 6.0, 8.0]]}, "other sizes"),
        ({"target": [[2.0, 6.0], [6.0, 20.0]]}, "other sizes"),
        ({"draft": {"draft.chain_7": [3.0]}}, "other sizes"),
        ({"target": [[2.0, 6.0, 8.0], [6.0, math.inf, 30.0]]}, "not positive"),
        ({"draft": {"draft.chain_7": [3.0, math.nan]}}, "not positive"),
        ({"host": 0.0}, "not positive"),
        ({"token": -0.1}, "less than nothing"),
        ({"token": math.nan}, "less than nothing"),
        ({"rounds": {"none": [2.0]}}, "other sizes"),
        ({"rounds": {"none": [2.0, 0.0]}}, "not positive"),
        ({"threads": 0}, "no threads"),
        ({"images": -1}, "fewer images than none"),
        ({"accepted": {"jacobi_8": 0.9}}, "less than a token"),
        ({"accepted": {"jacobi_8": math.inf}}, "less than a token"),
    ],
)
def test_figures_that_cannot_be_right(changes: dict[str, Any], said: str) -> None:
    """A bundle with them can be read, and measured again; nobody draws by them."""
    info = dataclasses.replace(INFO, **changes)
    assert said in (info.problem() or "")
    with pytest.raises(CascadeError, match=f"{said}.*: run `calibrate costs` again"):
        Costs(info)


def with_costs(manifest: Manifest, *costs: CostInfo) -> Manifest:
    return dataclasses.replace(manifest, costs=list(costs))


def test_a_manifest_keeps_them(tiny: Pipeline, tmp_path: Any) -> None:
    manifest = with_costs(tiny.manifest, INFO)
    (tmp_path / "manifest.json").write_text(manifest.to_json())
    assert read_manifest(tmp_path) == manifest
    (tmp_path / "manifest.json").write_text(manifest.to_json().replace('"host": 0.5', '"host": NaN'))
    assert read_manifest(tmp_path).costs[0].problem() is not None
    (tmp_path / "manifest.json").write_text(manifest.to_json().replace('"host": 0.5', '"host": 1' + "0" * 400))
    with pytest.raises(CascadeError, match="must be float"):
        read_manifest(tmp_path)


def test_what_is_stored_belongs_to_one_machine(tiny: Pipeline) -> None:
    other = dataclasses.replace(INFO, threads=8)
    manifest = with_costs(tiny.manifest, other, INFO)
    assert stored(manifest, "ort-cpu", "1.32.0", "a machine", 2) is INFO
    assert stored(manifest, "ort-cpu", "1.32.0", "a machine", 8) is other
    for wanted in (("ort-cuda", "1.32.0", "a machine", 2), ("ort-cpu", "1.31.0", "a machine", 2),
                   ("ort-cpu", "1.32.0", "another", 2), ("ort-cpu", "1.32.0", "a machine", 1)):  # fmt: skip
        assert stored(manifest, *wanted) is None


# measuring --------------------------------------------------------------------------------------------------
class Clock:
    """Stands for a workspace: calls take what `ms` says, on a machine that slows down call by call."""

    def __init__(self) -> None:
        self.engine_seconds = 0.0
        self.calls: list[tuple[object, int]] = []

    def pass_by(self, what: object, busy: int, ms: float) -> None:
        self.calls.append((what, busy))
        self.engine_seconds += 1e-3 * ms * (1 + 0.001 * len(self.calls))


class Guesses(Jacobi):
    def __init__(self, lane: FakeLane) -> None:
        self.lane = lane

    def embed(self, slots: int) -> None:
        self.lane.workspace.engine_seconds += 1e-3 * 0.25 * slots


class Drafter(Eagle):
    def __init__(self, lane: FakeLane) -> None:
        self.lane = lane

    def run(self, slots: int, pairs: int, states: object) -> None:  # noqa: ARG002 - as the contract says
        self.lane.workspace.pass_by((self.lane.tree.name, pairs), slots, 10.0 * slots)


class FakeLane:
    """A target call takes a millisecond for each node of each slot."""

    def __init__(self, clock: Clock, manifest: Manifest, tree: AnyTree) -> None:
        self.workspace, self.manifest, self.tree, self.verified = clock, manifest, tree, None
        self.write_index, self.positions = np.zeros(4, np.int64), np.zeros((4, tree.size), np.int64)
        self.source = Guesses(self) if tree.drafted is None else Drafter(self)

    def run_target(self, slots: int, fetch: tuple[str, ...]) -> None:
        assert fetch == ()
        assert (self.positions > 0).all()
        self.workspace.pass_by(self.tree.size, slots, float(self.tree.size * slots))


def measured(manifest: Manifest, clock: Clock, **settings: Any) -> Any:
    def lane_of(tree: AnyTree) -> Any:
        return FakeLane(clock, manifest, tree)

    return measure(lane_of, [1, 4], [1, 9, 17], {"draft.chain_7": get_tree("chain_7")}, **settings)


def test_medians_of_calls_in_turn(tiny: Pipeline) -> None:
    clock, turns = Clock(), []
    found = measured(tiny.manifest, clock, repeats=4, note=lambda: turns.append(len(clock.calls)))
    # Each call behind one of its own kind, a draft call with the target call of its tree.
    one = [call for nodes in (1, 9, 17) for busy in (1, 4) for call in 2 * [(nodes, busy)]]
    one += [call for busy in (1, 4) for call in 2 * [(("chain_7", 6), busy), (8, busy)]]
    assert clock.calls == one * 5
    assert turns == [20, 40, 60, 80, 100]
    # Turn 1 warms up; the median of turns 2 to 5 is about turn 3 1/2, of which call k is the (20 * 2.5 + k)-th.
    for busy, row in zip((1, 4), found.target, strict=True):
        for nodes, ms in zip((1, 9, 17), row, strict=True):
            at = 20 * 2.5 + one.index((nodes, busy)) + 2  # the second of the two
            assert ms == pytest.approx(nodes * busy * (1 + 0.001 * at) + 0.25 * busy, rel=1e-6)
    # A round of 10 + 8 ms less what is between the target calls on 1 and on 9 nodes, which take 0.25 ms for embedding.
    assert found.draft["draft.chain_7"] == pytest.approx([10 - 0.25, 40 - 1.0], rel=0.1)


def test_a_slow_machine_is_measured_once(tiny: Pipeline) -> None:
    clock = Clock()
    measured(tiny.manifest, clock, repeats=9, within=0.0)
    assert len(clock.calls) == 2 * 20


def test_pairs_are_no_more_than_a_tree_leaves(tiny: Pipeline) -> None:
    clock = Clock()
    measure(lambda tree: FakeLane(clock, tiny.manifest, tree), [1], [1],  # type: ignore[arg-type, return-value]
            {"draft.chain_2": get_tree("chain_2")}, repeats=1)  # fmt: skip
    assert (("chain_2", 3), 1) in clock.calls


def test_real_calls_and_an_image_that_does_not_mind(tiny: Pipeline) -> None:
    """Measured on the memory that the next image is drawn in."""
    before = tiny.generate(**random_features(tiny, 1), seed=3, rule="exact", tree="chain").codes
    workspace = tiny.workspace()
    engines = {info.engine: info.tree() for info in tiny.manifest.trees[:2] if info.engine is not None}
    info = measure_at_once(workspace, engines)
    assert info.slots == [1, tiny.manifest.batch]
    assert info.nodes[0] == 1 and info.nodes[-1] <= tiny.manifest.most_nodes
    assert (info.images, info.accepted) == (0, {})
    assert Identity(info.backend, info.backend_version, info.machine, info.threads) == tiny.identity
    after = tiny.generate(**random_features(tiny, 1), seed=3, rule="exact", tree="chain").codes
    np.testing.assert_array_equal(after, before)


def test_the_machine() -> None:
    assert processor()
    assert 1 <= engine_threads(None) <= cores()
    assert engine_threads(3) == 3
