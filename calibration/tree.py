"""The static tree that draws fastest on this machine.

From the measured probability that the k-th child of a node is accepted, and the measured cost of a round with N
nodes. The best tree of each size and depth comes from dynamic programming, as in Sequoia (arXiv 2402.12374): a node's
value is the expected number of accepted tokens below it, and acceptance depends on rank and depth alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from ..runtime.errors import CascadeError
from ..runtime.tree import Tree, tree_from_paths


@dataclass(frozen=True)
class Choice:
    """A tree with what it promises: tau (tokens a round) and milliseconds a round."""

    tree: Tree
    tau: float
    milliseconds: float

    @property
    def tokens_per_second(self) -> float:
        return 1e3 * self.tau / self.milliseconds


def best_tree(shares: np.ndarray, nodes: int, depth: int, name: str) -> tuple[Tree, float]:
    """The tree with `nodes` drafted nodes and at most `depth` levels that has the highest expected tau, and that tau.

    shares float64 [depths, ranks]: how often the k-th child of a node at a depth is accepted; deeper nodes are
    taken to be like the deepest measured.
    """
    if not shares.size:
        raise CascadeError("nothing was measured: draw more images.")
    ranks = shares.shape[1]

    def share(level: int, rank: int) -> float:
        return float(shares[min(level, len(shares) - 1), rank])

    @cache
    def best(level: int, rank: int, left: int) -> tuple[float, int]:
        """Value of children rank, rank + 1, ... at `level` with `left` nodes; and how many go to child `rank`."""
        if level == depth or rank == ranks or left == 0:
            return 0.0, 0
        found = (0.0, 0)
        for used in range(1, left + 1):
            below = best(level + 1, 0, used - 1)[0]
            value = share(level, rank) * (1 + below) + best(level, rank + 1, left - used)[0]
            if value > found[0] + 1e-12:
                found = value, used
        return found

    paths: list[list[int]] = []

    def collect(path: list[int], level: int, left: int) -> None:
        rank = 0
        while left:
            used = best(level, rank, left)[1]
            if not used:
                return
            paths.append([*path, rank])
            collect([*path, rank], level + 1, used - 1)
            rank, left = rank + 1, left - used

    collect([], 0, nodes)
    if not paths:
        raise CascadeError("no draft was ever accepted: a tree cannot help here.")
    return tree_from_paths(name, paths), 1 + best(0, 0, nodes)[0]


def expected_tau(tree: Tree, shares: np.ndarray) -> float:
    """Tokens a round that `tree` should reach under these shares."""
    reach = np.zeros(tree.size)
    reach[0] = 1.0
    for node, nodes in enumerate(tree.children):
        level = min(int(tree.depths[node]), len(shares) - 1)
        for rank, child in enumerate(nodes):
            reach[child] = reach[node] * (shares[level, rank] if rank < shares.shape[1] else 0.0)
    return float(reach.sum())


def choose_tree(
    shares: np.ndarray, cost: Callable[[Tree], float], most_nodes: int, most_depth: int, name: str
) -> list[Choice]:
    """The best tree of each number of drafted nodes, the fastest first; cost gives milliseconds a round."""
    choices: list[Choice] = []
    for nodes in sizes(most_nodes):
        candidates = []
        for depth in range(1, min(most_depth, nodes) + 1):
            tree, tau = best_tree(shares, nodes, depth, name)
            candidates.append(Choice(tree, tau, cost(tree)))
        choices.append(max(candidates, key=lambda choice: choice.tokens_per_second))
    return sorted(choices, key=lambda choice: -choice.tokens_per_second)


def sizes(most: int) -> list[int]:
    """Every size up to 16, then in growing steps."""
    return [n for n in (*range(1, 17), 20, 24, 28, 32, 40, 48, 56, 60, 63, 80, 96, 128) if n <= most]
