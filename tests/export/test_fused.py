"""The graphs that ONNX Runtime reads in its own operators: what they compute is what the standard graphs do, and
nothing else of the bundle changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from janus import JANUS, save_drafter
from support import FIXTURE

from cascade_trt.export.build import BuildOptions, Stage, write_graphs
from cascade_trt.export.graphs.fused import DOMAIN, write_fused
from cascade_trt.export.open import open_parts
from cascade_trt.export.request import BuildRequest
from cascade_trt.runtime.errors import CascadeError
from cascade_trt.runtime.tree import get_tree

SIZES = {"R": 2, "P": 1, "G": 2, "N": 5, "N_hidden": 4, "L": 3, "M": 3}
CLOSE = {"fp32": 2e-5, "fp16": 5e-3}  # largest difference by the output's largest value
COMPARED = ("hidden", "states", "logits", "features", "log_q", "present_key.0", "present_value.0")


def _chameleon(name: str, **image: object) -> Callable[[Path], BuildRequest]:
    fixture = FIXTURE.parent / f"{name.partition('-')[0]}-tiny"
    return lambda _: BuildRequest(name, fixture, drafter=fixture / "drafter", prompt_length=64, **image)  # type: ignore[arg-type]


REQUESTS: dict[str, Callable[[Path], BuildRequest]] = {
    "anole": _chameleon("anole", grid=8),
    "janus-pro": lambda folder: BuildRequest(
        "janus-pro", JANUS, drafter=save_drafter(folder / "drafter"), prompt_length=64
    ),
    "llamagen": lambda _: BuildRequest(
        "llamagen", FIXTURE / "gpt_t2i.pt", FIXTURE / "vq.pt", FIXTURE / "drafter.pt", config=FIXTURE / "config.json",
        without_text=True,
    ),
    "lumina-mgpt": _chameleon("lumina-mgpt", size="96x96"),
}  # fmt: skip


@pytest.fixture(scope="module", params=[f"{name} {precision}" for name in REQUESTS for precision in (*CLOSE, "bf16")])
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """All graphs of a fixture's bundle in one precision."""
    name, precision = request.param.split()
    folder = tmp_path_factory.mktemp("fused")
    parts, sampling = open_parts(REQUESTS[name](folder))
    trees = tuple(map(get_tree, ("small_6", "dynamic_12x4x3")))
    stage = Stage(folder / "bundle", precision)
    stage.folder.mkdir()
    write_graphs(parts, BuildOptions(stage.folder, trees, sampling, precision=precision), stage)
    return stage


def inputs(graph: onnx.GraphProto, seed: int) -> dict[str, np.ndarray]:
    """Random values for a call on a few nodes, whose indices all lie inside of what they point into."""
    rng, given = np.random.default_rng(seed), {}
    for value in graph.input:
        kind = value.type.tensor_type
        shape = [SIZES[size.dim_param] if size.dim_param else size.dim_value for size in kind.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        given[value.name] = (rng.normal(size=shape) if dtype.kind == "f" else rng.integers(0, 2, shape)).astype(dtype)
    fixed = {"rows_of_prompt": [[0, 1]], "prompt_of_row": [0, 0], "guidance": [[3, -2]], "temperature": [1],
             "count": [2], "top_k": [9], "top_p": [0.9], "forced": -1}  # fmt: skip
    for name in fixed.keys() & given.keys():
        given[name] = np.broadcast_to(np.array(fixed[name], given[name].dtype), given[name].shape)
    return given


def nodes(file: Path) -> Counter[str]:
    """How many nodes of each kind a graph has; those of ONNX Runtime with their domain."""
    graph = onnx.load(file, load_external_data=False).graph
    return Counter(f"{node.domain}:{node.op_type}" if node.domain else node.op_type for node in graph.node)


def test_only_norms_and_the_sums_before_them_differ(stage: Stage) -> None:
    """Two a layer of the target, for its first norm reads the embeddings, and its last one is behind all layers; one a
    step of the drafter at least. Nothing else is fused, and what TensorRT reads is standard."""
    layers = sum(name.startswith("present_key.") for name in outputs(stage, "target"))
    for name, info in stage.engines.items():
        assert not any(DOMAIN in kind for kind in nodes(stage.folder / info.file))
        if not name.startswith(("target", "draft.")):
            assert info.fused is None and info.read_by_ort == info.file
            continue
        assert info.fused == f"{name}.fused.onnx" == info.read_by_ort
        standard, fused = (nodes(stage.folder / file) for file in (info.file, info.fused))
        count = fused.pop(f"{DOMAIN}:SkipSimplifiedLayerNormalization")
        assert count == 2 * layers if name == "target" else count >= get_tree(name.removeprefix("draft.")).depth
        assert standard - fused == Counter(Add=count, RMSNormalization=count) and not fused - standard
        assert outputs(stage, name) == [value.name for value in load(stage, info.fused).output]


def load(stage: Stage, file: str) -> onnx.GraphProto:
    return onnx.load(stage.folder / file, load_external_data=False).graph


def outputs(stage: Stage, engine: str) -> list[str]:
    return [value.name for value in load(stage, stage.engines[engine].file).output]


@pytest.mark.parametrize("engine", ["target", "draft.small_6", "draft.dynamic_12x4x3"])
def test_outputs_are_those_of_the_standard_graph(stage: Stage, engine: str) -> None:
    """On random inputs, caches included. Of what a call drafts, the first level: others depend on tokens that tie."""
    if stage.precision == "bf16":
        pytest.skip("ONNX Runtime has no kernels of bfloat16 on CPUs")
    info = stage.engines[engine]
    graph = load(stage, info.file)
    names = [name for name in outputs(stage, engine) if name in COMPARED]
    for seed in range(3):
        given = inputs(graph, seed)
        files = (str(stage.folder / file) for file in (info.file, info.read_by_ort))
        standard, fused = (
            ort.InferenceSession(file, providers=["CPUExecutionProvider"]).run(names, given) for file in files
        )
        for name, wanted, got in zip(names, standard, fused, strict=True):
            if name == "log_q":
                wanted, got = wanted[:, :1], got[:, :1]
            wanted, got = wanted.astype(np.float32), got.astype(np.float32)
            assert np.isfinite(got).all() and got.shape == wanted.shape
            assert np.abs(got - wanted).max() <= CLOSE[stage.precision] * np.abs(wanted).max(), name


def test_weights_are_not_written_twice(stage: Stage) -> None:
    """Both graphs name the same places in the same files, and hold nothing large themselves."""
    for info in stage.engines.values():
        standard, fused = (load(stage, file) for file in (info.file, info.read_by_ort))
        assert places(standard) == places(fused)
        small = [(weight.name, weight.raw_data) for weight in standard.initializer if not weight.external_data]
        assert small == [(weight.name, weight.raw_data) for weight in fused.initializer if not weight.external_data]


def places(graph: onnx.GraphProto) -> dict[str, list[tuple[str, str]]]:
    external = (weight for weight in graph.initializer if weight.external_data)
    return {weight.name: sorted((entry.key, entry.value) for entry in weight.external_data) for weight in external}


def test_a_bias_is_no_activation(tmp_path: Path) -> None:
    """Of x + bias nothing is fused, and without anything to fuse there is no file."""
    sizes, half = ["R", "N", 4], onnx.TensorProto.FLOAT
    weights = [onnx.helper.make_tensor(name, half, [4], [1.0] * 4) for name in ("bias", "scale")]
    body = [onnx.helper.make_node("Add", ["x", "bias"], ["y"]),
            onnx.helper.make_node("RMSNormalization", ["y", "scale"], ["z"], epsilon=1e-5)]  # fmt: skip
    x, z = (onnx.helper.make_tensor_value_info(name, half, sizes) for name in "xz")
    model = onnx.helper.make_model(onnx.helper.make_graph(body, "g", [x], [z], weights))
    onnx.save(model, tmp_path / "g.onnx")
    assert not write_fused(tmp_path / "g.onnx", tmp_path / "g.fused.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["g.onnx"]


def test_trees_whose_graphs_would_share_a_file(tmp_path: Path) -> None:
    parts, sampling = open_parts(REQUESTS["llamagen"](tmp_path))
    for number, names in enumerate((("x", "x.fused"), ("x.fused", "x"))):
        chains = ("chain_3", "chain_5")
        trees = tuple(replace(get_tree(chain), name=name) for chain, name in zip(chains, names, strict=True))
        stage = Stage(tmp_path / str(number), "fp32")
        stage.folder.mkdir()
        with pytest.raises(CascadeError, match="two graphs of the bundle would lie in draft.x.fused.onnx"):
            write_graphs(parts, BuildOptions(stage.folder, trees, sampling), stage)
