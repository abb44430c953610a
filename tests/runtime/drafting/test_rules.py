"""Which rules are served on which trees, what relaxed rules draw on guesses, and where tokens are said to come from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from playing import request_of
from support import random_features

from cascade_trt.calibration.watch import Watched, Watching
from cascade_trt.runtime.bundle import TreeInfo
from cascade_trt.runtime.drafting import Origin
from cascade_trt.runtime.errors import CascadeError
from cascade_trt.runtime.options import DrawOptions
from cascade_trt.runtime.pipeline import Output, Pipeline
from cascade_trt.runtime.rulebook import Rulebook
from cascade_trt.runtime.rules import LOG_Q, Cause, Decision, Draws, Node, Rule, get_rule
from cascade_trt.runtime.rules.states import StateTable
from cascade_trt.runtime.rules.swap import Swap
from cascade_trt.runtime.sampling import Sampling
from cascade_trt.runtime.tree import get_tree

NEEDS_Q = ("strict", "cascade", "lantern", "lantern++", "gsd", "gsd:children=coupled", "cool")
COUPLED = {
    "cascade": "cascade:children=coupled,tau_pos=0.2,tau_seq=0.5,guard=0.0,cap=0",
    "lantern": "lantern:children=coupled,delta=0.5", "lantern++": "lantern++:children=coupled,lambda=4",
    "cool": "cool:children=coupled,delta=3",
}  # fmt: skip
GUESSED = ("jacobi_8", "mixed_8", "mixed_6x6", "fork")
SAMPLING = Sampling(2.0, 1.0, 0, 1.0)


def draw(pipe: Pipeline, rule: str | Rule, tree: str | None = None, **settings: Any) -> Output:
    return pipe.generate(**random_features(pipe, 3), seed=5, rule=rule, tree=tree, **settings)


def same(one: Output, other: Output) -> None:
    """Codes, how each came, and the rounds that it took."""
    np.testing.assert_array_equal(one.codes, other.codes)
    np.testing.assert_array_equal(one.causes, other.causes)
    np.testing.assert_array_equal(one.origins, other.origins)
    np.testing.assert_array_equal(one.rounds, other.rounds)


# which are served -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("tree", GUESSED)
@pytest.mark.parametrize("rule", NEEDS_Q)
def test_rules_that_read_the_drafters_law_are_refused_on_guesses(
    small_vocabulary: Pipeline, rule: str, tree: str
) -> None:
    """By both names, before anything is drawn, in a batch, too."""
    named = rule.replace("+", ".")
    said = rf"^rule {named} tests nodes against the drafter's distribution, .* the tree {tree} do not have"
    with pytest.raises(CascadeError, match=said) as caught:
        draw(small_vocabulary, rule, tree)
    assert "\n" not in str(caught.value) and "drafted whole (chain, small_9," in str(caught.value)
    with pytest.raises(CascadeError, match=said):
        small_vocabulary.batch(1, tree=tree).submit(request_of(small_vocabulary, 0, 0, DrawOptions(rule=rule)))


def test_without_a_tree_a_rule_gets_the_first_that_fits(small_vocabulary: Pipeline) -> None:
    """`exact` is drawn with any: it gets `auto`."""
    drafted = {"jacobi_8": None, "mixed_4": "draft.chain_1", "chain_1": "draft.chain_1", "chain_2": "draft.chain_2"}
    trees = [TreeInfo.of(get_tree(name), engine) for name, engine in drafted.items()]
    book = Rulebook(small_vocabulary.folder, replace(small_vocabulary.manifest, trees=trees))
    for rule in ("strict", "strict-topk", "cool:children=coupled"):  # those that are drafted whole come first
        for tree in (None, "auto"):
            chosen, name = book.choose(rule, tree, SAMPLING), rule.partition(":")[0]
            assert (chosen.tree, chosen.why) == ("chain_1", f"chain_1: the bundle's first tree for {name}")
    assert book.choose(None, None, SAMPLING).tree == book.choose("exact", "auto", SAMPLING).tree == "auto"
    assert book.choose("exact", "mixed_4", SAMPLING).tree == "mixed_4"
    assert book.choose("ar", "mixed_4", SAMPLING).tree is None
    none_fits = Rulebook(small_vocabulary.folder, replace(small_vocabulary.manifest, trees=trees[:2]))
    with pytest.raises(CascadeError, match="rule strict tests nodes .* build the bundle with --drafter"):
        none_fits.choose("strict", None, SAMPLING)
    assert none_fits.choose("strict-topk", None, SAMPLING).tree == "jacobi_8"


def test_a_rule_that_compares_siblings_gets_a_tree_that_has_some(small_vocabulary: Pipeline) -> None:
    """Of those the ones that are drafted whole come first, and without any it takes what fits."""
    engines = {"mixed_4": "draft.chain_1", "chain_2": "draft.chain_2", "mixed_3x2": "draft.chain_1",
               "pair_4": "draft.pair_4"}  # fmt: skip
    infos = [TreeInfo.of(get_tree(name), engine) for name, engine in engines.items()]

    def first(rule: str | Rule, trees: list[TreeInfo]) -> str | None:
        book = Rulebook(small_vocabulary.folder, replace(small_vocabulary.manifest, trees=trees, engines=every))
        return book.choose(rule, None, SAMPLING).tree

    every = small_vocabulary.manifest.engines | dict.fromkeys(
        filter(None, engines.values()), small_vocabulary.manifest.engines["draft.chain"]
    )
    both, depth = "cascade:children=coupled", "cascade:children=coupled,tau_pos=off"
    assert first(both, infos) == "pair_4" == first(Watched(get_rule(both)), infos)  # whoever looks on
    assert first(depth, infos) == first("cool:children=coupled", infos) == "chain_2"
    assert first(both, infos[:3]) == "mixed_3x2"
    assert first(both, infos[:2]) == "chain_2"


def test_what_a_bundle_serves_beside_its_own_trees(small_vocabulary: Pipeline) -> None:
    """Guesses up to its window, and whatever an engine drafts the top of."""
    manifest = small_vocabulary.manifest
    most = manifest.most_nodes
    assert most == 58  # of naive_extend_57, its largest
    for name, engine in ((f"jacobi_{most - 1}", None), (f"mixed_{most - 1}", "draft.chain_1"), ("jacobi_9x3", None),
                         ("mixed_9x3", "draft.chain_1"), ("mixed_1x1", "draft.chain_1")):  # fmt: skip
        info = manifest.tree(name)
        assert (info.name, info.engine) == (name, engine) and info.tree() == get_tree(name)
    for name, said in (
        (f"jacobi_{most}", f"has {most + 1} nodes, and bundle .* takes {most} in a call: .* --max-nodes {most + 1}"),
        (f"mixed_{most}", f"--max-nodes {most + 1}"), ("oak", "unknown tree 'oak'"),
        ("chain_9", "not 'chain_9', and no engine .* needs: build it again with --tree chain_9"),
    ):  # fmt: skip
        with pytest.raises(CascadeError, match=said):
            manifest.tree(name)
    bare = replace(manifest, trees=[], drafter=None)
    assert bare.tree(None).name == "jacobi_16" and bare.tree("jacobi_3x2").engine is None
    for name, said in (
        ("mixed_4", "has no drafter, which the tree mixed_4 needs: use a jacobi tree"),
        ("chain", "has no drafter, which the tree chain needs: .* build it again with --drafter and --tree chain"),
    ):
        with pytest.raises(CascadeError, match=said):
            bare.tree(name)
    narrow = replace(bare, target=replace(manifest.target, window=6, most_nodes=6))
    assert narrow.tree(None).name == "jacobi_5"
    assert {info.engine for info in manifest.trees if info.name in ("chain_1", "beside")} == {"draft.chain_1"}
    assert {info.name: info.engine for info in manifest.trees}["fork"] not in (None, "draft.chain_1")


# what relaxed rules draw ------------------------------------------------------------------------------------
@pytest.mark.parametrize("tree", GUESSED)
@pytest.mark.parametrize("rule", COUPLED)
def test_relaxed_rules_draw_on_guesses(small_vocabulary: Pipeline, rule: str, tree: str) -> None:
    """No fewer tokens a call than `exact`; alone each image is the same."""
    output = draw(small_vocabulary, COUPLED[rule], tree)
    assert output.stats.tau >= draw(small_vocabulary, "exact", tree).stats.tau
    assert output.stats.relaxed_share > 0
    relaxed = np.isin(output.causes, [cause for cause in Cause if cause.relaxed])
    assert not (relaxed & (output.origins == Origin.NEW)).any()  # nobody has guessed what fills a new place
    given = random_features(small_vocabulary, 3)
    for i in range(3):
        one = {name: rows[i : i + 1] for name, rows in given.items()}
        alone = small_vocabulary.generate(**one, seed=5 + i, rule=COUPLED[rule], tree=tree)
        np.testing.assert_array_equal(alone.codes[0], output.codes[i])
        assert alone.rounds[0] == output.rounds[i]


@pytest.mark.parametrize("tree", GUESSED)
@pytest.mark.parametrize(
    "rule", ["cascade:children={},tau_pos=off,tau_seq=off", "lantern:children={},delta=0.0", "lantern++:children={},"
             "lambda=1", "cool:children={},delta=1.0,nu=0.0"]
)  # fmt: skip
def test_switched_off_they_are_strict_on_guesses(small_vocabulary: Pipeline, rule: str, tree: str) -> None:
    same(draw(small_vocabulary, rule.format("coupled"), tree), draw(small_vocabulary, "exact", tree))
    same(draw(small_vocabulary, rule.format("topk"), tree), draw(small_vocabulary, "strict-topk", tree))


def test_stand_ins_for_the_draw_on_guesses(small_vocabulary: Pipeline) -> None:
    """swap looks ahead over verified guesses: at 1 it is `exact`, below it brings more tokens a call."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(8, 4)).astype(np.float32)
    states = StateTable((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16),
                        rng.dirichlet(np.ones(8)).astype(np.float32) + np.float32(0.05))  # fmt: skip

    def rule(tau_draw: float) -> Swap:
        return Swap(tau_draw=tau_draw, states=states)

    for tree in GUESSED:
        exact, tight, loose = (draw(small_vocabulary, how, tree) for how in ("exact", rule(1.0), rule(0.3)))
        same(exact, tight)
        assert loose.stats.tau > exact.stats.tau and loose.stats.relaxed_share > 0


@dataclass(frozen=True)
class Reading(Watching):
    """A rule that asks for the drafter's distribution on top of what it needs."""

    @property
    def looks_at(self) -> frozenset[str]:
        return frozenset({LOG_Q})

    def decide(self, node: Node, draws: Draws) -> Decision:
        assert (node.log_q is not None) == bool(node.nodes)
        return self.rule.decide(node, draws)


@pytest.mark.parametrize("rule", COUPLED)
def test_coupled_rules_need_no_law_and_draw_as_with_it(small_vocabulary: Pipeline, rule: str) -> None:
    """On the coupled tree q cancels out: what is drafted is drawn alike whether they see it or not."""
    spelt = small_vocabulary.rule(COUPLED[rule])
    assert LOG_Q not in spelt.needs
    for tree in ("chain", "naive_extend_57"):
        same(draw(small_vocabulary, spelt, tree), draw(small_vocabulary, Reading(spelt), tree))


# where tokens come from -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("tree", "sources"),
    [("chain", {Origin.EAGLE}), ("naive_extend_57", {Origin.EAGLE}), ("jacobi_8", {Origin.JACOBI, Origin.NEW}),
     ("jacobi_6x3", {Origin.JACOBI, Origin.NEW}), ("mixed_8", {Origin.EAGLE, Origin.JACOBI, Origin.NEW}),
     ("fork", {Origin.EAGLE, Origin.JACOBI, Origin.NEW})],
)  # fmt: skip
def test_origins_add_up(small_vocabulary: Pipeline, tree: str, sources: set[Origin]) -> None:
    """The target says each image's first token and each round's last, but for a walk that ends with the image."""
    for rule in ("exact", COUPLED["cool"]):
        given = random_features(small_vocabulary, 6)
        output = small_vocabulary.generate(**given, seed=9, rule=rule, tree=tree)
        assert set(output.origins.ravel().tolist()) == {Origin.TARGET, *sources}
        np.testing.assert_array_equal(output.origins == Origin.TARGET, output.causes == Cause.DRAWN)
        own = (output.origins == Origin.TARGET).sum(axis=1)
        cut = output.origins[:, -1] != Origin.TARGET
        np.testing.assert_array_equal(own, 1 + output.rounds - cut)
        assert output.stats.origins == {kind.name.lower(): int((output.origins == kind).sum()) for kind in Origin}
        assert output.stats.to_dict()["origins"] == output.stats.origins


def test_plain_decoding_is_the_targets_own(small_vocabulary: Pipeline) -> None:
    output = draw(small_vocabulary, "ar")
    assert not output.origins.any() and output.stats.origins["target"] == output.codes.size
    assert output.stats.trees == {"none": 3 * 35}


def test_mixed_1_is_the_drafters_chain(small_vocabulary: Pipeline) -> None:
    """The same guesses, of the same origin."""
    same(draw(small_vocabulary, "exact", "mixed_1"), draw(small_vocabulary, "exact", "chain_1"))
