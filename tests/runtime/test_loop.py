"""The walk over a tree and the book-keeping of lengths, with rules that decide anything."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cascade_trt.runtime import loop
from cascade_trt.runtime.calls import Layout
from cascade_trt.runtime.noise import Stream
from cascade_trt.runtime.rules import Decision, Draws, Node
from cascade_trt.runtime.sampling import Sampling
from cascade_trt.runtime.tree import Tree, tree_from_branching

VOCAB, PREFIX = 20, 6
SAMPLING = Sampling(3.0, 1.0, 0, 1.0)


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    levels, width = [], 1
    for _ in range(draw(st.integers(1, 4))):
        counts = draw(st.lists(st.integers(0, 3), min_size=width, max_size=width).filter(any))
        levels.append(counts)
        width = sum(counts)
    return tree_from_branching("drawn", levels)


@dataclass
class Anything:
    """Accepts whichever child its choices say, and notes what it was shown."""

    choices: list[int]
    name: str = "anything"
    noise: Stream | None = None
    seen: list[tuple[Node, Draws]] = field(default_factory=list)

    def decide(self, node: Node, draws: Draws) -> Decision:
        choice = self.choices[len(self.seen)] % (len(node.nodes) + 1)
        self.seen.append((node, draws))
        if choice == len(node.nodes):
            return Decision(VOCAB - 1, None)
        return Decision(node.tokens[choice], node.nodes[choice])


def verified(tree: Tree, prompts: int) -> tuple[Any, Any]:
    """What the target's call and the drafter left; node n of prompt p carries the token (n + p) % V."""
    rng = np.random.default_rng(0)
    logits = -np.sort(-rng.normal(size=(prompts, tree.size, VOCAB)).astype(np.float32))
    call = SimpleNamespace(
        logits=logits, ids=rng.permuted(np.tile(np.arange(VOCAB), (prompts, tree.size, 1)), axis=2),
        similarity=np.zeros((prompts, tree.size, tree.size), np.float32),
        hidden=np.zeros((prompts, tree.size, 2), np.float32), guidance=np.eye(prompts, dtype=np.float32),
    )  # fmt: skip
    buffers = SimpleNamespace(
        tree_tokens=(np.arange(tree.size) + np.arange(prompts)[:, None]) % VOCAB,
        log_q=np.zeros((prompts, len(tree.internal), VOCAB), np.float32),
        noise=np.zeros((prompts, tree.depth + 1, VOCAB), np.float32),
        trees=[tree] * prompts, law_rows=[{node: row for row, node in enumerate(tree.internal)}] * prompts,
    )  # fmt: skip
    buffers.log_q[:] = np.arange(len(tree.internal))[:, None]
    return call, buffers


@given(trees(), st.lists(st.integers(0, 3), min_size=6, max_size=6), st.integers(1, 9), st.integers(1, 8))
def test_walk(tree: Tree, choices: list[int], image_tokens: int, done: int) -> None:
    """A path runs from parent to child, has a token for each node, and never passes the picture's end."""
    done = min(done, image_tokens)
    call, buffers = verified(tree, 1)
    state = loop.State(
        [9], np.zeros((1, image_tokens), np.int32), np.zeros((1, image_tokens), np.int8), 4, np.array([done]),
        np.zeros(1, np.int64),
    )  # fmt: skip
    rule = Anything(choices)
    accepted = loop.accept(call, buffers, state, rule, SAMPLING)
    if done == image_tokens:
        assert accepted == {}
        return
    path, tokens = accepted[0].path, accepted[0].tokens
    assert path[0] == 0
    assert all(tree.parents[node] == before for before, node in pairwise(path))
    assert all(before < node for before, node in pairwise(path))
    assert len(tokens) == len(path) <= min(tree.depth + 1, image_tokens - done)
    assert tokens[:-1] == [int(buffers.tree_tokens[0, node]) for node in path[1:]]
    for (node, draws), index in zip(rule.seen, path, strict=True):
        assert node.index == index
        assert (draws.seed, draws.position) == (9, done + tree.depths[index])
        np.testing.assert_array_equal(node.ids, call.ids[0, index])
        if tree.children[index]:
            assert node.log_q is not None
            assert node.log_q[0] == tree.internal.index(index)  # the law of this node, not of another
        else:
            assert node.log_q is None


class Moves:
    """A cache that notes its commits."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[int], int, list[int]]] = []

    def commit(self, rows: list[int], start: int, path: list[int]) -> None:
        self.calls.append((list(rows), start, list(path)))


class Pairs:
    """The drafter's inputs, without an engine."""

    def __init__(self, prompts: int, rows: int, pairs: int) -> None:
        self.path, self.tokens = np.full((2, prompts, pairs), 99)
        self.count, self.write_index = np.zeros(prompts, np.int64), np.zeros(rows, np.int64)

    def place(self, start: np.ndarray) -> None:
        self.write_index[:] = start


@given(trees(), st.lists(st.integers(0, 3), min_size=400, max_size=400), st.booleans(), st.integers(2, 12))
def test_lengths_over_a_whole_picture(tree: Tree, choices: list[int], guided: bool, image_tokens: int) -> None:
    """Round after round: lengths advance by what was accepted, both rows move alike, finished prompts rest."""
    layout, prompts = Layout(3, guided), 3
    state = loop.State(
        list(range(prompts)), np.full((prompts, image_tokens), -1, np.int32),
        np.zeros((prompts, image_tokens), np.int8), 4, np.ones(prompts, np.int64), np.zeros(prompts, np.int64),
    )  # fmt: skip
    state.codes[:, 0] = 3  # the prefill's token
    call, buffers = verified(tree, prompts)
    pairs, rule = Pairs(prompts, layout.rows, tree.depth + 1), Anything(choices)
    while state.unfinished:
        before, cache = state.done.copy(), Moves()
        finished = [p for p in range(prompts) if p not in state.unfinished]
        kept = [(pairs.path[p].copy(), pairs.write_index[p]) for p in finished]
        accepted = loop.accept(call, buffers, state, rule, SAMPLING)
        loop.commit(cache, state, accepted, layout, PREFIX)  # type: ignore[arg-type]
        loop.emit(state, accepted, pairs, layout, PREFIX)  # type: ignore[arg-type]
        assert [rows for rows, _, _ in cache.calls] == [layout.rows_of(p) for p in accepted]
        for p, walked in accepted.items():
            count = len(walked.tokens)
            assert state.done[p] == before[p] + count
            assert state.codes[p, before[p] : state.done[p]].tolist() == walked.tokens
            assert pairs.count[p] == count
            assert pairs.path[p, :count].tolist() == walked.path
            assert pairs.tokens[p, :count].tolist() == walked.tokens
            assert pairs.path[p].max() < tree.size  # the padding names rows that exist
            assert (pairs.write_index[layout.rows_of(p)] == PREFIX + before[p] - 1).all()
        assert [start for _, start, _ in cache.calls] == [PREFIX + before[p] - 1 for p in accepted]
        for p, (path, start) in zip(finished, kept, strict=True):
            assert state.done[p] == image_tokens
            np.testing.assert_array_equal(pairs.path[p], path)
            assert pairs.write_index[p] == start
    assert (state.codes >= 0).all()


def test_guidance_weights() -> None:
    states = np.random.default_rng(0).normal(size=(4, 5))
    cond, uncond = states[:2], states[2:]
    mixed = Layout(2, True).guidance(7.5) @ states
    np.testing.assert_allclose(mixed, uncond + 7.5 * (cond - uncond), rtol=1e-6)
    np.testing.assert_array_equal(Layout(2, False).guidance(1.0), np.eye(2))
    assert Layout(2, True).rows_of(1) == [1, 3]
    assert Layout(2, False).rows_of(1) == [1]
