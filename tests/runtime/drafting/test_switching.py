"""A batch goes from one tree to another between any two rounds; no image shows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from playing import SETTINGS, Alone, events, play, request_of
from synthetic.family import build_synthetic

from cascade_trt.runtime.auto import Choice
from cascade_trt.runtime.batch import Batch
from cascade_trt.runtime.options import DrawOptions
from cascade_trt.runtime.pipeline import Pipeline
from cascade_trt.runtime.request import Drawing
from cascade_trt.runtime.rules import Rule
from cascade_trt.runtime.tree import AUTO, NO_TREE

SMALL = (NO_TREE, "jacobi_1", "jacobi_16", "jacobi_6x3", "mixed_1x1", "mixed_16", "mixed_6x6", "fork", "bush", "chain",
         "small_9", "naive_extend_57", "chain_2")  # fmt: skip
SYNTHETIC = (NO_TREE, "jacobi_4", "jacobi_8x4", "mixed_8", "mixed_4x2", "small_9", "dynamic_12x4x3")
SETTINGS_OF_EXACT = [one for one in SETTINGS if one.rule in (None, "ar")]


class Script:
    """The trees of the rounds, one after the other and round again; the contract of `runtime/chooser.py`."""

    asked = AUTO

    def __init__(self, trees: Sequence[str]) -> None:
        self.first = trees[0]
        self._trees, self.round = list(trees), 0
        self.seen: list[tuple[str, int, int]] = []
        self.times: list[tuple[int, float | None]] = []

    def serves(self, rule: Rule, tree: str | None) -> bool:  # noqa: ARG002
        return tree == AUTO

    def choose(self, drawings: Sequence[Drawing], current: str) -> Choice:  # noqa: ARG002
        self.round += 1
        return Choice(self._trees[(self.round - 1) % len(self._trees)], f"round {self.round}")

    def observe(self, tree: str, tokens: int, rounds: int, busy: int, milliseconds: float | None) -> None:
        self.seen.append((tree, tokens, rounds))
        self.times.append((busy, milliseconds))


def batch_of(pipe: Pipeline, slots: int, trees: Sequence[str], **options: Any) -> Batch:
    """A batch whose rounds have these trees."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipe, "_chooser", lambda *_: Script(trees))
        return pipe.batch(slots, **options)


@pytest.fixture(scope="module")
def alone(small_vocabulary: Pipeline) -> Alone:
    return Alone(small_vocabulary, None, SETTINGS_OF_EXACT)


happenings_of_exact = events(len(SETTINGS_OF_EXACT))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(happenings_of_exact, st.integers(1, 4), st.lists(st.sampled_from(SMALL), min_size=2, max_size=12))
def test_any_trees_in_any_order(
    small_vocabulary: Pipeline, alone: Alone, happenings: list[Any], slots: int, trees: list[str]
) -> None:
    """Images join, leave and move while trees change: they are those of plain decoding."""
    batch = batch_of(small_vocabulary, slots, trees)
    jobs = play(small_vocabulary, batch, happenings, alone)
    for job in jobs:
        stats = job.result().stats
        assert set(stats.trees) <= set(trees) and sum(stats.trees.values()) >= stats.rounds


@pytest.mark.usefixtures("spoilt")
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(happenings_of_exact, st.integers(1, 4), st.lists(st.sampled_from(SMALL), min_size=2, max_size=12))
def test_on_a_device_too(
    apart: Pipeline, alone: Alone, happenings: list[Any], slots: int, trees: list[str]
) -> None:  # fmt: skip
    play(apart, batch_of(apart, slots, trees), happenings, alone)


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """With forced tokens, a drafter that does not see padding, and dynamic trees."""
    built = ("small_9", "chain_1", "dynamic_12x4x3")
    return Pipeline.load(build_synthetic(tmp_path_factory.mktemp("synthetic"), built, batch=3)[0], threads=1)


@pytest.fixture(scope="module")
def synthetic_alone(synthetic: Pipeline) -> Alone:
    return Alone(synthetic, None, SETTINGS_OF_EXACT)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(happenings_of_exact, st.integers(1, 4), st.lists(st.sampled_from(SYNTHETIC), min_size=2, max_size=12))
def test_with_forced_tokens_and_dynamic_trees(
    synthetic: Pipeline, synthetic_alone: Alone, happenings: list[Any], slots: int, trees: list[str]
) -> None:
    play(synthetic, batch_of(synthetic, slots, trees), happenings, synthetic_alone)


class AtHome(Alone):
    """Images of `exact` are plain decoding's, those of other rules are drawn with the tree that they get alone."""

    def how(self, options: DrawOptions) -> DrawOptions:
        if options in SETTINGS_OF_EXACT:
            return super().how(options)
        return options.updated({"tree": self.pipe.tree_for(options.rule or "exact")})


@pytest.fixture(scope="module")
def at_home(small_vocabulary: Pipeline) -> AtHome:
    return AtHome(small_vocabulary, None)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(happenings=events(), slots=st.integers(1, 3))
def test_rules_that_depend_on_the_tree_beside_exact(
    small_vocabulary: Pipeline, at_home: AtHome, happenings: list[Any], slots: int
) -> None:
    """With `auto`: while such an image is drawn the tree is its own, between them any; another tree's images wait."""
    play(small_vocabulary, small_vocabulary.batch(slots), happenings, at_home)


def test_the_chooser_is_told_what_exact_has_accepted(small_vocabulary: Pipeline) -> None:
    """By the tree of the round; neither of plain images nor of walks that the end of the sequence has cut."""
    script = Script(["jacobi_4", NO_TREE, "mixed_6x6"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_vocabulary, "_chooser", lambda *_: script)
        batch = small_vocabulary.batch(3)
    jobs = [batch.submit(request_of(small_vocabulary, p, p, options)) for p, options in
            enumerate([DrawOptions(), DrawOptions(rule="ar"), DrawOptions(top_k=4)])]  # fmt: skip
    wanted = []
    while not batch.idle:
        before = [max(job.progress.tokens, 1) for job in jobs]
        batch.step()
        gained = [job.progress.tokens - count for job, count in zip(jobs, before, strict=True)]
        counted = [gain for job, gain in zip(jobs, gained, strict=True) if not job.done and job is not jobs[1]]
        if counted:
            wanted.append((batch.lane.tree.name, sum(counted), len(counted)))
    assert script.seen == wanted and {tree for tree, _, _ in wanted} == {"jacobi_4", NO_TREE, "mixed_6x6"}


HOLES = ("jacobi_4", "mixed_8", NO_TREE, NO_TREE, "chain", "jacobi_4", "mixed_6x6", NO_TREE, "small_9", "small_9")


@pytest.mark.parametrize("first", range(3))  # a lane that drafts begins one image of three
def test_a_drafter_never_sees_what_it_has_not_read(small_vocabulary: Pipeline, first: int) -> None:
    """Large numbers in the slots of tokens that other lanes have drawn, and of a prefix that it has not read, change
    no guess."""
    trees = [*HOLES[first:], *HOLES[:first]]
    for seed in range(3):
        clean = guesses_of(small_vocabulary, seed, trees, lambda _: set())
        assert guesses_of(small_vocabulary, seed, trees, lambda unread: unread) == clean


def test_large_numbers_in_what_a_drafter_has_read_change_its_guesses(small_vocabulary: Pipeline) -> None:
    """Otherwise the test above would say nothing."""
    clean, spoilt = (guesses_of(small_vocabulary, 0, ["chain"], lambda _, s=s: s) for s in (set(), {0, 1, 2}))
    assert clean != spoilt


def test_the_next_image_in_a_slot_sees_all_that_is_read_for_it(small_vocabulary: Pipeline) -> None:
    """Masks of the image before, which had holes, do not stay: its drafts are those in a fresh slot."""
    rounds = []
    for trees in ([NO_TREE] * 6 + ["chain"], ["chain"]):
        script = Script(trees)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(small_vocabulary, "_chooser", lambda *_, s=script: s)
            batch = small_vocabulary.batch(1)
        batch.submit(request_of(small_vocabulary, 0, 0, DrawOptions())).result()
        if len(trees) > 1:
            assert not batch.lane.workspace.pair_mask.all()
        script._trees = ["chain"]
        job = batch.submit(request_of(small_vocabulary, 1, 1, DrawOptions()))
        found = []
        while not job.done:
            batch.step()
            assert batch.lane.workspace.pair_mask.all()
            found.append(batch.lane.tokens[0].tolist())
        rounds.append(found)
    assert rounds[0] == rounds[1]


def guesses_of(
    pipe: Pipeline, seed: int, trees: Sequence[str], poisoned: Callable[[set[int]], set[int]]
) -> list[list[int]]:
    """The tokens of every round's nodes. Before each round the slots of the drafter's cache that `poisoned` makes of
    those it has not read are overwritten."""
    batch, prefix = batch_of(pipe, 1, trees), pipe.manifest.model.condition.length
    job = batch.submit(request_of(pipe, 0, seed, DrawOptions()))
    cache = batch.lane.memory.drafter
    assert cache is not None
    found, unread, newest = [], set(), range(prefix)  # slots of what the newest round has decided
    for number in range(200):
        tree = trees[number % len(trees)]
        drafts = tree != NO_TREE and pipe.manifest.tree(tree).engine is not None
        unread |= set() if drafts else set(newest)
        if number:
            for buffer in cache.bindings(0, 2)[0].values():
                buffer.host[:, :, sorted(poisoned(unread))] = 30
        before = max(job.progress.tokens, 1)
        batch.step()
        if job.done:
            return found
        found.append(batch.lane.tokens[0].tolist())
        newest = range(prefix + before - 1, prefix + job.progress.tokens - 1)
        if drafts:
            assert set(np.flatnonzero(~batch.lane.workspace.pair_mask[0]).tolist()) == unread
    raise AssertionError("the image does not end")
