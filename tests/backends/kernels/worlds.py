"""Random plans, trees and images: on the device, and as the runtime's own objects beside it."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
from kernels.cpu import Device

from cascade_trt.runtime.backends.kernels.rules import kind_of
from cascade_trt.runtime.drafting import Origin
from cascade_trt.runtime.plan import TokenPlan
from cascade_trt.runtime.rules.base import Rule
from cascade_trt.runtime.rules.exact import Exact
from cascade_trt.runtime.sampling import Sampling
from cascade_trt.runtime.slots import TokenSequence
from cascade_trt.runtime.tree import EAGLE, JACOBI, Tree

PREFIX = 5


def random_plan(rng: np.random.Generator, codes: int) -> TokenPlan:
    """Small, often with forced tokens."""
    rows, columns = map(int, rng.integers(1, 7, 2))
    begin = [codes + int(rng.integers(2)) for _ in range(rng.integers(0, 3))] if rng.random() < 0.4 else []
    begin = [codes + sorted(set(begin)).index(token) for token in begin]
    row_end = codes + len(set(begin)) if rng.random() < 0.5 else None
    return TokenPlan(rows, columns, codes, row_end, begin)


def random_parents(rng: np.random.Generator, size: int) -> tuple[int, ...]:
    """Chains, bushes and what lies between: `step` is how far a node's parent moves on, on the average."""
    step, parents = rng.choice([0.1, 0.3, 0.6, 1.0]), [-1]
    for node in range(1, size):
        last = max(parents[-1], 0)
        parents.append(min(node - 1, last + int(rng.random() < step) * int(rng.integers(1, 3))))
    return tuple(parents)


def random_tree(rng: np.random.Generator, size: int, guesses: bool) -> Tree:
    """With `guesses` some or all nodes are guessed, as far as a tree allows."""
    parents = random_parents(rng, size)
    if not guesses:
        return Tree("random", parents)
    share, sources, rivals = rng.choice([0.0, 0.3, 0.8]), [EAGLE], [0] * size
    if share == 0.0:  # at most two guesses behind a node
        parents = list(parents)
        for node in range(1, size):
            while rivals[parents[node]] >= 2:
                parents[node:] = [max(parent, parents[node] + 1) for parent in parents[node:]]
            rivals[parents[node]] += 1
        return Tree("random", tuple(parents), (EAGLE, *[JACOBI] * (size - 1)))
    for node in range(1, size):
        parent = parents[node]
        may_draft = parent == 0 or sources[parent] == EAGLE
        guess = (not may_draft or rng.random() >= share) and rivals[parent] < 2
        if not guess and not may_draft:  # cut the tree before a third guess behind a guess
            return Tree("random", tuple(parents[:node]), tuple(sources))
        rivals[parent] += guess
        sources.append(JACOBI if guess else EAGLE)
    return Tree("random", tuple(parents), tuple(sources))


@dataclass
class World:
    """P images on the device, and the same as sequences of the runtime; a `tree` for all, or one for each slot."""

    library: ctypes.CDLL
    rng: np.random.Generator
    plan: TokenPlan
    trees: list[Tree]
    rows: int
    vocab: int
    same_tree: bool
    runner_up: bool = True
    device: Device = field(init=False)
    sequences: list[TokenSequence | None] = field(init=False)
    pair_mask: np.ndarray = field(init=False)  # of the reference

    def __post_init__(self) -> None:
        plan, tree, slots = self.plan, self.trees[0], len(self.trees)
        levels = 1 + max(t.depth for t in self.trees)
        drafted = tree.drafted_nodes if self.same_tree and tree.guessed else ()
        without = ("ancestors", "tree_mask") + (() if plan.has_forced else ("forced",))
        without += () if self.runner_up else ("runner_up",)
        without += () if drafted else ("drafted_nodes", "drafted_tokens")
        if not self.same_tree or not tree.depth:
            without += ("continuations",)
        if not self.same_tree or not tree.guessed:
            without += ("guessed",)
        self.device = d = Device(
            self.library, without, slots=slots, rows=self.rows, nodes=tree.size, levels=levels, vocab=self.vocab,
            length=plan.length, prefix=PREFIX, pair_slots=PREFIX + plan.length + levels, drafted=len(drafted),
            tree_stride=0 if self.same_tree else tree.size, mask_columns=0,
        )  # fmt: skip
        d.plan_forced[:], d.plan_above[:], d.plan_left[:] = plan.forced, plan.above, plan.left
        d.parents[:] = tree.parents if self.same_tree else [t.parents for t in self.trees]
        d.depths[:] = [t.depths for t in self.trees]
        d.pair_mask[:] = 1
        d.count[:] = 1
        d.origins[:] = Origin.EAGLE
        if "continuations" not in without:
            d.continuations[:] = tree.continuations
        if "guessed" not in without:
            d.guessed[list(tree.guessed)] = 1
        if drafted:
            d.drafted_nodes[:] = drafted
        self.sequences = [None] * slots
        self.pair_mask = d.pair_mask.copy()

    def fill(self, slot: int, rule: Rule | str | None = "any", greedy: bool = False) -> TokenSequence:
        """A fresh image: its first token is there."""
        rng, plan, d = self.rng, self.plan, self.device
        if rule == "any":
            rule = None if rng.random() < 0.2 else Exact()
        sequence = TokenSequence(
            int(rng.integers(2**63)), Sampling(1.0, 0.0 if greedy else 1.0, 0, 1.0), rule, plan,
            rng.integers(0, 4, self.rows),
        )  # fmt: skip
        first = int(plan.forced[0])
        sequence.tokens[0], sequence.done = first if first >= 0 else int(rng.integers(self.vocab)), 1
        sequence.read = PREFIX
        self.sequences[slot] = sequence
        d.seed[slot] = sequence.seed
        d.stream[slot] = -1 if greedy else 0
        d.rule[slot] = kind_of(rule)
        d.end[slot], d.done[slot], d.read[slot] = plan.length, 1, PREFIX
        rows = self.rows_of(slot)
        d.first[rows] = sequence.first
        d.tokens[slot], d.guesses[slot] = sequence.tokens, -1
        d.pair_mask[rows] = self.pair_mask[rows] = 1
        return sequence

    def rows_of(self, slot: int) -> slice:
        return slice(slot * self.rows, (slot + 1) * self.rows)

    def draw(self, broken: float = 0.0) -> None:
        """Draws of the target at all nodes, often a child's token; in a share `broken` of slots one is not finite."""
        d, rng = self.device, self.rng
        slots, nodes = d.drawn.shape
        d.drawn[:] = rng.integers(0, self.vocab, d.drawn.shape)
        if nodes > 1:
            pick = rng.integers(1, nodes, d.drawn.shape)
            parents = np.broadcast_to(d.parents, d.drawn.shape)
            at = np.arange(slots)[:, None]
            agree = rng.random(d.drawn.shape) < rng.choice([0.2, 0.7, 1.0])
            d.drawn[at.repeat(nodes, 1)[agree], parents[at, pick][agree]] = d.tree_tokens[at, pick][agree]
            spoilt = rng.random(slots) < broken
            d.drawn[spoilt, rng.integers(0, nodes, slots)[spoilt]] = -1
        if self.runner_up:
            d.runner_up[:] = rng.integers(-1, self.vocab, d.drawn.shape)

    def lane(self, **more: object) -> SimpleNamespace:
        """What functions of `loop` and `drafting` read of a lane, from the device's arrays."""
        d = self.device
        return SimpleNamespace(
            trees=self.trees, tree=self.trees[0], tokens=d.tree_tokens, drawn=d.drawn, prefix_len=PREFIX,
            second=d.runner_up if self.runner_up else None, rows_of=self.rows_of, depths=d.depths,
            source=SimpleNamespace(origins=d.origins), **more,
        )  # fmt: skip
