"""EAGLE-2's choice of a dynamic tree as its paper tells it, in numpy: what graphs are compared with."""

from __future__ import annotations

import numpy as np

from cascade_trt.runtime.tree import DynamicTree


def choose(
    tree: DynamicTree, distributions: np.ndarray, noise: np.ndarray, forced: np.ndarray
) -> list[tuple[float, int, int, int]]:
    """(score, token, distribution, depth) of the kept nodes, from distributions [I, V], noise [L + 1, V] and forced [L]
    (-1: drawn).

    Which node an expanded distribution belongs to follows from those before it. A forced token is certain, its copies
    stand behind everything else, and so does what hangs on a copy.
    """
    candidates, beams = [], [(0.0, 0)]
    for level in range(tree.depth):
        found = []
        for score, row in beams:
            ranked = distributions[row] + noise[level]
            logs = ranked - np.logaddexp.reduce(ranked)
            best = np.argsort(-logs, kind="stable")[: tree.width]
            if forced[level] >= 0:
                children = [(-1e-4 if rank == 0 else -1e20, int(forced[level])) for rank in range(tree.width)]
            else:
                children = [(min(float(logs[token]), -1e-4), int(token)) for token in best]
            found += [(2 * score if score < -1e19 else score + own, token, row, level + 1) for own, token in children]
        order = sorted(sorted(range(len(found)), key=lambda i: -found[i][0])[: tree.width])
        first = 1 + tree.width * level
        beams = [(found[i][0], first + place) for place, i in enumerate(order)]
        candidates += found
    order = sorted(sorted(range(len(candidates)), key=lambda i: -candidates[i][0])[: tree.size - 1])
    return [candidates[i] for i in order]
