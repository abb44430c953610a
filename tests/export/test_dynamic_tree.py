"""Dynamic trees: what the draft graph keeps is EAGLE-2's choice, and rules that may use it do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from eagle2 import choose
from support import build, save_checkpoints

from cascade_trt.cli import cli
from cascade_trt.runtime.bundle import read_manifest
from cascade_trt.runtime.errors import CascadeError
from cascade_trt.runtime.pipeline import Pipeline
from cascade_trt.runtime.tree import DynamicTree, Tree, get_tree

NAMES = ("dynamic_9x4x3", "dynamic_30x3x5", "dynamic_4x1x3", "dynamic_6x5x1")
VOCAB = 16


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dynamic")
    arguments = save_checkpoints(folder / "checkpoints", vocab=VOCAB, grid=6)
    trees = ("chain", *NAMES)
    build(*arguments, "--batch", 3, *(part for name in trees for part in ("--tree", name)), "--out", folder / "bundle")
    return folder / "bundle"


@pytest.fixture(scope="module")
def pipe(bundle: Path) -> Pipeline:
    return Pipeline.load(bundle, threads=1)


def drafted(bundle: Path, name: str, prompts: int, seed: int, temperature: float) -> dict[str, np.ndarray]:
    """Outputs of one call after the prefix, on random states, with random noise as `noise` beside them."""
    manifest = read_manifest(bundle)
    model, drafter, tree = manifest.model, manifest.drafter, manifest.tree(name).tree()
    assert drafter is not None
    rng, rows, length = np.random.default_rng(seed), 2 * prompts, model.condition.length
    session = ort.InferenceSession(bundle / f"draft.{name}.onnx", providers=["CPUExecutionProvider"])
    cache = np.zeros((rows, drafter.n_kv_head, drafter.slots, drafter.head_dim), np.float32)
    noise = rng.choice([0.0, 0.5, 1.0]) * rng.gumbel(size=(prompts, tree.depth + 1, VOCAB))
    inputs = {
        "hidden": rng.normal(size=(rows, length, model.dim)).astype(np.float32),
        "path": np.tile(np.arange(length), (prompts, 1)),
        "tokens": rng.integers(0, VOCAB, (prompts, length)),
        "count": np.full(prompts, length),
        "positions": np.tile(np.arange(length), (rows, 1)),
        "write_index": np.zeros(rows, np.int64), "cache_mask": np.ones((rows, drafter.slots), bool),
        "prompt_of_row": np.arange(rows) % prompts, "noise": noise.astype(np.float32),
        "rows_of_prompt": np.stack([np.arange(prompts), prompts + np.arange(prompts)], axis=1),
        "guidance": np.tile(np.float32([2, -1]), (prompts, 1)),
        "temperature": np.full(prompts, temperature, np.float32),
        **{f"past_{kind}.{step}": cache for kind in ("key", "value") for step in range(tree.depth)},
    }  # fmt: skip
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True)) | {"noise": inputs["noise"]}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_the_graph_keeps_what_the_paper_keeps(bundle: Path, name: str, temperature: float) -> None:
    tree = get_tree(name)
    assert isinstance(tree, DynamicTree)
    for seed in range(5):
        got = drafted(bundle, name, 3, seed, temperature)
        for p in range(3):
            expected = choose(tree, got["log_q"][p], got["noise"][p], np.full(tree.depth, -1))
            assert got["tree_tokens"][p, 1:].tolist() == [token for _, token, _, _ in expected]
            assert got["sources"][p, 1:].tolist() == [row for _, _, row, _ in expected]
            assert got["depths"][p, 1:].tolist() == [depth for _, _, _, depth in expected]
            chosen = Tree(name, tuple(got["parents"][p].tolist()))
            assert chosen.parents[0] == -1 and all(0 <= up < n for n, up in enumerate(chosen.parents) if n)
            np.testing.assert_array_equal(got["depths"][p], chosen.depths)
            np.testing.assert_array_equal(got["ancestors"][p], chosen.ancestors)
            for node in chosen.internal:  # the children of one node come from one distribution, that of no other node
                assert len({got["sources"][p, child] for child in chosen.children[node]}) == 1
            assert len({got["sources"][p, nodes[0]] for nodes in chosen.children if nodes}) == len(chosen.internal)


def test_trees_differ_from_round_to_round(bundle: Path) -> None:
    parents = {tuple(drafted(bundle, "dynamic_9x4x3", 1, seed, 0.2)["parents"][0].tolist()) for seed in range(8)}
    assert len(parents) > 3


@pytest.mark.parametrize("name", NAMES)
def test_exact_is_ar(pipe: Pipeline, name: str) -> None:
    given = features(pipe, 3)
    plain = pipe.generate(**given, seed=5, rule="ar")
    exact = pipe.generate(**given, seed=5, rule="exact", tree=name)
    np.testing.assert_array_equal(exact.codes, plain.codes)
    assert exact.stats.tau > 1


def test_strict_topk_has_the_targets_law(pipe: Pipeline) -> None:
    """First tokens drawn behind the prefill's, over many seeds, against plain decoding: two-sample chi-square."""
    from scipy.stats import chi2_contingency

    one = features(pipe, 1)
    counts = np.zeros((2, VOCAB))
    for row, (rule, tree) in enumerate((("ar", None), ("strict-topk", "dynamic_9x4x3"))):
        for seed in range(40):
            codes = pipe.generate(**one, seed=10_000 * row + seed, rule=rule, tree=tree).codes
            counts[row] += np.bincount(codes.ravel(), minlength=VOCAB)
    counts = counts[:, counts.sum(0) > 20]
    assert chi2_contingency(counts).pvalue > 1e-3


def features(pipe: Pipeline, prompts: int) -> dict[str, np.ndarray]:
    condition, rng = pipe.manifest.model.condition, np.random.default_rng(3)
    values = rng.normal(size=(1, condition.length, condition.width)).astype(np.float32)
    return {
        "features": np.repeat(values, prompts, axis=0),
        "features_mask": np.ones((prompts, condition.length), bool),
    }


def test_random_children_are_refused(pipe: Pipeline) -> None:
    with pytest.raises(CascadeError, match="use a static tree, rule exact or strict-topk, or children=topk"):
        pipe.generate(**features(pipe, 1), rule="strict", tree="dynamic_9x4x3")
    pipe.generate(**features(pipe, 1), rule="strict", tree="dynamic_9x4x3", temperature=0.0)  # nothing random in it
    pipe.generate(**features(pipe, 1), rule="cascade:children=topk", tree="dynamic_9x4x3")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("dynamic_1x2x3", "at least 2 nodes"), ("dynamic_9x0x3", "1 level"),
        ("dynamic_90x2x3", "drafts 12 candidates, fewer than its 89 nodes"), ("dynamic_9", "dynamic_NxLxW"),
    ],
)  # fmt: skip
def test_names_that_are_refused(name: str, sentence: str) -> None:
    with pytest.raises(CascadeError, match=sentence):
        get_tree(name)


def test_info_says_dynamic(bundle: Path) -> None:
    result = CliRunner().invoke(cli, ["info", str(bundle)])
    shown = "dynamic_9x4x3: 9 nodes, drafts 4 levels (draft.dynamic_9x4x3, dynamic)"
    assert result.exit_code == 0 and shown in " ".join(result.output.split())
