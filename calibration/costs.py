"""What rounds cost on this machine, for `calibrate costs` and `calibrate tree`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..runtime.auto import Choice
from ..runtime.bundle import CostInfo
from ..runtime.costs import REPEATS, Costs, Measured, measure
from ..runtime.lane import Lane
from ..runtime.pipeline import Pipeline
from ..runtime.request import Drawing
from ..runtime.rules import Rule
from ..runtime.stats import ROUND, Stats
from ..runtime.tree import AUTO, NO_TREE, AnyTree, Tree
from .subjects import request

_LEAST = 0.01  # ms that a round takes outside the engines at least
# What a call may cost on an idle machine against the next smaller one: wide of what caches, kernels for other sizes and
# the share of work on one thread do to it, so that few figures are doubted wrongly.
_MOST_OF_PROPORTION = 2.0  # times what it would cost in proportion to its size
_LEAST_OF_SMALLER = 0.6  # times what the smaller one costs


def measure_calls(
    pipe: Pipeline, slots: Sequence[int], nodes: Sequence[int], drafted: Mapping[str, AnyTree],
    repeats: int = REPEATS, note: Callable[[], None] = lambda: None,
) -> Measured:  # fmt: skip
    """Target calls on so many slots and nodes, and calls of the draft engines, each with a tree that it drafts.

    On memory of its own for the most slots, with the bundle's own guidance.
    """
    workspace = pipe.workspace(pipe.manifest.sampling.guidance_scale != 1, max(slots))
    return measure(partial(Lane, workspace), slots, nodes, drafted, repeats, note=note)


_STRETCH, _STRETCH_PLAIN = 6, 16  # rounds of a tree in a row, of which the first few are not like the others


class Turns:
    """Gives every tree its stretch of rounds, again and again, and notes what they took (`runtime.chooser.Chooser`)."""

    def __init__(self, trees: Sequence[str], slots: int) -> None:
        self.asked, self.first = AUTO, trees[0]
        self.milliseconds: dict[str, list[float]] = {tree: [] for tree in trees}
        self._slots, self._rounds = slots, 0
        self._order = [tree for tree in trees for _ in range(_STRETCH_PLAIN if tree == NO_TREE else _STRETCH)]

    def serves(self, rule: Rule, tree: str | None) -> bool:  # noqa: ARG002 - as the contract says
        return tree == AUTO

    def choose(self, drawings: Sequence[Drawing], current: str) -> Choice:  # noqa: ARG002 - as the contract says
        tree = self._order[self._rounds % len(self._order)]
        self._rounds += 1
        return Choice(tree, "every tree in its turn")

    def observe(self, tree: str, tokens: int, rounds: int, busy: int, milliseconds: float | None) -> None:  # noqa: ARG002
        if milliseconds is not None and busy == self._slots:
            self.milliseconds[tree].append(milliseconds)

    @property
    def fewest(self) -> int:
        """Rounds that the least known tree was measured in."""
        return min(map(len, self.milliseconds.values()))


def measure_rounds(
    pipe: Pipeline, trees: Sequence[str], slots: int, prompts: tuple[str, ...], seed: int, repeats: int = REPEATS
) -> dict[str, float]:
    """Median milliseconds of whole rounds of `slots` images of `exact`, by tree (`none`: plain decoding), of at least
    `repeats` rounds of each.

    Images are drawn, and change their tree every few rounds. So everything that a round of a tree costs is in it, and a
    drifting machine hits all trees alike.
    """
    turns, number = Turns(trees, slots), 0
    batch = pipe.batch_for(turns, slots)
    try:
        while turns.fewest < repeats:
            while batch.waiting + batch.busy < slots:
                batch.submit(request(pipe.manifest, prompts, number, seed + number))
                number += 1
            for job in batch.step():
                job.result()  # raises what made it fail
    finally:
        batch.drain()
    return {tree: statistics.median(taken) for tree, taken in turns.milliseconds.items()}


def outside(runs: Sequence[Sequence[Stats]]) -> tuple[float, float]:
    """Milliseconds outside the engines: of a round, and more for each token. `runs` are images of each tree.

    A line through the trees' medians; level where they bring about the same number of tokens.
    """
    tokens = np.array([statistics.median(stats.tau for stats in images) for images in runs])
    spent = np.array([statistics.median(_outside(stats) for stats in images) for images in runs])
    token = float(np.polyfit(tokens, spent, 1)[0]) if np.ptp(tokens) > 0.5 else 0.0
    token = min(max(token, 0.0), float((spent / tokens).min()))
    return max(float((spent - token * tokens).mean()), _LEAST), token


def _outside(stats: Stats) -> float:
    return 1e3 * (stats.of(ROUND) - stats.engine_seconds) / stats.rounds


def doubt(info: CostInfo) -> str | None:
    """The figure that is the least like one of an idle machine, against its smaller neighbour; None where all may be.

    Each call is compared with the one on fewer images and, of the target, the one on fewer nodes.
    """
    worst, said = 1.0, None
    for call, of, unit, sizes, times in _rows(info):
        for at in range(1, len(sizes)):
            size, less, ms, before = sizes[at], sizes[at - 1], times[at], times[at - 1]
            excess = max(ms / (before * size / less * _MOST_OF_PROPORTION), before * _LEAST_OF_SMALLER / ms)
            if excess > worst:
                worst = excess
                said = f"{call} takes {before:.2f} ms {of} {_count(less, unit)} but {ms:.2f} ms {of} {size}"
    return said


def _rows(info: CostInfo) -> Iterator[tuple[str, str, str, list[int], list[float]]]:
    """Calls that differ in one size only: what they are, what they differ in (with its preposition), the sizes and the
    milliseconds."""
    for at, nodes in enumerate(info.nodes):
        call = f"a target call with {_count(nodes, 'node')} an image"
        yield call, "for", "image", info.slots, [row[at] for row in info.target]
    for images, times in zip(info.slots, info.target, strict=True):
        yield f"a target call for {_count(images, 'image')}", "with", "node", info.nodes, times
    for engine, times in info.draft.items():
        yield f"a call of {engine}", "for", "image", info.slots, times
    for tree, times in info.rounds.items():
        call = "a round of plain decoding" if tree == NO_TREE else f"a round with {tree}"
        yield call, "for", "image", info.slots, times


def _count(number: int, unit: str) -> str:
    return f"{number} {unit}{'s' * (number != 1)}"


@dataclass(frozen=True)
class TreeCosts:
    """Rounds of any drafted tree, one image: `rounds` without drafting, `draft` milliseconds by name of `trees`."""

    rounds: Costs
    draft: dict[str, float]
    trees: dict[str, Tree]

    def of(self, tree: Tree) -> float:
        """Milliseconds of a round with `tree`, interpolated between what was measured."""
        return self.rounds.of(tree, None, 1) + self._draft(tree)

    def _draft(self, tree: Tree) -> float:
        """A line through the measured trees over (levels, inner nodes), as far as there are enough of them."""
        names = list(self.draft)
        times = np.array([self.draft[name] for name in names])
        levels = np.array([[1.0, self.trees[n].depth, len(self.trees[n].internal)] for n in names])
        if len(names) < 3:
            return float((times / (1 + levels[:, 1])).mean() * (1 + tree.depth))
        fit, *_ = np.linalg.lstsq(levels, times, rcond=None)
        return float(max(fit @ [1.0, tree.depth, len(tree.internal)], times.min() / 2))
