"""Tools of the graph tests: export to a temporary folder, run in ONNX Runtime, look at the nodes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from cascade_trt.export.checkpoints.source import Derived, RenamedSource
from cascade_trt.export.graphs.builder import GraphBuilder
from cascade_trt.export.graphs.weights import PRECISIONS, WeightFile


def in_memory(tensors: dict[str, torch.Tensor]) -> RenamedSource:
    found = {name: Derived(tuple(x.shape), lambda x=x: x.detach()) for name, x in tensors.items()}
    return RenamedSource(Path("memory"), found)


class ExportedGraph:
    """One exported graph: call it with numpy inputs by name; `nodes` are its node types."""

    def __init__(self, path: Path) -> None:
        model = onnx.load(path, load_external_data=False)
        onnx.checker.check_model(path)
        self.nodes = {node.op_type for node in model.graph.node}
        self.session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])

    def __call__(self, **inputs: np.ndarray) -> np.ndarray:
        return self.session.run(None, inputs)[0]


@pytest.fixture
def export_graph(tmp_path: Path) -> Callable[..., ExportedGraph]:
    """export_graph(build, tensors, *arguments, precision="fp32") -> the ExportedGraph, nodes checked."""

    def export(build: Callable, tensors: dict[str, torch.Tensor], *arguments, precision: str = "fp32"):
        path = tmp_path / f"{build.__name__}-{precision}.onnx"
        with WeightFile(path.with_suffix(".weights"), PRECISIONS[precision]) as weights:
            builder = GraphBuilder("test", weights)
            build(builder, in_memory(tensors), *arguments)
            builder.save(path)
        assert weights.overflowed == []
        graph = ExportedGraph(path)
        assert not graph.nodes & {"Shape", "If", "Loop", "Scan"}
        return graph

    return export


@pytest.fixture
def memory_source() -> Callable[[dict[str, torch.Tensor]], RenamedSource]:
    """memory_source(tensors) -> a TensorSource over them."""
    return in_memory


@pytest.fixture
def llamagen_fixture() -> Path:
    """Folder of the small LlamaGen checkpoint with the original code's outputs."""
    root = Path(__file__).resolve().parents[2]
    folders = [root / "tests" / "fixtures", root / "shared" / "fixtures", root.parent / "shared" / "fixtures"]
    found = [folder / "llamagen-tiny" for folder in folders if (folder / "llamagen-tiny").is_dir()]
    if not found:
        pytest.skip("the llamagen-tiny fixture is not here")
    return found[0]
