"""What rounds cost on this machine, for `calibrate costs` and `calibrate tree`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..runtime.bundle import CostInfo
from ..runtime.costs import REPEATS, Costs, Measured, measure
from ..runtime.lane import ROOT, Lane
from ..runtime.pipeline import Pipeline
from ..runtime.stats import ROUND, Stats
from ..runtime.tree import AnyTree, Tree

_LEAST = 0.01  # ms that a round takes outside the engines at least


def measure_calls(
    pipe: Pipeline, slots: Sequence[int], nodes: Sequence[int], drafted: Mapping[str, AnyTree],
    repeats: int = REPEATS, note: Callable[[], None] = lambda: None,
) -> Measured:  # fmt: skip
    """Target calls on so many slots and nodes, and calls of the draft engines, each with a tree that it drafts.

    On memory of its own for the most slots, with the bundle's own guidance.
    """
    workspace = pipe.workspace(pipe.manifest.sampling.guidance_scale != 1, max(slots))
    return measure(
        lambda tree: Lane(workspace, ROOT if tree is None else tree), slots, nodes, drafted, repeats, note=note
    )


def to_info(
    pipe: Pipeline, slots: Sequence[int], nodes: Sequence[int], calls: Measured, host: float, token: float = 0.0,
    accepted: Mapping[str, float] | None = None, images: int = 0,
) -> CostInfo:  # fmt: skip
    """What was measured, with the machine and the backend that it belongs to."""
    here = pipe.identity
    return CostInfo(
        here.backend, here.version, here.machine, here.threads, list(slots), list(nodes), calls.target, calls.draft,
        max(host, _LEAST), token, dict(accepted or {}), images,
    )  # fmt: skip


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
    return 1e3 * (sum(stats.seconds[stage] for stage in ROUND) - stats.engine_seconds) / stats.rounds


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
