from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade_trt.runtime.errors import CascadeError
from cascade_trt.runtime.tree import TREE_NAMES, Tree, get_tree, tree_from_branching, tree_from_paths

# Nodes, the root included, and nodes for each depth, as published (EAGLE and LANTERN's tree choices).
PUBLISHED = {
    "chain": [1, 1, 1, 1, 1],
    "mc_sim_7b_63": [4, 8, 8, 3, 2],
    "mc_sim_7b_63_balanced": [3, 8, 9, 3, 2],
    "reverse_balanced_25": [3, 4, 6, 5, 7],
    "naive_extend_57": [5, 13, 16, 14, 9],
}


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    levels, width = [], 1
    for _ in range(draw(st.integers(1, 4))):
        counts = draw(st.lists(st.integers(0, 3), min_size=width, max_size=width).filter(any))
        levels.append(counts)
        width = sum(counts)
    return tree_from_branching("drawn", levels)


@given(trees())
def test_paths_and_back(tree: Tree) -> None:
    assert tree_from_paths("drawn", tree.paths()).parents == tree.parents


@given(trees())
def test_constants_agree(tree: Tree) -> None:
    for node in range(1, tree.size):
        parent = tree.parents[node]
        assert parent < node  # so that an accepted path increases
        assert tree.depths[node] == tree.depths[parent] + 1
        assert node in tree.children[parent]
        expected = tree.ancestors[parent].copy()
        expected[node] = True
        np.testing.assert_array_equal(tree.ancestors[node], expected)
    assert tree.internal == tuple(n for n in range(tree.size) if tree.children[n])
    assert tree.depth == max(map(len, tree.paths()))
    assert (tree.ancestors.sum(1) == tree.depths + 1).all()


@pytest.mark.parametrize("name", TREE_NAMES)
def test_named_trees(name: str) -> None:
    tree = get_tree(name)
    assert tree.name == name
    if name in PUBLISHED:
        assert np.bincount(tree.depths)[1:].tolist() == PUBLISHED[name]


def test_json_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps([[0, 0], [1], [0]]))
    tree = get_tree(str(file))
    assert tree == Tree("mine", (-1, 0, 0, 1))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[[0, 0]]", "not its parent"),
        ("[[1]]", "sibling before"),
        ("[]", "non-empty"),
        ("[[]]", "non-empty"),
        ('[["a"]]', "non-empty"),
        ("{", "not JSON"),
        ("[0]", "list of paths"),
        ("3", "list of paths"),
    ],
)
def test_bad_json(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "bad.json"
    file.write_text(content)
    with pytest.raises(CascadeError, match=message):
        get_tree(str(file))


def test_a_folder_is_no_tree(tmp_path: Path) -> None:
    (tmp_path / "tree.json").mkdir()
    with pytest.raises(CascadeError, match=r"tree\.json cannot be read .*check the path"):
        get_tree(str(tmp_path / "tree.json"))


@pytest.mark.parametrize("spec", ["nothing", "nothing.json", ""])
def test_unknown_tree(spec: str) -> None:
    with pytest.raises(CascadeError):
        get_tree(spec)
