"""Doubled query heads: where they are used, and that they change no answer."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from cascade_trt.engines.tensorrt.build import builder_options
from cascade_trt.engines.tensorrt.grouping import query_heads
from cascade_trt.engines.tensorrt.target import parse_target


@pytest.mark.parametrize(
    ("names", "precision", "heads"),
    [("rtx:sm89", "fp16", 2), ("rtx:sm120", "bf16", 2), ("rtx:sm121", "fp16", 2), ("rtx:sm89 rtx:sm120", "fp16", 2),
     ("rtx:sm86", "fp16", 1), ("rtx:sm75", "fp16", 1), ("rtx:sm86 rtx:sm120", "fp16", 1),
     ("rtx:sm89", "fp32", 1), ("tensorrt", "fp16", 1)],
)  # fmt: skip
def test_only_where_the_kernel_is_known_to_read_in_place(names: str, precision: str, heads: int) -> None:
    targets = [parse_target(name) for name in names.split()]
    assert query_heads(targets, precision) == heads
    assert builder_options(targets, precision)["query_heads"] == heads
    assert builder_options(targets, precision, plain_attention=True)["query_heads"] == 1


def attention(heads: int, queries: np.ndarray, keys: np.ndarray, values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The standard's Attention on ONNX Runtime."""
    feeds = {"q": queries, "k": keys, "v": values, "m": mask}
    kinds = {"q": TensorProto.FLOAT, "k": TensorProto.FLOAT, "v": TensorProto.FLOAT, "m": TensorProto.BOOL}
    inputs = [helper.make_tensor_value_info(name, kinds[name], array.shape) for name, array in feeds.items()]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, (keys.shape[0], heads, *queries.shape[2:]))]
    node = helper.make_node("Attention", ["q", "k", "v", "m"], ["y"], scale=0.25)
    graph = helper.make_graph([node], "g", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["y"], feeds)[0])


def test_the_first_of_two_equal_heads_answers_as_one_would() -> None:
    """Of 2 H query heads, 2 h and 2 h + 1 read key head h: the order in which the network is rewritten."""
    rng = np.random.default_rng(0)
    queries, keys, values = (rng.normal(size=(2, 4, n, 16)).astype(np.float32) for n in (6, 20, 20))
    mask = rng.random((2, 1, 6, 20)) < 0.7
    mask[..., 0] = True
    once = attention(4, queries, keys, values, mask)
    twice = attention(8, np.repeat(queries, 2, axis=1), keys, values, mask)
    np.testing.assert_allclose(twice.reshape(2, 4, 2, 6, 16)[:, :, 0], once, rtol=0, atol=1e-6)
