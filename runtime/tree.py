"""Draft trees: which continuations one target call verifies.

A tree is a list of nodes in breadth-first order; node 0 is the root, the last token that is already decided.
The k-th child of a node is the drafter's k-th choice there. Everything that verification needs (parents,
depths, ancestor mask) is a constant of a static tree; a dynamic one is chosen in each round.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from .errors import CascadeError

# Children of each node, level by level in breadth-first order; nodes left out at the end have none.
# The first five are the published trees of EAGLE, LANTERN and LANTERN++; the small ones suit a CPU, where the
# cost of verifying grows with every node.
_BRANCHING: dict[str, list[list[int]]] = {
    "chain": [[1], [1], [1], [1], [1]],
    "mc_sim_7b_63": [[4], [3, 2, 2, 1], [3, 2, 2, 1], [3], [2]],
    "mc_sim_7b_63_balanced": [[3], [3, 3, 2], [3, 2, 0, 2, 2], [3], [2]],
    "reverse_balanced_25": [[3], [2, 1, 1], [3, 2, 1], [3, 2], [4, 3]],
    "naive_extend_57": [
        [5], [4, 3, 3, 2, 1], [4, 3, 3, 2, 2, 1, 0, 1], [4, 3, 2, 1, 2, 1, 0, 1], [3, 2, 0, 0, 2, 1, 0, 1],
    ],
    "chain_2": [[1], [1]],
    "chain_3": [[1], [1], [1]],
    "chain_7": [[1]] * 7,
    "pair_3": [[2], [1]],
    "pair_4": [[2], [1, 1]],
    "deep_5": [[2], [1], [1], [1]],
    "deep_7": [[2], [1], [1], [1], [1], [1]],
    "small_6": [[2], [2], [1]],
    "small_9": [[3], [2, 1], [1], [1]],
    "small_12": [[3], [2, 1, 1], [2], [1], [1]],
}  # fmt: skip

# Nodes (root included), levels, width of the published dynamic trees: EAGLE-2's own and LANTERN's LlamaGen setting.
_DYNAMIC: dict[str, tuple[int, int, int]] = {"eagle2_60": (60, 7, 10), "eagle2_59": (59, 5, 10)}
_DYNAMIC_SPEC = re.compile(r"dynamic_(\d+)x(\d+)x(\d+)")

STATIC_NAMES: tuple[str, ...] = tuple(_BRANCHING)
TREE_NAMES: tuple[str, ...] = (*_BRANCHING, *_DYNAMIC)


@dataclass(frozen=True)
class Tree:
    """A static tree. `parents[n]` is the parent of node n (-1 for the root); breadth-first, siblings adjacent."""

    name: str
    parents: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of nodes N, the root included."""
        return len(self.parents)

    @cached_property
    def depths(self) -> np.ndarray:
        """int64 [N]: 0 for the root."""
        depths = np.zeros(self.size, np.int64)
        for node in range(1, self.size):
            depths[node] = depths[self.parents[node]] + 1
        return depths

    @property
    def depth(self) -> int:
        """Most tokens that one round can accept from the tree (the bonus token not counted)."""
        return int(self.depths[-1])

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """Children of every node, the drafter's first choice first."""
        found: list[list[int]] = [[] for _ in self.parents]
        for node in range(1, self.size):
            found[self.parents[node]].append(node)
        return tuple(tuple(nodes) for nodes in found)

    @cached_property
    def internal(self) -> tuple[int, ...]:
        """Nodes with children, in node order: those where the drafter is run."""
        return tuple(node for node, nodes in enumerate(self.children) if nodes)

    @property
    def laws(self) -> int:
        """How many laws of the drafter a round leaves: one for each node with children."""
        return len(self.internal)

    @cached_property
    def ancestors(self) -> np.ndarray:
        """bool [N, N]: row n marks the nodes that node n sees, itself included."""
        mask = np.eye(self.size, dtype=bool)
        for node in range(1, self.size):
            mask[node] |= mask[self.parents[node]]
        return mask

    @cached_property
    def heights(self) -> tuple[int, ...]:
        """Levels below every node: 0 for a leaf."""
        heights = [0] * self.size
        for node in range(self.size - 1, 0, -1):
            parent = self.parents[node]
            heights[parent] = max(heights[parent], heights[node] + 1)
        return tuple(heights)

    def paths(self) -> list[list[int]]:
        """Child indices from the root to each node (the root left out), the form EAGLE's choices have."""
        paths: list[list[int]] = [[]]
        for node in range(1, self.size):
            parent = self.parents[node]
            paths.append([*paths[parent], self.children[parent].index(node)])
        return paths[1:]


@dataclass(frozen=True)
class DynamicTree:
    """A tree that the draft graph chooses anew in each round (EAGLE-2, arXiv 2406.16858, section 4).

    Each level but the last expands the `width` likeliest nodes of the level above it, `width` children each; of all
    that was drafted the `size` - 1 likeliest are kept (`size`, N, counts the root). A node's likelihood is the product
    of the drafter's probabilities on its path, so a kept node's parent is kept.
    """

    name: str
    size: int
    depth: int
    width: int

    @property
    def laws(self) -> int:
        """How many laws of the drafter a round leaves: the root's and those of the expanded nodes."""
        return 1 + self.width * (self.depth - 1)

    @property
    def candidates(self) -> int:
        """How many nodes a round drafts, to keep size - 1 of them."""
        return self.width * self.laws


AnyTree = Tree | DynamicTree


def dynamic_tree(name: str, size: int, depth: int, width: int) -> DynamicTree:
    """Raises CascadeError when a number is too small, or there are fewer candidates than nodes."""
    tree = DynamicTree(name, size, depth, width)
    if min(depth, width) < 1 or size < 2:
        raise CascadeError(f"tree {name!r} needs at least 2 nodes, 1 level and width 1.")
    if size - 1 > tree.candidates:
        raise CascadeError(
            f"tree {name!r} drafts {tree.candidates} candidates, fewer than its {size - 1} nodes behind the root: "
            "ask for fewer nodes, more levels or more width."
        )
    return tree


def tree_from_branching(name: str, levels: Sequence[Sequence[int]]) -> Tree:
    """The tree whose node i of level d has levels[d][i] children."""
    parents, frontier = [-1], [0]
    for counts in levels:
        following: list[int] = []
        for node, count in zip(frontier, counts, strict=False):
            following.extend(range(len(parents), len(parents) + count))
            parents.extend([node] * count)
        frontier = following
    return Tree(name, tuple(parents))


def tree_from_paths(name: str, paths: Sequence[Sequence[int]]) -> Tree:
    """The tree that holds `paths`, each a list of child indices from the root, like EAGLE's tree choices.

    Raises CascadeError when a path is empty, a prefix is missing, or a node's children skip an index.
    """
    unique: set[tuple[int, ...]] = {tuple(path) for path in paths}
    if not unique or () in unique or any(not isinstance(k, int) or k < 0 for path in unique for k in path):
        raise CascadeError(
            f"tree {name!r} must be a non-empty list of paths, each a list of child indices such as [0, 1]."
        )
    for path in unique:
        parent, last = path[:-1], path[len(path) - 1]
        if parent and parent not in unique:
            raise CascadeError(f"tree {name!r} holds the path {list(path)} but not its parent {list(parent)}.")
        if last > 0 and (*parent, last - 1) not in unique:
            raise CascadeError(f"tree {name!r} holds the path {list(path)} but not the sibling before it.")
    order = sorted(unique, key=lambda path: (len(path), path))
    index: dict[tuple[int, ...], int] = {(): 0} | {path: node for node, path in enumerate(order, start=1)}
    return Tree(name, (-1, *(index[path[:-1]] for path in order)))


def get_tree(spec: str) -> AnyTree:
    """A tree by name, `dynamic_NxLxW` (nodes with the root, levels, width), or a JSON file that lists its paths.

    Raises CascadeError for anything else.
    """
    if spec in _DYNAMIC:
        return dynamic_tree(spec, *_DYNAMIC[spec])
    if found := _DYNAMIC_SPEC.fullmatch(spec):
        return dynamic_tree(spec, *map(int, found.groups()))
    if spec in _BRANCHING:
        return tree_from_branching(spec, _BRANCHING[spec])
    path = Path(spec)
    if path.suffix == ".json":
        try:
            paths = json.loads(path.read_text())
        except FileNotFoundError:
            raise CascadeError(f"there is no tree file {spec}: give a JSON list of paths.") from None
        except OSError as error:
            raise CascadeError(f"the tree file {spec} cannot be read ({error.strerror}): check the path.") from None
        except ValueError as error:
            raise CascadeError(f"{spec} is not JSON ({error}): give a list of paths such as [[0], [0, 0]].") from None
        if not isinstance(paths, list) or not all(isinstance(p, list) for p in paths):
            raise CascadeError(f"{spec} must hold a list of paths such as [[0], [1], [0, 0]].")
        return tree_from_paths(path.stem, paths)
    raise CascadeError(
        f"unknown tree {spec!r}: choose one of {', '.join(TREE_NAMES)}, dynamic_NxLxW (nodes, levels, width), or a "
        ".json file that lists its paths."
    )
