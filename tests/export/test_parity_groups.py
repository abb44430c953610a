"""Graphs run group by group: every node once, the same outputs as the whole, and a fault of any layer is found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from click.testing import CliRunner, Result
from support import build, save_checkpoints, save_text_encoder

from cascade_trt.cli import cli
from cascade_trt.export import build as building
from cascade_trt.export import parity
from cascade_trt.export.graphs.builder import FLOAT, GraphBuilder
from cascade_trt.export.graphs.weights import WeightFile
from cascade_trt.export.parity_groups import Graph, cut, float_twin
from cascade_trt.runtime.bundle import read_manifest

LAYERS, WIDTH = 4, 16
TINY = partial(Graph, limit=1)  # a scope is a group
FIXTURES = Path(__file__).parents[1] / "fixtures"
FAMILIES = {
    "lumina-mgpt": ("--checkpoint", FIXTURES / "lumina-tiny", "--size", "96x96"),
    "janus-pro": ("--checkpoint", FIXTURES / "janus-tiny"),
}
Calls = dict[str, tuple[Mapping[str, np.ndarray], Sequence[str]]]  # inputs and outputs by file


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """A random LlamaGen of four layers with drafter and text encoder, the arguments of a build."""
    folder = tmp_path_factory.mktemp("checkpoints")
    model = save_checkpoints(folder / "model", layers=LAYERS)
    text = save_text_encoder(folder / "text", WIDTH)
    return [*model, "--text", text, "--tree", "small_6", "--tree", "dynamic_12x4x3"]


@pytest.fixture(scope="module", params=["fp32", "fp16", "bf16"])
def built(
    request: pytest.FixtureRequest, arguments: list[object], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str, Calls]:
    """A bundle, its precision, and with what its parity ran each graph."""
    out, calls = tmp_path_factory.mktemp("bundles") / request.param, Calls()
    original = Graph.run

    def run(graph: Graph, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        calls[graph.file.name] = (inputs, outputs)
        return original(graph, inputs, outputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Graph, "run", run)
        build(*arguments, "--precision", request.param, "--out", out)
    return out, request.param, calls


def test_groups_hold_every_node_once(built: tuple[Path, str, Calls]) -> None:
    bundle, _, calls = built
    for name in calls:
        model = onnx.load(bundle / name, load_external_data=False)
        for limit in (1, 30_000, 200_000, 1 << 40):
            groups = cut(model, limit)
            assert [node.name for group in groups for node in group] == [node.name for node in model.graph.node]
        assert len(cut(model, 1 << 40)) == 1
    model = onnx.load(bundle / "target.onnx", load_external_data=False)
    assert sum(any("/layers." in node.name for node in group) for group in cut(model, 1)) == LAYERS


def test_groups_of_a_limit(built: tuple[Path, str, Calls]) -> None:
    """As many layers as fit: those of two layers' bytes hold two."""
    model = onnx.load(built[0] / "target.onnx", load_external_data=False)
    layer = sum(4 * int(np.prod(weight.dims)) for weight in model.graph.initializer if ".layers.1." in weight.name)
    groups = cut(model, 2 * layer + 8000)  # a few bytes of tables and constants
    held = [sorted({n.name.split("/")[1] for n in group if "/layers." in n.name}) for group in groups]
    assert [len(scopes) for scopes in held if scopes] == [2, 2]


def whole(bundle: Path, name: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
    """What ONNX Runtime computes of the file itself, in one session."""
    session = onnxruntime.InferenceSession(str(bundle / name), providers=["CPUExecutionProvider"])
    given = dict(inputs)
    for value in session.get_inputs():
        dtype = {"tensor(float16)": np.float16, "tensor(float)": np.float32}.get(value.type)
        if value.name not in given:
            given[value.name] = np.zeros([len(given["positions"]), *value.shape[1:]], np.float32)
        if dtype is not None:
            given[value.name] = given[value.name].astype(dtype)
    return dict(zip(outputs, session.run(list(outputs), given), strict=True))


def test_the_same_outputs_as_the_whole_graph(built: tuple[Path, str, Calls]) -> None:
    bundle, precision, calls = built
    assert set(calls) == {engine.read_by_ort for engine in read_manifest(bundle).engines.values()}
    for name, (inputs, outputs) in calls.items():
        one = Graph(bundle / name, precision == "bf16").run(inputs, outputs)
        many = TINY(bundle / name, precision == "bf16").run(inputs, outputs)
        expected = one if precision == "bf16" else whole(bundle, name, inputs, outputs)
        for output in outputs:
            np.testing.assert_array_equal(one[output], expected[output], f"{name} {output}")
            if one[output].dtype.kind != "f" and precision == "fp16":
                continue  # a cut rounds what ONNX Runtime would hold in float32, which may decide a near tie
            if one[output].dtype.kind != "f":
                np.testing.assert_array_equal(many[output], one[output], f"{name} {output}")
                continue
            scale = float(np.abs(one[output].astype(np.float32)).max())
            np.testing.assert_allclose(
                many[output].astype(np.float32), one[output].astype(np.float32), rtol=0,
                atol=scale * (2e-3 if precision == "fp16" else 1e-6), err_msg=f"{name} {output}",
            )  # fmt: skip


def test_an_output_that_is_not_there(built: tuple[Path, str, Calls]) -> None:
    inputs, _ = built[2]["embed.onnx"]
    with pytest.raises(KeyError):
        Graph(built[0] / "embed.onnx", built[1] == "bf16").run(inputs, ["hidden"])


def test_the_twin_computes_in_float32_with_what_was_written(built: tuple[Path, str, Calls]) -> None:
    bundle, precision, _ = built
    if precision != "bf16":
        pytest.skip("a twin stands for bf16")
    for name in built[2]:
        written = onnx.load(bundle / name, load_external_data=False)
        twin = float_twin(onnx.load(bundle / name, load_external_data=False), bundle)
        assert [node.op_type for node in twin.graph.node] == [node.op_type for node in written.graph.node]
        half = onnx.TensorProto.BFLOAT16
        for value in (*twin.graph.input, *twin.graph.output):
            assert value.type.tensor_type.elem_type != half
        assert not any(a.name == "to" and a.i == half for node in twin.graph.node for a in node.attribute)
        for weight in twin.graph.initializer:  # those of the file stay there
            assert weight.data_type != half or weight.data_location == onnx.TensorProto.EXTERNAL


def test_the_twin_rounds_what_was_written_in_float32(tmp_path: Path) -> None:
    """As PyTorch's weights are beside it."""
    scale = np.array([1.001, -3.1415], np.float32)
    with WeightFile(tmp_path / "w.data", ir.DataType.BFLOAT16) as weights:
        g = GraphBuilder("test", weights)
        x = g.to_float(g.input("x", g.dtype, ["N", 2]))
        g.output("y", g.op("Mul", x, g.weight("scale", lambda: scale, FLOAT)), FLOAT, ["N", 2])
        g.save(tmp_path / "test.onnx")
    got = Graph(tmp_path / "test.onnx", twin=True).run({"x": np.ones((1, 2), np.float32)}, ["y"])["y"][0]
    np.testing.assert_array_equal(got, scale.astype(ml_dtypes.bfloat16).astype(np.float32))
    assert (got != scale).all()


def spoil(bundle: Path, name: str) -> None:
    """Writes zeros over a weight of the target."""
    graph = onnx.load(bundle / "target.onnx", load_external_data=False).graph
    weight = next(weight for weight in graph.initializer if weight.name == name)
    place = {entry.key: entry.value for entry in weight.external_data}
    with open(bundle / place["location"], "r+b") as file:
        file.seek(int(place["offset"]))
        file.write(b"\0" * int(place["length"]))


@pytest.fixture
def spoilt(
    arguments: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, str], Result]:
    """A build in groups of one layer whose weight is lost behind PyTorch's back."""

    def run(precision: str, name: str) -> Result:
        def check(parts: Any, options: Any, folder: Path, manifest: Any) -> dict[str, Any]:
            spoil(folder, name)
            return parity.check_parity(parts, options, folder, manifest)

        monkeypatch.setattr(parity, "Graph", TINY)
        monkeypatch.setattr(building, "check_parity", check)
        out = ["--precision", precision, "--out", tmp_path / "bundle"]
        return CliRunner().invoke(cli, ["build", *map(str, [*arguments, *out])])

    return run


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", [f"layers.{i}.feed_forward.down.T" for i in range(LAYERS)] + ["norm"])
def test_a_fault_of_any_group_is_found(spoilt: Callable[[str, str], Result], precision: str, name: str) -> None:
    result = spoilt(precision, f"target.{name}")
    assert result.exit_code == 2, result.output
    assert "of the engine target differs from PyTorch" in result.stderr


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_groups_of_other_families(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, precision: str) -> None:
    """Forced tokens, norms of queries and keys, a table of rotations that all layers share; a head with a bias, which
    is written in float32 and rounded for the twin."""
    monkeypatch.setattr(parity, "Graph", TINY)
    build(name, *FAMILIES[name], "--precision", precision, "--out", tmp_path / "bundle")
    manifest = read_manifest(tmp_path / "bundle")
    for engine in ("target", "embed"):
        outputs = manifest.parity[engine]["outputs"].values()
        assert max(output["relative"] for output in outputs) < 1e-5
    assert manifest.parity["target"]["drawn"]["ties"] == 0
