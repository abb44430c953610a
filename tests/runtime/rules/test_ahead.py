"""Looking ahead: on every tree the walk is the best of all walks, found here by trying each."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_trt.runtime.noise import Stream
from cascade_trt.runtime.rules import Draws, Node
from cascade_trt.runtime.rules.cool import Cool
from cascade_trt.runtime.rules.relaxed import Relaxed
from cascade_trt.runtime.rules.states import StateTable
from cascade_trt.runtime.rules.swap import Swap
from cascade_trt.runtime.tree import Tree, tree_from_branching

VOCAB = 6


@dataclass
class Drafted:
    """A verified tree of random distributions, drafts and noise, seen through `Node` as the loop shows it."""

    tree: Tree
    rng: np.random.Generator
    room: int  # tokens until the image ends
    logits: np.ndarray = field(init=False)  # [N, V]
    noise: np.ndarray = field(init=False)  # [depths, V]
    drafted: np.ndarray = field(init=False)  # [N]

    def __post_init__(self) -> None:
        self.logits = self.rng.normal(size=(self.tree.size, VOCAB)).astype(np.float32)
        self.noise = self.rng.gumbel(size=(self.tree.depth + 1, VOCAB)).astype(np.float32)
        self.drafted = np.full(self.tree.size, -1, np.int64)
        for children in self.tree.children:
            self.drafted[list(children)] = self.rng.permutation(VOCAB)[: len(children)]

    def see(self, index: int, run: int = 0) -> tuple[Node, Draws]:
        depth, children = int(self.tree.depths[index]), self.tree.children[index]

        def behind(child: int, relaxed: bool) -> tuple[Node, Draws] | None:
            return None if depth + 1 >= self.room else self.see(children[child], run + 1 if relaxed else 0)

        node = Node(
            index=index, ids=np.arange(VOCAB), logits=self.logits[index], tokens=self.drafted[list(children)].tolist(),
            nodes=children, log_q=None, similarity=np.eye(self.tree.size, dtype=np.float32), tree=self.tree,
            drafted=self.drafted, relaxed_run=run, behind=behind,
        )  # fmt: skip
        return node, Draws(0, depth, VOCAB, self.noise[depth])

    def scores(self, node: Node, draws: Draws) -> np.ndarray:
        """[V]: the best is the target's own draw (the ids are 0, 1, ...)."""
        return node.logits + draws.gumbel(Stream.TOKEN, node.ids)

    def best(self, rule: Relaxed, index: int = 0, run: int = 0) -> float:
        """Tokens of the best walk from a node on, the bonus included, less what its stand-ins cost in tokens."""
        node, draws = self.see(index, run)
        scores = self.scores(node, draws)
        drawn = int(np.argmax(scores))
        if draws.position + 1 >= self.room:
            return 1.0
        if drawn in node.tokens:
            return 1 + self.best(rule, node.nodes[node.tokens.index(drawn)])
        worth = [1.0]
        if node.tokens and not (rule.cap and run >= rule.cap):
            allowances, prices = rule.offers(node, list(range(len(node.tokens))), scores)
            worth += [1 + self.best(rule, child, run + 1) - price / allowance
                      for child, allowance, price in zip(node.nodes, allowances, prices, strict=True)]  # fmt: skip
        return max(worth)

    def walk(self, rule: Relaxed) -> tuple[list[int], float]:
        """The rule's own tokens, and what they are worth."""
        index, run, tokens, cost = 0, 0, [], 0.0
        while True:
            node, draws = self.see(index, run)
            decision = rule.decide(node, draws)
            tokens.append(decision.token)
            if decision.child is None or len(tokens) == self.room:
                return tokens, len(tokens) - cost
            run = run + 1 if decision.cause.relaxed else 0
            if decision.cause.relaxed:
                at = list(node.nodes).index(decision.child)
                allowance, price = rule.offers(node, [at], self.scores(node, draws))
                cost += float(price[0] / allowance[0])
            index = decision.child


def swap_for(rng: np.random.Generator, tau_draw: float, cap: int = 0, lookahead: bool = True) -> Swap:
    rows = rng.normal(size=(VOCAB, 3))
    table = StateTable(
        (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16),
        rng.dirichlet(np.ones(VOCAB)).astype(np.float32) + np.float32(0.01),
    )
    return Swap(cap=cap, tau_draw=tau_draw, lookahead=lookahead, states=table)


def cool_for(strictness: float, cap: int) -> Cool:
    """The same allowance, at least a tenth of a nat, at every depth."""
    return Cool(children="coupled", delta=float(np.exp(0.1 + 3 * (1 - strictness))), nu=0.0, cap=cap, lookahead=True)


SHAPES = ([[2], [2, 1], [1, 1, 1]], [[3], [1, 2, 0], [1, 0, 1], [1, 1]], [[1], [1], [1], [1]], [[4]])


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10_000), shape=st.sampled_from(SHAPES), strictness=st.floats(0, 0.95), cap=st.integers(0, 2),
    room=st.integers(1, 6), swap=st.booleans(),
)  # fmt: skip
def test_the_walk_is_the_best_of_all_walks(
    seed: int, shape: list, strictness: float, cap: int, room: int, swap: bool
) -> None:
    rng = np.random.default_rng(seed)
    drafted = Drafted(tree_from_branching("any", shape), rng, room)
    rule = swap_for(rng, strictness, cap) if swap else cool_for(strictness, cap)
    tokens, worth = drafted.walk(rule)
    assert worth == pytest.approx(drafted.best(rule), abs=1e-4)
    assert len(tokens) <= room


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10_000), shape=st.sampled_from(SHAPES), low=st.floats(0, 1), high=st.floats(0, 1))
def test_more_stands_in_as_the_threshold_falls(seed: int, shape: list, low: float, high: float) -> None:
    low, high = sorted((low, high))
    rng = np.random.default_rng(seed)
    drafted = Drafted(tree_from_branching("any", shape), rng, 6)
    table_seed = int(rng.integers(1 << 30))
    strict = swap_for(np.random.default_rng(table_seed), high).decide(*drafted.see(0))
    loose = swap_for(np.random.default_rng(table_seed), low).decide(*drafted.see(0))
    assert loose.child is not None or strict.child is None


def test_nothing_is_asked_of_what_follows_without_looking_ahead() -> None:
    rng = np.random.default_rng(0)
    drafted = Drafted(tree_from_branching("any", SHAPES[0]), rng, 6)
    node, draws = drafted.see(0)
    blind = Node(**{**vars(node), "behind": None})  # type: ignore[arg-type]
    for tau_draw in np.linspace(0, 1, 21):
        rule = swap_for(np.random.default_rng(1), float(tau_draw), lookahead=False)
        assert rule.decide(node, draws) == rule.decide(blind, draws)
