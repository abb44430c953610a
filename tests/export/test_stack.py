"""Parts of a layer as graphs, against NumPy: heads that are rotated at once, and what attention adds to its scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from cascade_trt.export.graphs import blocks
from cascade_trt.export.graphs.builder import BOOL, FLOAT, INT64, GraphBuilder
from cascade_trt.export.graphs.stack import Stack
from cascade_trt.export.graphs.weights import PRECISIONS, WeightFile
from cascade_trt.export.model import HALVES, StackSpec

ROWS, NODES, DIM, POSITIONS = 2, 5, 8, 30
RNG = np.random.default_rng(0)
ANGLES = RNG.normal(size=(POSITIONS, DIM // 2)).astype(np.float32)


def table(rows: int) -> np.ndarray:
    return np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=-1)[:rows]


def turned(x: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """x [R, heads, n, Dh] at positions [R, n], pairs being halves."""
    cos, sin = (table(POSITIONS)[positions][:, None, ..., i] for i in (0, 1))
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def run(path: Path, build, precision: str, **inputs: np.ndarray) -> list[np.ndarray]:
    """The outputs of what `build` puts into a graph of float32 inputs and outputs."""
    with WeightFile(path / "weights.data", PRECISIONS[precision]) as weights:
        g = GraphBuilder("test", weights)
        build(g)
        g.save(path / "graph.onnx")
    return ort.InferenceSession(path / "graph.onnx", providers=["CPUExecutionProvider"]).run(None, inputs)


@pytest.mark.parametrize(("heads", "few"), [(3, 3), (4, 2)])
@pytest.mark.parametrize(("precision", "dtype", "tolerance"), [("fp32", np.float32, 1e-6), ("fp16", np.float16, 1e-3)])
def test_queries_and_keys_turn_and_values_stay(
    tmp_path: Path, memory_source, heads: int, few: int, precision: str, dtype: type, tolerance: float
) -> None:
    """Rows may be at positions of their own; no bit of a value changes."""
    spec = StackSpec(heads * DIM, 1, heads, few, DIM, 16, 1e-5, table, HALVES)
    qkv = RNG.normal(size=(ROWS, NODES, (heads + 2 * few) * DIM)).astype(dtype).astype(np.float32)
    positions = RNG.integers(0, POSITIONS, (ROWS, NODES))

    def build(g: GraphBuilder) -> None:
        stack = Stack(g, memory_source({}), spec, "test", slots=8, rows=POSITIONS)
        given = g.input("qkv", FLOAT, ["R", "N", qkv.shape[2]])
        turns = stack.turns(g.input("positions", INT64, ["R", "N"]))
        for name, value in zip("qkv", stack.rotated_heads(0, g.from_float(given), turns), strict=True):
            g.output(f"{name}_heads", g.op("Identity", g.to_float(value)), FLOAT, ["R", None, "N", DIM])

    q, k, v = run(tmp_path, build, precision, qkv=qkv, positions=positions)
    expected = qkv.reshape(ROWS, NODES, -1, DIM).transpose(0, 2, 1, 3)
    np.testing.assert_array_equal(v, expected[:, heads + few:])
    np.testing.assert_allclose(q, turned(expected[:, :heads], positions), atol=tolerance, rtol=tolerance)
    np.testing.assert_allclose(k, turned(expected[:, heads : heads + few], positions), atol=tolerance, rtol=tolerance)
    assert not np.allclose(q, expected[:, :heads], atol=0.1)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])  # a CPU has no Where of bfloat16
def test_what_is_not_visible_counts_nothing_and_is_finite(tmp_path: Path, precision: str) -> None:
    visible = RNG.random((ROWS, 1, NODES, 8)) < 0.5

    def build(g: GraphBuilder) -> None:
        bias = blocks.attention_bias(g, g.input("visible", BOOL, ["R", 1, "N", 8]))
        g.output("bias", g.op("Identity", g.to_float(bias)), ir.DataType.FLOAT, ["R", 1, "N", 8])

    (bias,) = run(tmp_path, build, precision, visible=visible)
    assert (bias[visible] == 0).all() and np.isfinite(bias).all()
    assert (np.exp(bias[~visible] + np.float32(1e4)) == 0).all()
