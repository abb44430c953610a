"""What a round costs on this machine: the target on N nodes, the drafter on a tree."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..runtime.pipeline import Pipeline
from ..runtime.tree import Tree

_REPEATS = 9


@dataclass(frozen=True)
class Costs:
    """Milliseconds: `verify` by number of nodes (root included), `draft` by tree name, `host` of one round."""

    verify: dict[int, float]
    draft: dict[str, float]
    host: float
    trees: dict[str, Tree]

    def of(self, tree: Tree) -> float:
        """Milliseconds of a round with `tree`, interpolated between what was measured."""
        known = sorted(self.verify)
        verify = float(np.interp(tree.size, known, [self.verify[n] for n in known]))
        if tree.size > known[-1] and len(known) > 1:
            slope = (self.verify[known[-1]] - self.verify[known[-2]]) / (known[-1] - known[-2])
            verify += slope * (tree.size - known[-1])
        return verify + self._draft(tree) + self.host

    def _draft(self, tree: Tree) -> float:
        """A line through the measured trees over (levels, inner nodes), as far as there are enough of them."""
        names = list(self.draft)
        times = np.array([self.draft[name] for name in names])
        levels = np.array([[1.0, self.trees[n].depth, len(self.trees[n].internal)] for n in names])
        if len(names) < 3:
            return float((times / (1 + levels[:, 1])).mean() * (1 + tree.depth))
        fit, *_ = np.linalg.lstsq(levels, times, rcond=None)
        return float(max(fit @ [1.0, tree.depth, len(tree.internal)], times.min() / 2))


def measure_verify(pipe: Pipeline, sizes: Sequence[int], note: Callable[[], None]) -> dict[int, float]:
    """Median milliseconds of a target call on each number of nodes, one image; sizes are measured in turn."""
    manifest = pipe.manifest
    lanes = {}
    for nodes in sorted({n for n in sizes if n <= manifest.target.window}):
        lane = pipe.lane(Tree("chain", tuple(range(-1, nodes - 1))), manifest.sampling.guidance_scale != 1)
        lane.write_index[:] = manifest.model.condition.length + manifest.model.plan.length // 2
        lane.positions[:] = lane.write_index[:, None]
        lanes[nodes] = lane
    seconds: dict[int, list[float]] = {nodes: [] for nodes in lanes}
    for turn in range(_REPEATS + 1):
        for nodes, lane in lanes.items():
            before = lane.engine_seconds
            lane.run_target(1, ("logits", "ids"))
            if turn:  # the first one warms up
                seconds[nodes].append(lane.engine_seconds - before)
        note()
    return {nodes: 1e3 * statistics.median(taken) for nodes, taken in seconds.items()}
