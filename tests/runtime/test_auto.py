"""`auto` against a simulator: random costs, random accepted lengths, rounds that are drawn like coin tosses."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pytest

from cascade_trt.runtime.auto import DRAFTED, JACOBI, MIXED, Auto, Round, assumed, candidates_of, kind_of
from cascade_trt.runtime.bundle import CostInfo, TreeInfo
from cascade_trt.runtime.chooser import AutoTree
from cascade_trt.runtime.costs import Costs
from cascade_trt.runtime.pipeline import Pipeline
from cascade_trt.runtime.request import Conditioning, Drawing
from cascade_trt.runtime.rules import get_rule
from cascade_trt.runtime.sampling import Sampling
from cascade_trt.runtime.tree import AUTO, NO_TREE, Tree, get_tree

LENGTH = 256  # tokens of an image
NODES, SLOTS = [1, 2, 4, 8, 12, 16, 24, 32, 49], [1, 2, 4, 8]
GUESSES = [f"{kind}_{window}" for kind in (JACOBI, MIXED) for window in (8, 16, 24, 32, 48)]
TREES = {name: get_tree(name) for name in (*GUESSES, "chain", "chain_7", "small_9", "naive_extend_57", "eagle2_60")}
ENGINES = {MIXED: "draft.chain_1", DRAFTED: "draft.chain_7", JACOBI: None}
CANDIDATES = {name: TreeInfo.of(tree, ENGINES[kind_of(tree)]) for name, tree in TREES.items()}
PLAIN = Tree(NO_TREE, (-1,))


def random_costs(rng: np.random.Generator) -> CostInfo:
    """Rising with nodes and slots: from nodes that are nearly free to nodes that cost a step each."""
    steepness = 10 ** rng.uniform(-3, 0.3)
    more = steepness * np.diff(NODES) * rng.exponential(size=len(NODES) - 1)
    one = 1 + np.concatenate([[0], np.cumsum(more)])
    shares, crowding = rng.uniform(size=2)
    slots = np.array([(1 - shares) + shares * busy for busy in SLOTS])
    target = slots[:, None] * (1 + (one - 1) * np.array(SLOTS)[:, None] ** (crowding / 2))
    drafting = 10 ** rng.uniform(-2, 0.5)
    drafts = {"draft.chain_1": drafting, "draft.chain_7": drafting * rng.uniform(1, 7)}
    return CostInfo(
        "ort-cpu", "1", "a machine", 1, SLOTS, NODES, target.tolist(),
        {name: (ms * slots).tolist() for name, ms in drafts.items()},
        float(0.1 * rng.uniform(0.01, 1)), float(0.1 * rng.uniform()), {}, 1,
    )  # fmt: skip


@lru_cache
def odds(mean: float, most: int) -> float:
    """The chance to go on for which 1 + (tokens accepted, at most `most`) has this mean."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(middle**k for k in range(most + 1)) < mean else (low, middle)
    return low


@dataclass(frozen=True)
class World:
    """What rounds really cost, and how many tokens they really bring."""

    costs: Costs
    accepted: dict[str, float]

    def milliseconds(self, tree: str, busy: int) -> float:
        """Of a token of one of `busy` images, on the long run."""
        info, name = self.costs.info, tree
        shape, engine = (PLAIN, None) if name == NO_TREE else (TREES[name], CANDIDATES[name].engine)
        return self.costs.of(shape, engine, busy) / (busy * self.accepted.get(name, 1.0)) + info.token

    def best(self, busy: int) -> float:
        return min(self.milliseconds(tree, busy) for tree in (NO_TREE, *TREES))

    def draw(self, auto: Auto, busy: int, images: int, rng: np.random.Generator, first: str | None = None) -> float:
        """Milliseconds a token that `auto` needs for `busy` slots that draw so many images each.

        What it sees is random; progress is counted as the mean of what the tree brings, so that luck is left out.
        """
        done, spent, current = 0.0, 0.0, first
        while done < images * LENGTH:
            current = auto.choose(busy, 0, current).tree
            mean = self.accepted.get(current, 1.0)
            spent += self.milliseconds(current, busy) * mean
            done += mean
            tokens = busy
            if current != NO_TREE:
                on, most = odds(mean, TREES[current].depth), TREES[current].depth
                tokens = int(np.minimum(rng.geometric(1 - on, busy), most + 1).sum()) if on > 0 else busy
            auto.observe(current, tokens, busy)
        return spent / done


SEEDS = range(60)


@pytest.mark.parametrize("measured", [False, True])
def test_wrong_expectations_cost_little(measured: bool) -> None:
    """Trees bring next to nothing, whatever is assumed, or was measured with other settings."""
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        world, busy = World(Costs(random_costs(rng)), dict.fromkeys(TREES, 1.05)), int(rng.choice(SLOTS))
        believed = {name: assumed(tree) for name, tree in TREES.items()} if measured else {}
        plain = world.milliseconds(NO_TREE, busy)
        for images, most in ((1, 1.10), (3, 1.05)):
            auto = Auto(world.costs, CANDIDATES, believed)
            assert world.draw(auto, busy, images, np.random.default_rng(seed)) < most * plain, (seed, images)


def test_true_lengths_lead_to_the_best_choice() -> None:
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        share = {kind: 10 ** rng.uniform(-1.5, 0.3) for kind in (DRAFTED, JACOBI, MIXED)}
        accepted = {
            name: min(1 + share[kind_of(tree)] * (assumed(tree) - 1), tree.depth + 0.9) for name, tree in TREES.items()
        }
        world, busy = World(Costs(random_costs(rng)), accepted), int(rng.choice(SLOTS))
        auto = Auto(world.costs, CANDIDATES, accepted)
        assert world.draw(auto, busy, 3, rng) < 1.05 * world.best(busy), seed


def test_lengths_that_were_assumed_too_low_are_found_out() -> None:
    """Once a tree is used, what it brings counts: the best of a kind that brings twice as much is found."""
    info = replace(random_costs(np.random.default_rng(0)), nodes=[1, 49], target=[[3.0, 20.0]] * 4)
    accepted = {name: min(2 * assumed(tree) - 1, tree.depth + 0.9) for name, tree in TREES.items()}
    world, auto = World(Costs(info), accepted), Auto(Costs(info), CANDIDATES, {})
    assert world.draw(auto, 1, 10, np.random.default_rng(0)) < 1.1 * world.best(1)
    assert auto.expected()["mixed_32"] == pytest.approx(accepted["mixed_32"], rel=0.15)


def cheap(**changes: object) -> CostInfo:
    """Nodes and drafting cost little."""
    few = {"draft.chain_1": [0.1, 0.1], "draft.chain_7": [0.5, 0.5]}
    info = CostInfo("ort-cpu", "1", "a machine", 2, [1, 8], [1, 49], [[2.0, 3.0], [4.0, 30.0]], few, 0.01, 0.0, {}, 4)
    return replace(info, **changes)


def test_one_disappointment_is_one_with_all_of_a_kind() -> None:
    auto = Auto(Costs(cheap()), CANDIDATES, {})
    before = auto.expected()
    auto.observe("mixed_32", 12, 12)
    after = auto.expected()
    fell = {name: (after[name] - 1) / (before[name] - 1) for name in TREES}
    assert fell["mixed_32"] < fell["mixed_8"] < 0.4
    assert fell["mixed_8"] < fell["jacobi_8"] < 1
    assert fell["mixed_8"] < fell["chain_7"] < 1


def test_old_rounds_are_forgotten() -> None:
    auto = Auto(Costs(cheap()), CANDIDATES, {})
    before = auto.expected()["mixed_32"]
    auto.observe("mixed_32", 20, 20)
    low = auto.expected()["mixed_32"]
    for _ in range(500):
        auto.observe(NO_TREE, 8, 8)
    middle = auto.expected()["mixed_32"]
    for _ in range(5000):
        auto.observe(NO_TREE, 8, 8)
    assert low < middle < auto.expected()["mixed_32"] == pytest.approx(before, rel=0.01)


def test_rounds_of_a_tree_outweigh_what_was_measured() -> None:
    auto = Auto(Costs(cheap()), CANDIDATES, {"jacobi_16": 4.0})
    for _ in range(2000):
        auto.observe("jacobi_16", 6, 1)
    assert auto.expected()["jacobi_16"] == pytest.approx(6, abs=0.3)


def test_the_trees_of_a_kind_that_were_not_measured_follow_those_that_were() -> None:
    half = 1 + (assumed(TREES["jacobi_16"]) - 1) / 2
    expected = Auto(Costs(cheap()), CANDIDATES, {"jacobi_16": half}).expected()
    assert expected["jacobi_16"] == pytest.approx(half)
    assert expected["jacobi_32"] == pytest.approx(1 + (assumed(TREES["jacobi_32"]) - 1) / 2)
    assert expected["mixed_16"] == pytest.approx(assumed(TREES["mixed_16"]))


def test_it_stays_with_what_is_nearly_as_fast() -> None:
    """Two trees whose speeds differ by 4 %, then by 8 %."""
    pair = {name: CANDIDATES[name] for name in ("jacobi_16", "jacobi_32")}
    info = cheap(nodes=[1, 17, 33], target=[[2.0, 3.0, 3.0], [2.0, 3.0, 3.0]])
    close = Auto(Costs(info), pair, {"jacobi_16": 5.0, "jacobi_32": 5.2})
    assert [close.choose(1, 0, name).tree for name in pair] == list(pair)
    far = Auto(Costs(info), pair, {"jacobi_16": 5.0, "jacobi_32": 5.4})
    assert [far.choose(1, 0, name).tree for name in pair] == ["jacobi_32"] * 2


def test_plain_decoding_is_left_only_for_a_gain() -> None:
    pair = {"jacobi_16": CANDIDATES["jacobi_16"]}
    info = cheap(nodes=[1, 17], target=[[1.0, 3.0], [1.0, 3.0]], host=1e-6)
    for accepted, first in ((3.12, NO_TREE), (3.18, "jacobi_16")):
        auto = Auto(Costs(info), pair, {"jacobi_16": accepted})
        assert auto.choose(1, 0, None).tree == auto.choose(1, 0, NO_TREE).tree == first
        assert auto.choose(1, 0, "jacobi_16").tree == "jacobi_16"


def test_images_of_plain_decoding_gain_one_token_whatever_the_tree() -> None:
    auto = Auto(Costs(cheap()), CANDIDATES, {})
    assert auto.choose(1, 0, None).tree != NO_TREE
    assert auto.choose(8, 0, None).tree != NO_TREE
    assert auto.choose(1, 7, None).tree == NO_TREE
    assert auto.choose(0, 4, "mixed_32").tree == NO_TREE


def test_what_each_token_costs_tells_for_plain_decoding() -> None:
    """2 ms a round, 1 ms a token: a tree of two tokens in 4 ms draws no faster than plain decoding does."""
    pair = {"jacobi_16": CANDIDATES["jacobi_16"]}
    info = cheap(nodes=[1, 17], target=[[2.0, 3.8], [2.0, 3.8]], host=1e-6)
    assert Auto(Costs(info), pair, {"jacobi_16": 2.0}).choose(1, 0, None).tree == "jacobi_16"
    assert Auto(Costs(replace(info, token=4.0)), pair, {"jacobi_16": 2.0}).choose(1, 0, None).tree == NO_TREE


def test_it_says_why() -> None:
    pair = {"jacobi_16": CANDIDATES["jacobi_16"]}
    info = cheap(nodes=[1, 17], target=[[2.8, 7.0], [5.6, 80.0]], host=1e-6)
    auto = Auto(Costs(info), pair, {"jacobi_16": 3.7})
    assert auto.choose(1, 0, None).why == (
        "jacobi_16: about 3.7 tokens in 7 ms, plain decoding 1 in 2.8 ms; costs measured on a machine"
    )
    assert auto.choose(8, 0, None).why == (
        "plain decoding: 1 token in 5.6 ms, the best tree, jacobi_16, about 3.7 tokens in 80 ms for each of 8 images; "
        "costs measured on a machine"
    )
    assert "just now" in Auto(Costs(replace(info, images=0)), pair, {}).choose(1, 0, None).why


def test_a_tree_whose_engine_was_not_measured_is_no_candidate() -> None:
    auto = Auto(Costs(cheap(draft={"draft.chain_7": [0.1, 0.1]})), CANDIDATES, {})
    assert not any(name.startswith("mixed") for name in auto.expected())
    choice = Auto(Costs(cheap(draft={})), {"chain_7": CANDIDATES["chain_7"]}, {}).choose(1, 0, None)
    assert (choice.tree, choice.why) == (NO_TREE, "no tree's cost is known")


def test_figures_beyond_what_a_tree_can_bring_are_cut() -> None:
    expected = Auto(Costs(cheap()), CANDIDATES, {"jacobi_8": 1000.0, "chain_7": 1.0}).expected()
    assert expected["jacobi_8"] == 9
    assert 1 < expected["chain_7"] < 1.01


def test_whole_rounds_are_believed_before_calls() -> None:
    """By its calls a round of jacobi_16 takes 3 ms, but whole ones were seen to take 9: tokens are not added again."""
    pair = {"jacobi_16": CANDIDATES["jacobi_16"], "jacobi_8": CANDIDATES["jacobi_8"]}
    info = cheap(nodes=[1, 17], target=[[2.0, 3.0], [2.0, 3.0]], host=1e-6, token=0.5,
                 rounds={NO_TREE: [2.0, 4.0], "jacobi_16": [9.0, 16.0]})  # fmt: skip
    auto = Auto(Costs(info), pair, {"jacobi_16": 4.0, "jacobi_8": 3.0})
    assert auto.speeds(1)["jacobi_16"] == pytest.approx(4 / 9 / (1 / 2))
    assert auto.speeds(8)["jacobi_16"] == pytest.approx(4 / 16 / (1 / 4))
    assert auto.speeds(1)["jacobi_8"] == pytest.approx(3 / (2.5 + 3 * 0.5) / (1 / 2))
    assert auto.choose(1, 0, None).tree == "jacobi_8"


@pytest.mark.parametrize("whole", [True, False])
def test_a_tree_that_takes_longer_than_expected_is_left(whole: bool) -> None:
    pair = {name: CANDIDATES[name] for name in ("chain_7", "jacobi_8")}
    rounds = {NO_TREE: [2.0, 2.0], "chain_7": [2.6, 2.6], "jacobi_8": [2.6, 2.6]} if whole else {}
    auto = Auto(Costs(cheap(nodes=[1, 9], target=[[2.0, 2.5]] * 2, rounds=rounds)), pair,
                {"chain_7": 3.6, "jacobi_8": 2.9})  # fmt: skip
    chooser, used = AutoTree(auto, "chain_7"), []
    image = Drawing(Conditioning(), 0, Sampling(1.0, 1.0, 0, 1.0), get_rule("exact"), AUTO)
    for number in range(400):
        used.append(chooser.choose([image], "").tree)
        tokens = {"chain_7": 7 if number % 2 else 6, "jacobi_8": 6, NO_TREE: 2}[used[-1]]  # of two images
        chooser.observe(used[-1], tokens, 2, 1, {"chain_7": 5.0, "jacobi_8": 2.6, NO_TREE: 2.0}[used[-1]])
    assert used[0] == "chain_7"
    assert used[200:].count("jacobi_8") > 180


def test_a_machine_that_is_busy_for_all_is_no_reason_to_change() -> None:
    """The tree in use takes a fifth longer, as all would; the other one is a fifth behind."""
    pair = {"jacobi_16": CANDIDATES["jacobi_16"], "jacobi_8": CANDIDATES["jacobi_8"]}
    rounds = {NO_TREE: [2.0, 2.0], "jacobi_16": [3.0, 3.0], "jacobi_8": [3.0, 3.0]}
    auto = Auto(Costs(cheap(rounds=rounds)), pair, {"jacobi_16": 3.6, "jacobi_8": 3.0})
    for _ in range(200):
        assert auto.choose(1, 0, "jacobi_16").tree == "jacobi_16"
        auto.observe("jacobi_16", 18, 5, 1, 1.2 * 3)


def test_rivals_are_plain_decoding_and_the_best_other_tree() -> None:
    pair = {name: CANDIDATES[name] for name in ("jacobi_16", "jacobi_8", "jacobi_32")}
    rounds = {NO_TREE: [2.0] * 2, "jacobi_16": [3.0] * 2, "jacobi_8": [3.0] * 2, "jacobi_32": [9.0] * 2}
    auto = Auto(Costs(cheap(rounds=rounds)), pair, {"jacobi_16": 3.6, "jacobi_8": 3.0, "jacobi_32": 5.0})
    assert [auto.rival(1, 0, "jacobi_16", turn) for turn in range(4)] == [None, "jacobi_8"] * 2  # plain is far behind
    assert [auto.rival(1, 0, "jacobi_8", turn) for turn in range(2)] == [None, "jacobi_16"]
    assert [auto.rival(1, 0, NO_TREE, turn) for turn in range(2)] == ["jacobi_16"] * 2
    near = Auto(Costs(cheap(rounds=rounds | {"jacobi_16": [6.0] * 2, "jacobi_8": [9.0] * 2})), pair,
                {"jacobi_16": 3.6, "jacobi_8": 3.0, "jacobi_32": 5.0})  # fmt: skip
    assert [near.rival(1, 0, "jacobi_16", turn) for turn in range(2)] == [NO_TREE, "jacobi_32"]
    assert near.rival(0, 2, NO_TREE, 0) is None


def test_a_round_is_expected_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the choice and for its rival; anew for other images, another tree, and after a few rounds."""
    auto, asked = Auto(Costs(cheap()), CANDIDATES, {}), list[tuple[int, int]]()
    expect = auto._expect

    def noted(exact: int, plain: int) -> Round:
        asked.append((exact, plain))
        return expect(exact, plain)

    monkeypatch.setattr(auto, "_expect", noted)
    first = auto.choose(1, 0, NO_TREE)
    for _ in range(3):
        assert auto.choose(1, 0, NO_TREE) == first and auto.rival(1, 0, first.tree, 1) is not None
    assert asked == [(1, 0)]
    auto.choose(1, 1, first.tree)
    assert asked[1:] == [(1, 1)]
    for _ in range(4):
        auto.observe(first.tree, 4, 1)
        auto.choose(1, 1, first.tree)
    assert asked[2:] == [(1, 1)]


def test_one_long_round_tells_little() -> None:
    auto = Auto(Costs(cheap()), CANDIDATES, {})
    first = auto.choose(1, 0, None).tree
    before = auto.speeds(1)[first]
    auto.observe(first, round(auto.expected()[first]), 1, 1, 1e6)
    assert auto.speeds(1)[first] > 0.9 * before


def test_it_settles_instead_of_hopping() -> None:
    """Noise alone makes no more than a few changes of tree in three images."""
    info = random_costs(np.random.default_rng(3))
    accepted = {name: assumed(tree) for name, tree in TREES.items()}
    auto, rng, used = Auto(Costs(info), CANDIDATES, accepted), np.random.default_rng(0), []
    for _ in range(150):
        name = auto.choose(1, 0, used[-1] if used else None).tree
        used.append(name)
        on = odds(accepted.get(name, 1.0), 1 if name == NO_TREE else TREES[name].depth)
        auto.observe(name, int(rng.geometric(1 - on)), 1)
    changes = sum(a != b for a, b in pairwise(used))
    assert changes <= 10
    assert Counter(used).most_common(1)[0][1] > 75


@pytest.mark.parametrize("name", TREES)
def test_assumptions_are_possible(name: str) -> None:
    assert 1 < assumed(TREES[name]) <= TREES[name].depth + 1
    assert math.isfinite(assumed(get_tree(f"{kind_of(TREES[name]).replace(DRAFTED, 'chain')}_999")))


def test_candidates_are_the_bundles_trees_and_chains_that_fit(tiny: Pipeline) -> None:
    manifest = tiny.manifest
    found = candidates_of(manifest)
    assert {info.name for info in manifest.trees} <= found.keys()
    for name in ("jacobi_8", "jacobi_16", "jacobi_32", "jacobi_48"):
        assert (name in found) == (get_tree(name).size <= manifest.most_nodes)
    drafts_one = any(info.engine == "draft.chain_1" for info in manifest.trees)
    assert ("mixed_8" in found) == drafts_one
    without = replace(manifest, trees=[], drafter=None)
    assert all(kind_of(info.tree()) == JACOBI for info in candidates_of(without).values())
