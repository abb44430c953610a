"""Draft trees: which continuations one target call verifies, and where each of their tokens comes from.

A tree is a list of nodes in breadth-first order; node 0 is the root, the last token that is already decided.
A node's source is `eagle` (the draft engine: the k-th such child of a node is the drafter's k-th choice there) or
`jacobi` (what the target drew at that position in the round before). Everything that verification needs (parents,
depths, ancestor mask) is a constant of a static tree; a dynamic one is chosen in each round.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from .errors import CascadeError
from .nearest import meant
from .tree_file import read_tree_file

# Children of each node, level by level in breadth-first order; nodes left out at the end have none.
# The first three are published trees of EAGLE, LANTERN and LANTERN++; the small ones suit a CPU, where the cost of
# verifying grows with every node.
_BRANCHING: dict[str, list[list[int]]] = {
    "chain": [[1], [1], [1], [1], [1]],
    "mc_sim_7b_63": [[4], [3, 2, 2, 1], [3, 2, 2, 1], [3], [2]],
    "naive_extend_57": [
        [5], [4, 3, 3, 2, 1], [4, 3, 3, 2, 2, 1, 0, 1], [4, 3, 2, 1, 2, 1, 0, 1], [3, 2, 0, 0, 2, 1, 0, 1],
    ],
    "pair_4": [[2], [1, 1]],
    "deep_5": [[2], [1], [1], [1]],
    "small_6": [[2], [2], [1]],
    "small_9": [[3], [2, 1], [1], [1]],
}  # fmt: skip

# Nodes (root included), levels, width of the published dynamic tree, EAGLE-2's own.
_DYNAMIC: dict[str, tuple[int, int, int]] = {"eagle2_60": (60, 7, 10)}
_NUMBER = "(0|[1-9][0-9]{0,8})"  # ASCII, one way to write each
_DYNAMIC_SPEC = re.compile(rf"dynamic_{_NUMBER}x{_NUMBER}x{_NUMBER}")
_CHAIN_SPEC = re.compile(rf"(chain|jacobi|mixed)_{_NUMBER}(?:x{_NUMBER})?")

EAGLE, JACOBI = "eagle", "jacobi"
SOURCES = (EAGLE, JACOBI)
MOST_NODES = 1024  # of a target call, and so of a tree
MOST_RIVALS = 2  # guesses of one position: what the target drew there, and what came second
AUTO, NO_TREE = "auto", "none"  # no trees: what chooses among them, and plain decoding

STATIC_NAMES: tuple[str, ...] = tuple(_BRANCHING)
TREE_NAMES: tuple[str, ...] = (*_BRANCHING, *_DYNAMIC)
TREE_FORMS: dict[str, str] = {  # names with numbers in them
    "chain_W": "W drafted nodes, one behind the other",
    "jacobi_W": "W guesses of the round before, one behind the other",
    "jacobi_WxV": "the same, with a second chain of V guesses beside it",
    "mixed_W": "one drafted node, then guesses, W in all",
    "mixed_WxV": "the same, with a second chain of V guesses beside it",
    "dynamic_NxLxW": "N nodes with the root, chosen anew in each round from L drafted levels of width W",
}


@dataclass(frozen=True)
class Tree:
    """A static tree. `parents[n]` is the parent of node n (-1 for the root); breadth-first, siblings adjacent.

    `sources[n]` is where node n's token comes from, that of the root without meaning; empty where the drafter drafts
    every node. A drafted node's parent is drafted, or the root. Raises CascadeError for sources that do not fit.
    """

    name: str
    parents: tuple[int, ...]
    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.sources:
            return
        if len(self.sources) != self.size or not set(self.sources[1:]) <= set(SOURCES):
            raise CascadeError(f"tree {self.name!r} must give each node one of the sources {', '.join(SOURCES)}.")
        for node in self.guessed:
            if any(self.sources[child] == EAGLE for child in self.children[node]):
                raise CascadeError(
                    f"tree {self.name!r} drafts a node behind a guess, which the drafter does not know: drafted nodes "
                    "must follow the root or drafted ones."
                )
        for nodes in self.children:
            if sum(self.sources[child] == JACOBI for child in nodes) > MOST_RIVALS:
                raise CascadeError(
                    f"tree {self.name!r} has a node with more than {MOST_RIVALS} guesses behind it: a round leaves no "
                    "more of one position."
                )

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
    def distributions(self) -> int:
        """How many distributions of the drafter a round leaves: one for each node with children."""
        return len(self.internal)

    @cached_property
    def guessed(self) -> tuple[int, ...]:
        """Nodes whose token comes from the round before."""
        return tuple(node for node in range(1, len(self.sources)) if self.sources[node] == JACOBI)

    @cached_property
    def drafted_nodes(self) -> tuple[int, ...]:
        """The root and the nodes that the drafter drafts."""
        return tuple(node for node in range(self.size) if node not in self.guessed)

    @cached_property
    def drafted(self) -> Tree | None:
        """The part that the drafter drafts, its node i being `drafted_nodes[i]`; None where that is nothing."""
        if len(self.drafted_nodes) == 1:
            return None
        if not self.guessed:
            return self
        number = {node: i for i, node in enumerate(self.drafted_nodes)}
        parents = tuple(number[self.parents[node]] for node in self.drafted_nodes[1:])
        levels = len(parents)
        name = f"chain_{levels}" if parents == tuple(range(levels)) else f"{self.name}-drafted"
        return Tree(name, (-1, *parents))

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

    @cached_property
    def has_siblings(self) -> bool:
        """Whether some node has several children."""
        return any(len(nodes) > 1 for nodes in self.children)

    @cached_property
    def has_rivals(self) -> bool:
        """Whether some guess has a sibling, so that what came second may be guessed, too."""
        return any(len(nodes) > 1 and not set(nodes).isdisjoint(self.guessed) for nodes in self.children)

    @cached_property
    def continuations(self) -> np.ndarray:
        """int64 [N, depth]: the nodes behind which the next tokens were drawn, seen from where a walk ended.

        For a walk that ended at node v, entry k is the node whose draw is a guess of the (k + 1)-th token after the
        walk's last: the first descendants of v, where they end the first node of that depth; -1 below the deepest.
        """
        found = np.full((self.size, self.depth), -1, np.int64)
        first = [int(np.argmax(self.depths == depth)) for depth in range(self.depth + 1)]
        for end in range(self.size):
            node = end
            for k, depth in enumerate(range(int(self.depths[end]) + 1, self.depth + 1)):
                node = self.children[node][0] if node >= 0 and self.children[node] else -1
                found[end, k] = node if node >= 0 else first[depth]
        return found

    @cached_property
    def lines(self) -> tuple[tuple[int, ...], ...]:
        """Each node's ancestors from the root on, itself the last."""
        lines: list[tuple[int, ...]] = [(0,)]
        for node in range(1, self.size):
            lines.append((*lines[self.parents[node]], node))
        return tuple(lines)

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

    guessed: ClassVar[tuple[int, ...]] = ()

    @property
    def has_siblings(self) -> bool:
        """Whether some node may have several children."""
        return self.width > 1

    @property
    def drafted(self) -> DynamicTree:
        """The part that the drafter drafts: all of it."""
        return self

    @property
    def distributions(self) -> int:
        """How many distributions of the drafter a round leaves: the root's and those of the expanded nodes."""
        return 1 + self.width * (self.depth - 1)

    @property
    def candidates(self) -> int:
        """How many nodes a round drafts, to keep size - 1 of them."""
        return self.width * self.distributions


AnyTree = Tree | DynamicTree
ROOT = Tree(NO_TREE, (-1,))  # plain decoding


def same_shape(one: AnyTree, other: AnyTree) -> bool:
    """Whether two trees are the same but for their names."""
    return replace(one, name=other.name) == other


def dynamic_tree(name: str, size: int, depth: int, width: int) -> DynamicTree:
    """Raises CascadeError when a number is too small, or there are fewer candidates than nodes."""
    tree = DynamicTree(name, size, depth, width)
    if min(depth, width) < 1 or size < 2:
        raise CascadeError(f"tree {name!r} needs at least 2 nodes, 1 level and width 1.")
    if max(size, depth * width) > MOST_NODES:
        raise CascadeError(f"tree {name!r} must have at most {MOST_NODES} nodes, and expand as many in all.")
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


def is_tree(parents: Sequence[int]) -> bool:
    """Whether `parents` are those of a tree in breadth-first order, siblings adjacent."""
    if not parents or parents[0] != -1 or any(not 0 <= parent < node for node, parent in enumerate(parents) if node):
        return False
    return list(parents) == sorted(parents)


def chains(name: str, lengths: Sequence[int], first: str) -> Tree:
    """Chains of guesses beside each other; the first node of the first chain has the source `first`, all others are
    Jacobi's. Raises CascadeError for a chain of no nodes, and for one that is longer than the chain before it."""
    if min(lengths) < 1 or list(lengths) != sorted(lengths, reverse=True):
        raise CascadeError(f"tree {name!r} needs chains of at least one node, the second not longer than the first.")
    paths = [[rank, *[0] * more] for rank, length in enumerate(lengths) for more in range(length)]
    return tree_from_paths(name, paths, [first if path == [0] else JACOBI for path in paths])


def tree_from_paths(name: str, paths: Sequence[Sequence[int]], sources: Sequence[str] = ()) -> Tree:
    """The tree that holds `paths`, each a list of child indices from the root, like EAGLE's tree choices, with the
    source of each path's node (none: all are drafted).

    Raises CascadeError when a path is empty or comes twice with two sources, a prefix is missing, or a node's children
    skip an index.
    """
    if not paths or not all(path and all(type(k) is int and k >= 0 for k in path) for path in paths):
        raise CascadeError(
            f"tree {name!r} must be a non-empty list of paths, each a list of child indices such as [0, 1]."
        )
    if max(len(paths), *map(len, paths)) >= MOST_NODES:
        raise CascadeError(f"tree {name!r} must have fewer than {MOST_NODES} nodes behind the root.")
    unique: set[tuple[int, ...]] = {tuple(path) for path in paths}
    for path in unique:
        parent, last = path[:-1], path[len(path) - 1]
        if parent and parent not in unique:
            raise CascadeError(f"tree {name!r} holds the path {list(path)} but not its parent {list(parent)}.")
        if last > 0 and (*parent, last - 1) not in unique:
            raise CascadeError(f"tree {name!r} holds the path {list(path)} but not the sibling before it.")
    order = sorted(unique, key=lambda path: (len(path), path))
    index: dict[tuple[int, ...], int] = {(): 0} | {path: node for node, path in enumerate(order, start=1)}
    parents = (-1, *(index[path[:-1]] for path in order))
    if all(source == EAGLE for source in sources):
        return Tree(name, parents)
    source_of: dict[tuple[int, ...], str] = {}
    for path, source in zip(map(tuple, paths), sources, strict=True):
        if source_of.setdefault(path, source) != source:
            raise CascadeError(f"tree {name!r} gives the node {list(path)} two sources.")
    return Tree(name, parents, (EAGLE, *(source_of[path] for path in order)))


def get_tree(spec: str, words: Sequence[str] = ()) -> AnyTree:
    """A tree by name or spec, or a JSON file that lists its nodes. `words` are what else the caller takes.

    Specs: `chain_W` (W drafted nodes one behind the other), `jacobi_W` (guesses instead), `mixed_W` (one drafted node,
    then guesses), `jacobi_WxV` and `mixed_WxV` (with a second chain of V guesses beside the first), `dynamic_NxLxW`
    (nodes with the root, levels, width). Raises CascadeError for anything else.
    """
    if spec in _DYNAMIC:
        return dynamic_tree(spec, *_DYNAMIC[spec])
    if found := _DYNAMIC_SPEC.fullmatch(spec):
        return dynamic_tree(spec, *map(int, found.groups()))
    if spec in _BRANCHING:
        return tree_from_branching(spec, _BRANCHING[spec])
    if (found := _CHAIN_SPEC.fullmatch(spec)) and (tree := _chain_of(spec, *found.groups())) is not None:
        return tree
    if (path := Path(spec)).suffix == ".json":
        return _tree_of_file(path)
    raise CascadeError(
        f"unknown tree {spec!r}{meant(spec, _near(spec, words))}: choose one of {', '.join(TREE_NAMES)}, one of "
        f"{', '.join(TREE_FORMS)} with numbers in place of the capitals, or a .json file that lists its paths."
    )


def _near(spec: str, words: Sequence[str]) -> list[str]:
    """Names that a misspelt one may mean: the named trees, and every form with its numbers, where that is one."""
    numbers = [number.lstrip("0") or "0" for number in re.findall("[0-9]+", spec)]
    forms = [form for form in TREE_FORMS if len(re.findall("[A-Z]", form)) == len(numbers)]
    spelt = [re.sub("[A-Z]", "%s", form) % tuple(numbers) for form in forms]
    return [*TREE_NAMES, *words, *filter(_is_name, spelt)]


def _is_name(spec: str) -> bool:
    """Whether a form with its numbers filled in is a tree."""
    found = _DYNAMIC_SPEC.fullmatch(spec) or _CHAIN_SPEC.fullmatch(spec)
    try:
        return found is not None and get_tree(spec) is not None
    except CascadeError:
        return False


def _chain_of(spec: str, kind: str, length: str, second: str | None) -> Tree | None:
    """`chain_W`, `jacobi_W`, ...; None for what none of them is called."""
    if not 1 <= int(length) + int(second or 0) < MOST_NODES:
        raise CascadeError(f"tree {spec!r} needs from 1 to {MOST_NODES - 1} nodes behind the root.")
    if kind == "chain":
        return None if second is not None else tree_from_branching(spec, [[1]] * int(length))
    lengths = [int(length)] if second is None else [int(length), int(second)]
    return chains(spec, lengths, EAGLE if kind == "mixed" else JACOBI)


def _tree_of_file(path: Path) -> Tree:
    """The tree that a JSON file lists, named after the file."""
    paths, sources = read_tree_file(path, SOURCES)
    tree = tree_from_paths(path.stem, paths, sources)
    if tree.name in (AUTO, NO_TREE) or _is_taken(tree):
        raise CascadeError(f"{path} is called as a tree of another shape is: name the file otherwise.")
    return tree


def _is_taken(tree: Tree) -> bool:
    """Whether the tree's name means another tree."""
    try:
        known = get_tree(tree.name)
    except CascadeError:
        return False
    return known != tree
