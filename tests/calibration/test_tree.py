"""The dynamic programme against trying every tree, and its prediction against a simulation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from cascade_trt.calibration.tree import best_tree, choose_tree, expected_tau, sizes
from cascade_trt.runtime.errors import CascadeError
from cascade_trt.runtime.tree import Tree, tree_from_branching

SHARES = np.array([[0.4, 0.2, 0.1], [0.3, 0.25, 0.05], [0.2, 0.1, 0.1]])


def every_tree(nodes: int) -> Iterator[Tree]:
    """All trees with this many drafted nodes: every node hangs under an earlier one."""

    def grow(parents: list[int]) -> Iterator[list[int]]:
        if len(parents) == nodes + 1:
            yield parents
            return
        for parent in range(max(parents[-1], 0), len(parents)):  # breadth-first order
            yield from grow([*parents, parent])

    for parents in grow([-1]):
        yield Tree("any", tuple(parents))


@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 5, 6])
def test_no_tree_is_better(nodes: int) -> None:
    tree, tau = best_tree(SHARES, nodes, nodes, "best")
    assert tau == pytest.approx(max(expected_tau(other, SHARES) for other in every_tree(nodes)))
    assert tau == pytest.approx(expected_tau(tree, SHARES))
    assert tree.size <= nodes + 1


@pytest.mark.parametrize(("share", "nodes", "depth"), [(0.95, 1023, 1023), (1.0, 1023, 400), (0.6, 1023, 12)])
def test_large_trees_are_found_at_once(share: float, nodes: int, depth: int) -> None:
    """The deepest that a call takes, too: they are chains beside each other where the first choice is so good."""
    tree, tau = best_tree(np.array([[share, (1 - share) / 2]] * 3), nodes, depth, "large")
    assert tree.size == nodes + 1 or share == 1
    assert tree.depth <= depth
    chain = sum(share**k for k in range(depth + 1))
    assert tau >= chain - 1e-9
    assert tau == pytest.approx(expected_tau(tree, np.array([[share, (1 - share) / 2]] * 3)))


def test_depth_is_respected() -> None:
    for depth in (1, 2, 3):
        tree, _ = best_tree(SHARES, 8, depth, "flat")
        assert tree.depth <= depth


def test_a_small_case_by_hand() -> None:
    """One level: tau = 1 + .4 + .2; a chain of two: 1 + .4 (1 + .3)."""
    assert expected_tau(tree_from_branching("flat", [[2]]), SHARES) == pytest.approx(1.6)
    assert expected_tau(tree_from_branching("chain", [[1], [1]]), SHARES) == pytest.approx(1.52)


def test_simulated_rounds_reach_the_predicted_tau() -> None:
    rng, tree = np.random.default_rng(0), tree_from_branching("t", [[3], [2, 1], [1]])
    tokens = 0
    for _ in range(40_000):
        node, tokens = 0, tokens + 1
        while tree.children[node]:
            shares = SHARES[int(tree.depths[node]), : len(tree.children[node])]
            rank = rng.choice(len(shares) + 1, p=[*shares, 1 - shares.sum()])
            if rank == len(shares):
                break
            node, tokens = tree.children[node][rank], tokens + 1
    assert tokens / 40_000 == pytest.approx(expected_tau(tree, SHARES), abs=0.02)


def test_cheap_nodes_make_large_trees() -> None:
    flat = choose_tree(SHARES, lambda _: 10.0, 20, 5, "gpu")[0]
    steep = choose_tree(SHARES, lambda tree: 1.0 + 5.0 * tree.size, 20, 5, "cpu")[0]
    assert flat.tree.size > 10 > steep.tree.size
    assert flat.tokens_per_second == pytest.approx(100 * flat.tau)


def test_nothing_accepted() -> None:
    with pytest.raises(CascadeError, match="no draft was ever accepted"):
        best_tree(np.zeros((2, 2)), 4, 2, "none")
    with pytest.raises(CascadeError, match="nothing was measured"):
        best_tree(np.zeros((0, 0)), 4, 2, "none")


def test_sizes() -> None:
    assert sizes(5) == [1, 2, 3, 4, 5]
    assert sizes(63)[-1] == 63
