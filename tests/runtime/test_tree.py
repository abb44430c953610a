"""Trees: names, specs and files, and what follows from parents and sources."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from tree_cases import trees, trees_with_guesses

from cascade_trt.runtime.bundle import TreeInfo
from cascade_trt.runtime.errors import CascadeError
from cascade_trt.runtime.tree import (
    EAGLE,
    JACOBI,
    TREE_NAMES,
    DynamicTree,
    Tree,
    chains,
    get_tree,
    tree_from_branching,
    tree_from_paths,
)

# Nodes, the root included, and nodes for each depth, as published (EAGLE and LANTERN's tree choices).
PUBLISHED = {
    "chain": [1, 1, 1, 1, 1],
    "mc_sim_7b_63": [4, 8, 8, 3, 2],
    "naive_extend_57": [5, 13, 16, 14, 9],
}


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


@given(trees_with_guesses())
def test_what_the_drafter_drafts(tree: Tree) -> None:
    """The root and the nodes with its source, under the same parents; Jacobi's follow them, never the other way."""
    own = [node for node in range(1, tree.size) if tree.sources[node] == EAGLE]
    assert tree.drafted_nodes == (0, *own)
    assert tree.guessed == tuple(sorted(set(range(1, tree.size)) - set(own)))
    if not own:
        assert tree.drafted is None
        return
    drafted = tree.drafted
    assert drafted is not None and drafted.size == len(own) + 1 and not drafted.guessed
    for number, node in enumerate(own, start=1):
        parent = tree.parents[node]
        assert tree.drafted_nodes[drafted.parents[number]] == parent
        of_drafter = [child for child in tree.children[parent] if child in own]
        assert drafted.children[drafted.parents[number]].index(number) == of_drafter.index(node)  # the k-th choice
    is_chain = all(len(nodes) <= 1 for nodes in drafted.children)
    assert (drafted.name == f"chain_{drafted.depth}") == is_chain or not tree.guessed
    assert drafted.drafted is drafted


@given(trees_with_guesses())
def test_lines_run_from_the_root_to_the_node(tree: Tree) -> None:
    for node, line in enumerate(tree.lines):
        assert line[0] == 0 and line[-1] == node
        assert list(line) == np.flatnonzero(tree.ancestors[node]).tolist()


@given(trees_with_guesses())
def test_rivals_are_guesses_beside_another_node(tree: Tree) -> None:
    guessed_beside = [node for node in tree.guessed if tree.parents.count(tree.parents[node]) > 1]
    assert tree.has_rivals == bool(guessed_beside)


@given(trees_with_guesses())
def test_continuations_are_first_descendants_else_the_first_node_of_a_level(tree: Tree) -> None:
    """Written out by paths: behind the path of a walk's last node come zeros."""
    paths = [(), *map(tuple, tree.paths())]
    level = [min(node for node, path in enumerate(paths) if len(path) == depth) for depth in range(tree.depth + 1)]
    assert tree.continuations.shape == (tree.size, tree.depth)
    for end, path in enumerate(paths):
        for k, found in enumerate(tree.continuations[end].tolist()):
            depth, first = len(path) + 1 + k, (*path, *[0] * (k + 1))
            wanted = -1 if depth > tree.depth else paths.index(first) if first in paths else level[depth]
            assert found == wanted


@given(trees_with_guesses())
def test_files_and_manifests_keep_sources(tmp_path_factory: pytest.TempPathFactory, tree: Tree) -> None:
    """A file may list its nodes in any order."""
    file = tmp_path_factory.mktemp("trees") / "own.json"
    nodes = [{"path": path, "source": source} for path, source in zip(tree.paths(), tree.sources[1:], strict=True)]
    file.write_text(json.dumps(nodes[::-1]))
    read = get_tree(str(file))
    assert isinstance(read, Tree) and (read.name, read.parents) == ("own", tree.parents)
    assert read.guessed == tree.guessed and read.drafted_nodes == tree.drafted_nodes
    assert bool(read.sources) == bool(tree.guessed)  # none are kept where all nodes are drafted
    info = TreeInfo.of(tree, None)
    assert info.tree() == tree
    assert TreeInfo(**json.loads(json.dumps(vars(info)))) == info


@pytest.mark.parametrize(
    ("spec", "parents", "guessed"),
    [
        ("chain_3", (-1, 0, 1, 2), ()), ("jacobi_3", (-1, 0, 1, 2), (1, 2, 3)), ("mixed_3", (-1, 0, 1, 2), (2, 3)),
        ("mixed_1", (-1, 0), ()), ("jacobi_3x2", (-1, 0, 0, 1, 2, 3), (1, 2, 3, 4, 5)),
        ("mixed_3x1", (-1, 0, 0, 1, 3), (2, 3, 4)), ("mixed_1x1", (-1, 0, 0), (2,)),
    ],
)  # fmt: skip
def test_chains_by_spec(spec: str, parents: tuple[int, ...], guessed: tuple[int, ...]) -> None:
    tree = get_tree(spec)
    assert isinstance(tree, Tree) and (tree.name, tree.parents, tree.guessed) == (spec, parents, guessed)
    assert tree.has_rivals == (spec[-2] == "x")


@pytest.mark.parametrize(
    ("spec", "engine"), [("mixed_32", "chain_1"), ("mixed_20x4", "chain_1"), ("chain_7", "chain_7")]
)
def test_trees_that_draft_the_same_share_an_engine(spec: str, engine: str) -> None:
    drafted = get_tree(spec).drafted
    assert drafted == tree_from_branching(engine, [[1]] * drafted.depth) and drafted.name == engine


def test_a_dynamic_tree_drafts_all_its_nodes() -> None:
    tree = get_tree("dynamic_9x4x3")
    assert isinstance(tree, DynamicTree) and tree.drafted is tree and not tree.guessed


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("jacobi_0", "from 1 to 1023"), ("mixed_10000", "from 1 to 1023"), ("chain_0", "from 1 to 1023"),
        ("jacobi_2x3", "the second not longer than"), ("mixed_2x0", "at least one node"), ("chain_2x1", "unknown tree"),
        ("jacobi_", "unknown tree"), ("jacobi_2x2x2", "unknown tree"), ("mixed_-3", "unknown tree"),
    ],
)  # fmt: skip
def test_specs_that_name_no_tree(spec: str, message: str) -> None:
    with pytest.raises(CascadeError, match=message):
        get_tree(spec)


def test_sources_that_do_not_fit() -> None:
    with pytest.raises(CascadeError, match="drafts a node behind a guess"):
        Tree("t", (-1, 0, 1), (EAGLE, JACOBI, EAGLE))
    with pytest.raises(CascadeError, match="more than 2 guesses behind it"):
        Tree("t", (-1, 0, 0, 0), (EAGLE, JACOBI, JACOBI, JACOBI))
    with pytest.raises(CascadeError, match="one of the sources eagle, jacobi"):
        Tree("t", (-1, 0), (EAGLE, "oak"))
    with pytest.raises(CascadeError, match="one of the sources"):
        Tree("t", (-1, 0, 1), (EAGLE, EAGLE))
    with pytest.raises(CascadeError, match=r"gives the node \[0\] two sources"):
        tree_from_paths("t", [[0], [0]], [EAGLE, JACOBI])
    with pytest.raises(CascadeError, match="the second not longer"):
        chains("t", [1, 2], JACOBI)
    assert tree_from_paths("t", [[0], [1], [2]], [EAGLE, JACOBI, JACOBI]).guessed == (2, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[[0, 0]]", "not its parent"),
        ("[[1]]", "sibling before"),
        ("[]", "non-empty"),
        ("[[]]", "non-empty"),
        ('[["a"]]', "non-empty"),
        ("{", "not JSON"),
        ('[{"path": [0], "path": [0], "source": "eagle"}]', "cannot be taken .it names an entry twice"),
        ("[0]", "list of paths"),
        ("3", "list of paths"),
        ('[{"path": [0]}]', "list of paths"),
        ('[{"path": 0, "source": "eagle"}]', "list of paths"),
        ('[{"path": [0], "source": "eagle", "colour": 1}]', "list of paths"),
        ('[{"path": [0], "source": "oak"}]', "source 'oak': choose among eagle, jacobi"),
        ('[{"path": [0], "source": "jacobi"}, [0, 0]]', "behind a guess"),
        ('[{"path": [0], "source": "jacobi"}, [0]]', "two sources"),
        ('[{"path": [0.5], "source": "jacobi"}]', "non-empty"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_bad_json(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "bad.json"
    file.write_text(content)
    with pytest.raises(CascadeError, match=message):
        get_tree(str(file))


def test_a_pipe_is_no_tree_file(tmp_path: Path) -> None:
    """Nobody may ever write into it."""
    os.mkfifo(tmp_path / "f.json")
    with pytest.raises(CascadeError, match="is a pipe"):
        get_tree(str(tmp_path / "f.json"))


MISSPELT = [
    "jacobi_03", "jacobi-3", "chain_2x2", "mixd_8", "mixed_2x3", "jacobi_2000", "chan_0", "dynamic_3x1x1", "aut",
    "auto", "dynamic_007x2x3", "jacobi_99999999999", "smal_6",
]  # fmt: skip


@pytest.mark.parametrize("spec", MISSPELT)
def test_a_hint_is_a_tree(spec: str) -> None:
    with pytest.raises(CascadeError) as caught:
        get_tree(spec)
    for hint in re.findall(r"did you mean '([^']*)'", str(caught.value)):
        assert hint != spec and get_tree(hint)


def test_hints_that_are_given() -> None:
    for spec, hint in (("jacobi_03", "jacobi_3"), ("mixd_8", "mixed_8"), ("smal_6", "small_6")):
        with pytest.raises(CascadeError, match=f"did you mean '{hint}'"):
            get_tree(spec)
    with pytest.raises(CascadeError, match="did you mean 'auto'"):
        get_tree("auot", ("auto",))


@pytest.mark.parametrize("name", ["jacobi_4", "small_9", "mixed_2", "auto", "none"])
def test_a_file_is_not_called_as_another_tree_is(tmp_path: Path, name: str) -> None:
    """Its nodes may be those of the tree that has the name."""
    file = tmp_path / f"{name}.json"
    file.write_text(json.dumps([[0], [1], [2]]))
    with pytest.raises(CascadeError, match=r"\.json is called as a tree of another shape is"):
        get_tree(str(file))
    file = tmp_path / "jacobi_2.json"
    file.write_text(json.dumps([{"path": [0], "source": JACOBI}, {"path": [0, 0], "source": JACOBI}]))
    assert get_tree(str(file)) == get_tree("jacobi_2")


def test_a_folder_is_no_tree(tmp_path: Path) -> None:
    (tmp_path / "tree.json").mkdir()
    with pytest.raises(CascadeError, match=r"tree\.json cannot be read .*check the path"):
        get_tree(str(tmp_path / "tree.json"))


@pytest.mark.parametrize("spec", ["nothing", "nothing.json", ""])
def test_unknown_tree(spec: str) -> None:
    with pytest.raises(CascadeError):
        get_tree(spec)
