"""The static tree that draws fastest on this machine.

From the measured probability that the k-th child of a node is accepted, and the measured cost of a round with N
nodes. The best tree of each size and depth comes from dynamic programming, as in Sequoia (arXiv 2402.12374): a node's
value is the expected number of accepted tokens below it, and acceptance depends on rank and depth alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ..runtime.errors import CascadeError
from ..runtime.tree import Tree, tree_from_paths

_SAME = 1e-12  # tokens: values that differ by less are equal, and the smaller share of nodes is taken


@dataclass(frozen=True)
class Choice:
    """A tree with what it promises: tau (tokens a round) and milliseconds a round."""

    tree: Tree
    tau: float
    milliseconds: float

    @property
    def tokens_per_second(self) -> float:
        return 1e3 * self.tau / self.milliseconds


@dataclass(frozen=True)
class _Table:
    """What the children of a node are worth, by the nodes that they share.

    value: float64 [nodes + 1]. used: int64 [ranks, nodes + 1], how many of n nodes go to child `rank` and below it,
    where the children before it have taken theirs.
    """

    value: np.ndarray
    used: np.ndarray


class Tables:
    """The best split of up to `nodes` nodes among the children at a level, by the levels that are left.

    shares float64 [depths, ranks], as `best_tree` takes them.
    """

    def __init__(self, shares: np.ndarray, nodes: int) -> None:
        self._shares, self._nodes = shares, nodes
        self._found: dict[tuple[int, int], _Table] = {}
        self._settled: int | None = None  # so many levels left, and more change nothing at the deepest level

    def of(self, level: int, left: int) -> _Table:
        """For the children of a node at `level`, which may have `left` levels below it."""
        last = len(self._shares) - 1
        for few in range(left if level < last else left + 1):  # from few levels to many: nothing is found recursively
            self._at(last, few)
        for here in range(last - 1, level - 1, -1):
            self._at(here, max(left - (here - level), 0))
        return self._at(level, left)

    def _at(self, level: int, left: int) -> _Table:
        last = len(self._shares) - 1
        level = min(level, last)
        if level == last and self._settled is not None:
            left = min(left, self._settled)
        left = min(left, self._nodes)
        if (level, left) not in self._found:
            below = None if left == 0 else self._at(level + 1, left - 1)
            self._found[level, left] = made = self._split(self._shares[level], below)
            if level == last and below is not None and np.array_equal(made.value, below.value):
                self._settled = left - 1
        return self._found[level, left]

    def _split(self, shares: np.ndarray, below: _Table | None) -> _Table:
        ranks, nodes = len(shares), self._nodes
        value, used = np.zeros(nodes + 1), np.zeros((ranks, nodes + 1), np.int64)
        if below is None:
            return _Table(value, used)
        for rank in range(ranks - 1, -1, -1):
            own = shares[rank] * (1 + below.value[:-1])  # [nodes]: with 1, 2, ... nodes
            rest = sliding_window_view(np.concatenate([np.full(nodes, -np.inf), value]), nodes)[: nodes + 1, ::-1]
            worth = own + rest  # [nodes + 1, nodes]: of n nodes 1, 2, ... for this child, the rest for those after it
            best = worth.max(axis=1)
            helps = best > _SAME
            used[rank] = np.where(helps, 1 + (worth >= best[:, None] - _SAME).argmax(axis=1), 0)
            value = np.where(helps, best, 0.0)
        return _Table(value, used)


def best_tree(
    shares: np.ndarray, nodes: int, depth: int, name: str, tables: Tables | None = None
) -> tuple[Tree, float]:
    """The tree with `nodes` drafted nodes and at most `depth` levels that has the highest expected tau, and that tau.

    shares float64 [depths, ranks]: how often the k-th child of a node at a depth is accepted; deeper nodes are
    taken to be like the deepest measured. `tables` are those of the shares for at least as many nodes, where several
    trees are asked for.
    """
    if not shares.size:
        raise CascadeError("nothing was measured: draw more images.")
    tables = tables or Tables(shares, nodes)
    paths: list[list[int]] = []
    ahead: list[tuple[list[int], int]] = [([], nodes)]  # nodes with children to find, and how many are below them
    while ahead:
        path, left = ahead.pop()
        used = tables.of(len(path), depth - len(path)).used
        for rank in range(shares.shape[1]):
            taken = int(used[rank, left])
            if not taken:
                break
            paths.append([*path, rank])
            ahead.append(([*path, rank], taken - 1))
            left -= taken
    if not paths:
        raise CascadeError("no draft was ever accepted: a tree cannot help here.")
    return tree_from_paths(name, paths), 1 + float(tables.of(0, depth).value[nodes])


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
    tables = Tables(shares, max(sizes(most_nodes))) if shares.size else None
    for nodes in sizes(most_nodes):
        candidates = []
        for depth in range(1, min(most_depth, nodes) + 1):
            tree, tau = best_tree(shares, nodes, depth, name, tables)
            if candidates and tau <= candidates[len(candidates) - 1].tau:
                break  # more levels change nothing
            candidates.append(Choice(tree, tau, cost(tree)))
        choices.append(max(candidates, key=lambda choice: choice.tokens_per_second))
    return sorted(choices, key=lambda choice: -choice.tokens_per_second)


def sizes(most: int) -> list[int]:
    """Every size up to 16, then in growing steps."""
    more = (20, 24, 28, 32, 40, 48, 56, 60, 63, 80, 96, 128, 192, 256, 384, 512, 768, 1023)
    return [n for n in (*range(1, 17), *more) if n <= most]
