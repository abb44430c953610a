"""What a bundle holds for its trees: engines, room in the caches, and what is refused or left out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from support import build, random_features, save_checkpoints

from cascade_trt.cli import cli
from cascade_trt.commands.build import _digest, chosen_trees
from cascade_trt.export.build import BuildOptions
from cascade_trt.export.request import MAX_NODES, BuildRequest
from cascade_trt.runtime.bundle import Manifest, SamplingDefaults, read_manifest
from cascade_trt.runtime.errors import CascadeError
from cascade_trt.runtime.files import check_files
from cascade_trt.runtime.pipeline import Pipeline
from cascade_trt.runtime.rules.states import StateTable
from cascade_trt.runtime.tree import Tree

GRID, PREFIX = 4, 6


@pytest.fixture
def checkpoints(tmp_path: Path) -> list[object]:
    return save_checkpoints(tmp_path / "checkpoints", vocab=16, grid=GRID, prefix_len=PREFIX)


def without_drafter(checkpoints: list[object]) -> list[object]:
    at = checkpoints.index("--drafter")
    return [*checkpoints[:at], *checkpoints[at + 2 :]]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["build", *map(str, arguments)])


def built(checkpoints: list[object], out: Path, *arguments: object) -> Manifest:
    build(*checkpoints, *arguments, "--out", out)
    manifest = read_manifest(out)
    check_files(out, manifest, thorough=True)
    return manifest


def trees(*names: str) -> list[str]:
    return [part for name in names for part in ("--tree", name)]


def draft_engines(manifest: Manifest) -> list[str]:
    return [name for name in manifest.engines if name.startswith("draft.")]


def test_trees_that_draft_the_same_share_an_engine(checkpoints: list[object], tmp_path: Path) -> None:
    """By their shape, whatever they are called; what is only guessed has none."""
    nodes = [{"path": [0], "source": "eagle"}, {"path": [0, 0], "source": "eagle"}, {"path": [1], "source": "jacobi"}]
    (tmp_path / "own.json").write_text(json.dumps(nodes))
    names = ("mixed_8", "mixed_3x2", "chain_1", "jacobi_5", "pair_4", str(tmp_path / "own.json"), "chain_2")
    manifest = built(checkpoints, tmp_path / "bundle", *trees(*names))
    engines = {info.name: info.engine for info in manifest.trees}
    assert engines == {
        "mixed_8": "draft.chain_1", "mixed_3x2": "draft.chain_1", "chain_1": "draft.chain_1", "jacobi_5": None,
        "pair_4": "draft.pair_4", "own": "draft.chain_2", "chain_2": "draft.chain_2",
    }  # fmt: skip
    assert draft_engines(manifest) == ["draft.chain_1", "draft.pair_4", "draft.chain_2"]
    assert manifest.merged is not None and manifest.merged.engines == draft_engines(manifest)
    assert set(manifest.parity) == set(manifest.engines)
    for info in manifest.trees:
        assert manifest.tree(info.name).tree() == info.tree()
    pipe = Pipeline.load(tmp_path / "bundle", threads=1)
    given = random_features(pipe, 2)
    plain = pipe.generate(**given, rule="ar", seed=5)
    for name in engines:
        np.testing.assert_array_equal(pipe.generate(**given, rule="exact", tree=name, seed=5).codes, plain.codes)


def test_one_engine_is_not_merged(checkpoints: list[object], tmp_path: Path) -> None:
    manifest = built(checkpoints, tmp_path / "bundle", *trees("mixed_8", "mixed_6"))
    assert draft_engines(manifest) == ["draft.chain_1"] and manifest.merged is None
    assert not (tmp_path / "bundle" / "draft.onnx").exists()


@pytest.mark.parametrize(
    ("asked", "names", "most"), [(None, ["mixed_8"], MAX_NODES), (5, ["mixed_8"], 9), (12, ["mixed_8"], 12),
                                 (2, ["pair_4", "jacobi_9x2"], 12)],
)  # fmt: skip
def test_room_for_the_largest_call(
    checkpoints: list[object], tmp_path: Path, asked: int | None, names: list[str], most: int
) -> None:
    """That of --max-nodes, or of the largest tree: nodes behind the longest sequence, and pairs in the drafter; caches
    are filled up to blocks of 8 slots."""
    option = [] if asked is None else ["--max-nodes", asked]
    manifest = built(checkpoints, tmp_path / "bundle", *trees(*names), *option)
    length = manifest.model.plan.length
    assert manifest.most_nodes == most and manifest.target.window == max(most, PREFIX)
    assert manifest.target.slots % 8 == 0 and 0 <= manifest.target.slots - (PREFIX + length + most) < 8
    drafted = [tree for name in draft_engines(manifest) if (tree := manifest.tree_of(name)) is not None]
    assert manifest.drafter is not None
    needed = PREFIX - 1 + length + most + max(tree.distributions - 1 for tree in drafted)
    assert manifest.drafter.slots % 8 == 0 and 0 <= manifest.drafter.slots - needed < 8
    assert manifest.tree(f"jacobi_{most - 1}").engine is None
    with pytest.raises(CascadeError, match=f"takes {most} in a call: build it again with --max-nodes {most + 1}"):
        manifest.tree(f"jacobi_{most}")


def test_trees_up_to_the_largest_call_need_no_rebuild(checkpoints: list[object], tmp_path: Path) -> None:
    """To the end of the image, where the last nodes lie behind the sequence."""
    built(checkpoints, tmp_path / "bundle", *trees("mixed_3"), "--max-nodes", 20)
    pipe = Pipeline.load(tmp_path / "bundle", threads=1)
    given = random_features(pipe, 2)
    plain = pipe.generate(**given, rule="ar", seed=1)
    for name in ("mixed_19", "jacobi_19", "mixed_10x9", "jacobi_12x7"):
        np.testing.assert_array_equal(pipe.generate(**given, rule="exact", tree=name, seed=1).codes, plain.codes)


@pytest.mark.parametrize("most", [1, 0, -3])
def test_too_few_nodes_are_refused(checkpoints: list[object], tmp_path: Path, most: int) -> None:
    result = run(*checkpoints, "--max-nodes", most, "--out", tmp_path / "out")
    assert result.exit_code == 2 and "--max-nodes must be from 2" in result.stderr
    assert not (tmp_path / "out").exists()


def test_without_a_drafter(checkpoints: list[object], tmp_path: Path) -> None:
    """Trees that draft are left out with a warning, those of guesses stay; tables that need no drafter are there."""
    out, table = tmp_path / "bundle", StateTable(np.eye(16, 64, dtype=np.float16), np.full(16, 1 / 16, np.float32))
    config = tmp_path / "checkpoints" / "model.json"
    table.save(config.parent / "states.npz")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"states": "states.npz"}))
    result = run(*without_drafter(checkpoints), *trees("small_6", "jacobi_5", "mixed_4"), "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stderr == "Warning: trees that draft need --drafter; left out: small_6, mixed_4.\n"
    manifest = read_manifest(out)
    check_files(out, manifest, thorough=True)
    assert [info.name for info in manifest.trees] == ["jacobi_5"] and manifest.drafter is None
    assert draft_engines(manifest) == [] and manifest.merged is None
    assert manifest.neighbours is not None and np.load(out / manifest.neighbours).shape == (16, 15)
    assert manifest.states is not None and set(manifest.parity) == set(manifest.engines)
    pipe = Pipeline.load(out, threads=1)
    assert len(pipe.generate(**random_features(pipe, 1), rule="lantern:children=coupled").images) == 1


def test_without_a_drafter_or_trees_it_draws_with_guesses(checkpoints: list[object], tmp_path: Path) -> None:
    result = run(*without_drafter(checkpoints), "--out", tmp_path / "bundle")
    assert result.exit_code == 0 and result.stderr == ""
    manifest = read_manifest(tmp_path / "bundle")
    assert manifest.trees == [] and manifest.tree(None).name == "jacobi_16"
    assert manifest.parity["target"]["drawn"]["nodes"] >= 17
    shown = CliRunner().invoke(cli, ["info", str(tmp_path / "bundle")]).output
    assert "jacobi_16: 17 nodes, guesses 16" in shown and "jacobi of up to 33 nodes, without a rebuild" in shown


def test_a_drafter_that_no_tree_asks_is_left_out(checkpoints: list[object], tmp_path: Path) -> None:
    manifest = built(checkpoints, tmp_path / "bundle", *trees("jacobi_5"))
    assert manifest.drafter is None and "drafter" not in manifest.provenance
    assert not (tmp_path / "bundle" / "drafter.data").exists()


def test_info_says_what_drafts_and_what_guesses(checkpoints: list[object], tmp_path: Path) -> None:
    built(checkpoints, tmp_path / "bundle", *trees("mixed_8", "small_6", "dynamic_5x2x2"))
    shown = " ".join(CliRunner().invoke(cli, ["info", str(tmp_path / "bundle")]).output.split())
    for said in (
        "mixed_8: 9 nodes, drafts 1 level (draft.chain_1), guesses 7", "small_6: 6 nodes, drafts 3 levels"
        " (draft.small_6)", "dynamic_5x2x2: 5 nodes, drafts 2 levels (draft.dynamic_5x2x2, dynamic)",
        "jacobi and mixed of up to 33 nodes, without a rebuild",
    ):  # fmt: skip
        assert said in shown


def options(*found: Tree) -> BuildOptions:
    return BuildOptions(Path("bundle"), found, SamplingDefaults(1.0, 1.0, 10, 1.0))


def test_two_parts_of_one_name_are_told_apart() -> None:
    """Names of engines are names of files."""
    one = Tree("own", (-1, 0, 0, 1), ("eagle", "eagle", "eagle", "jacobi"))
    assert one.drafted is not None and one.drafted.name == "own-drafted"
    other = Tree("own-drafted", (-1, 0, 1))
    with pytest.raises(CascadeError, match="parts called 'own-drafted' that differ: name them apart"):
        _ = options(one, other).drafts
    assert list(options(one, replace(one.drafted, name="pair")).drafts) == ["draft.own-drafted"]


def test_defaults_and_what_a_build_was_asked_for(tmp_path: Path) -> None:
    """The trees that suit the model; another --max-nodes is another request."""
    assert [tree.name for tree in chosen_trees(BuildRequest("emoji"))] == ["mixed_16", "chain_7", "mixed_20x4"]
    assert [tree.name for tree in chosen_trees(BuildRequest("llamagen"))] == ["mixed_32", "small_6"]
    assert [tree.name for tree in chosen_trees(BuildRequest("llamagen", trees=("chain_3",)))] == ["chain_3"]
    asked = [BuildRequest("llamagen", checkpoint=tmp_path, max_nodes=most) for most in (33, 33, 20)]
    digests = [_digest(request, chosen_trees(request)) for request in asked]
    assert digests[0] == digests[1] != digests[2]
