"""All draft graphs of a bundle as one model: every tree drafts bit for bit what its own graph drafts."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from contract import DIM, HEADS, scatter_graph, sums_graph
from support import build, random_features, save_checkpoints

from cascade_trt.export.graphs.merge import merge
from cascade_trt.runtime.backends import Engine
from cascade_trt.runtime.backends.ort import OrtBackend
from cascade_trt.runtime.bundle import MANIFEST, Manifest, read_manifest
from cascade_trt.runtime.files import check_files
from cascade_trt.runtime.pipeline import Pipeline
from cascade_trt.runtime.tree import AnyTree, DynamicTree

NAMES = ("chain_2", "small_9", "naive_extend_57", "dynamic_9x4x3", "dynamic_30x3x5", "dynamic_4x1x3")
BACKEND = OrtBackend(1)


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merged")
    arguments = save_checkpoints(folder / "checkpoints", vocab=32, grid=6)
    trees = [part for name in NAMES for part in ("--tree", name)]
    build(*arguments, "--batch", 2, "--precision", request.param, *trees, "--out", folder / "bundle")
    return folder / "bundle"


@pytest.fixture(scope="module")
def merged(bundle: Path) -> dict[str, Engine]:
    manifest = read_manifest(bundle)
    info = manifest.merged
    assert info is not None
    files = {name: bundle / manifest.engines[name].file for name in info.engines}
    return dict(BACKEND.load_merged(bundle / info.file, files))


class Drafter:
    """An engine with a cache of its own for two prompts, called on ever new inputs."""

    def __init__(self, engine: Engine, manifest: Manifest, tree: AnyTree) -> None:
        drafter = manifest.drafter
        assert drafter is not None
        self.engine, self.manifest, self.tree = engine, manifest, tree
        dtype = engine.dtype("past_key.0")
        self.cache = BACKEND.cache(1, 4, drafter.n_kv_head, drafter.slots, drafter.head_dim, dtype)

    def __call__(self, rng: np.random.Generator, prompts: int, pairs: int, start: int) -> dict[str, np.ndarray]:
        """All outputs of one call, and the cache behind it."""
        engine, tree, model = self.engine, self.tree, self.manifest.model
        rows, distributions = 2 * prompts, tree.distributions
        inputs = {
            "hidden": rng.normal(size=(rows, pairs, model.dim)),
            "path": np.tile(np.arange(pairs), (prompts, 1)),
            "tokens": rng.integers(0, model.vocab_size, (prompts, pairs)),
            "count": rng.integers(1, pairs + 1, prompts),
            "positions": np.tile(start + np.arange(pairs), (rows, 1)),
            "write_index": np.full(rows, start),
            "cache_mask": np.ones((rows, self.manifest.drafter.slots), bool),  # type: ignore[union-attr]
            "prompt_of_row": np.arange(rows) // 2,
            "rows_of_prompt": np.arange(rows).reshape(prompts, 2),
            "noise": rng.gumbel(size=(prompts, tree.depth + 1, model.vocab_size)),
            "guidance": np.tile([2.0, -1.0], (prompts, 1)),
            "temperature": rng.uniform(0.5, 1.5, prompts),
        }
        shapes = {"tree_tokens": (prompts, tree.size), "log_q": (prompts, distributions, model.vocab_size),
                  "embeds": (rows, tree.size, model.dim), "features": (rows, pairs, model.dim)}  # fmt: skip
        if isinstance(tree, DynamicTree):
            shapes |= dict.fromkeys(("parents", "sources", "depths"), (prompts, tree.size))
            shapes["ancestors"] = (prompts, tree.size, tree.size)
        outputs = {name: BACKEND.buffer(shape, engine.dtype(name), "out") for name, shape in shapes.items()}
        past, present = self.cache.bindings(0, rows, tree.depth)
        given = {name: BACKEND.buffer(x.shape, engine.dtype(name), "in") for name, x in inputs.items()}
        for name, array in inputs.items():
            given[name].host[...] = array
        engine.bind({**given, **past}, {**outputs, **present}).run(tuple(outputs))
        kept, _ = self.cache.bindings(0, 4)
        return {name: buffer.host.copy() for name, buffer in {**outputs, **kept}.items()}


def calls() -> Iterator[tuple[int, int, int]]:
    """(prompts, pairs, start): a prefix, then rounds of one prompt and of two in turn."""
    yield 2, 6, 0
    for start in range(6, 16, 2):
        yield 1 + start // 2 % 2, 3, start


@pytest.mark.parametrize("name", NAMES)
def test_drafts_are_those_of_the_single_graph(bundle: Path, merged: dict[str, Engine], name: str) -> None:
    """Every output and the whole cache, call after call; the other trees draft in between on memory of theirs."""
    manifest = read_manifest(bundle)
    info = manifest.tree(name)
    other = manifest.tree(NAMES[NAMES.index(name) - 1])
    alone = Drafter(BACKEND.load(bundle / manifest.engines[info.engine].read_by_ort), manifest, info.tree())
    shared, between = (Drafter(merged[one.engine], manifest, one.tree()) for one in (info, other))
    for seed, shape in enumerate(calls()):
        wanted, got = (drafter(np.random.default_rng(seed), *shape) for drafter in (alone, shared))
        between(np.random.default_rng(seed), *shape)
        assert wanted["log_q"].any() and wanted["past_key.0"].any()
        for key, array in wanted.items():
            if manifest.engines[info.engine].precision == "fp16" and info.tree().depth == 1:
                # One level: the graph reads each weight once, and ONNX Runtime then converts it to float32 at load
                # and fuses the SiLU behind it; it does neither in a branch.
                scale = np.abs(array).max().astype(np.float64)
                np.testing.assert_allclose(got[key].astype(float), array.astype(float), rtol=0, atol=1e-6 * scale)
            else:
                assert got[key].tobytes() == array.tobytes(), (key, shape)


def test_images_are_those_of_the_single_graphs(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    together = Pipeline.load(bundle, BACKEND)
    single = Pipeline(bundle, replace(manifest, merged=None), together.backend)
    given = random_features(single, 3)
    for name in NAMES:
        wanted, got = (pipe.generate(**given, rule="exact", tree=name) for pipe in (single, together))
        np.testing.assert_array_equal(got.codes, wanted.codes)
        np.testing.assert_array_equal(got.rounds, wanted.rounds)


def test_a_branch_does_not_copy_its_cache(tmp_path: Path) -> None:
    """A call that writes one slot of 64 MiB takes much less than a copy of them."""
    rows, slots = 2, (64 << 20) // (2 * HEADS * DIM * 4)
    graphs = {"sums": sums_graph(tmp_path), "scatter": scatter_graph(tmp_path, slots)}
    merge(graphs, tmp_path / "draft.onnx")
    engine = BACKEND.load_merged(tmp_path / "draft.onnx", graphs)["scatter"]
    cache = BACKEND.cache(1, rows, HEADS, slots, DIM, "float32")
    written, index = BACKEND.buffer((rows, HEADS, 1, DIM), "float32", "in"), BACKEND.buffer((rows,), "int64", "in")
    past, present = cache.bindings(0, rows)
    keys = past["past_key.0"]
    given = {"past_key.0": keys, "written": written, "write_index": index}
    calls = {
        "in place": engine.bind(given, {"present_key.0": present["present_key.0"]}),
        "copied": engine.bind(given, {"present_key.0": BACKEND.buffer(keys.shape, "float32", "out")}),
    }
    seconds = {}
    for name, call in calls.items():
        times = []
        for _ in range(5):
            started = time.perf_counter()
            call.run()
            times.append(time.perf_counter() - started)
        seconds[name] = min(times)
    assert seconds["in place"] < seconds["copied"] / 10, seconds


def test_a_weight_is_in_the_model_once(bundle: Path) -> None:
    """As an initializer of the root: ONNX Runtime packs it once for each that it finds. Names are unique."""
    manifest = read_manifest(bundle)
    assert manifest.merged is not None
    assert manifest.merged.engines == [f"draft.{name}" for name in NAMES]
    check_files(bundle, manifest, thorough=True)
    onnx.checker.check_model(bundle / manifest.merged.file, full_check=True)
    graph = onnx.load(bundle / manifest.merged.file, load_external_data=False).graph
    branches = [attribute.g for node in graph.node for attribute in node.attribute if node.op_type == "If"]
    assert len(branches) == 2 * len(NAMES)
    assert not any(node.op_type == "If" for branch in branches for node in branch.node)
    external = lambda part: [x.name for x in part.initializer if x.external_data]  # noqa: E731
    assert not any(external(branch) for branch in branches)
    single = set()
    for engine in manifest.merged.engines:
        single.update(external(onnx.load(bundle / f"{engine}.onnx", load_external_data=False).graph))
    assert Counter(external(graph)) == Counter(single) and len(single) > 5
    values = Counter(name for part in (graph, *branches) for node in part.node for name in node.output if name)
    assert max(values.values()) == 1


def test_one_tree_needs_no_merged_file(tmp_path: Path) -> None:
    build(*save_checkpoints(tmp_path / "checkpoints"), "--tree", "small_6", "--out", tmp_path / "bundle")
    assert read_manifest(tmp_path / "bundle").merged is None
    assert not (tmp_path / "bundle" / "draft.onnx").exists()
    assert '"merged": null' in (tmp_path / "bundle" / MANIFEST).read_text()


def test_graphs_of_another_folder_are_refused(tmp_path: Path) -> None:
    """Their weight files would not be found."""
    (tmp_path / "other").mkdir()
    graphs = {"sums": sums_graph(tmp_path), "scatter": scatter_graph(tmp_path / "other")}
    with pytest.raises(ValueError, match="scatter.onnx is not in the folder"):
        merge(graphs, tmp_path / "draft.onnx")


def test_one_name_for_two_weights_is_refused(tmp_path: Path) -> None:
    graphs = {}
    for name, offset in (("a", 0), ("b", 64)):
        weight = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[4])
        weight.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", "w.data"), ("offset", str(offset)), ("length", "16")):
            weight.external_data.add(key=key, value=value)
        value = lambda name: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4])  # noqa: E731
        node = onnx.helper.make_node("Add", ["x", "w"], ["y"])
        graph = onnx.helper.make_graph([node], name, [value("x")], [value("y")], initializer=[weight])
        graphs[name] = tmp_path / f"{name}.onnx"
        onnx.save(onnx.helper.make_model(graph, ir_version=11), graphs[name])
    (tmp_path / "w.data").write_bytes(bytes(128))
    with pytest.raises(ValueError, match="w stands for two weights"):
        merge(graphs, tmp_path / "out.onnx")
