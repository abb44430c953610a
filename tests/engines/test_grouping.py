"""Forms of attention: where they are used, and that they change no answer."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from cascade_trt.engines.tensorrt.attention import AttentionForm, attention_form
from cascade_trt.engines.tensorrt.build import builder_options
from cascade_trt.engines.tensorrt.target import parse_target
from cascade_trt.runtime.bundle import FIXED_NODES, FIXED_PAIRS

PLAIN, DOUBLED, NODES = AttentionForm


@pytest.mark.parametrize(
    ("names", "precision", "form"),
    [("rtx:sm89", "fp16", DOUBLED), ("rtx:sm120", "bf16", DOUBLED), ("rtx:sm121", "fp16", DOUBLED),
     ("rtx:sm89 rtx:sm120", "fp16", DOUBLED), ("rtx:sm86", "fp16", NODES), ("rtx:sm86", "bf16", NODES),
     ("rtx:sm120 rtx:sm86", "fp16", NODES), ("rtx:sm86", "fp32", PLAIN),
     ("rtx:sm89", "fp32", PLAIN), ("tensorrt", "fp16", PLAIN)],
)  # fmt: skip
def test_the_form_that_all_gpus_of_a_plan_read_in_place(names: str, precision: str, form: AttentionForm) -> None:
    targets = [parse_target(name) for name in names.split()]
    assert attention_form(targets, precision, nodes=9) is form
    assert attention_form(targets, precision, nodes=1) is (PLAIN if form is NODES else form)
    for fixed in (FIXED_NODES, FIXED_PAIRS):
        options = builder_options(form, fixed, 9)
        assert options["attention"] == form.value and options.get(fixed) == (9 if form is NODES else None)


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


def test_nodes_of_queries_that_share_key_heads() -> None:
    """The same of four query heads on two key heads: a model's own groups, each N times as large."""
    queries, keys, values, mask = tensors()
    keys, values = keys[:, :2], values[:, :2]
    once = attention(4, queries, keys, values, mask)
    second = attention(1, queries[:, 1:2], keys[:, :1], values[:, :1], mask)  # reads the first key head
    np.testing.assert_allclose(once[:, 1:2], second, rtol=0, atol=1e-6)
    masks = np.repeat(mask, 4, axis=1).reshape(2, 24, 1, 20)
    apart = attention(24, queries.reshape(2, 24, 1, 16), keys, values, masks)
    np.testing.assert_allclose(apart.reshape(2, 4, 6, 16), once, rtol=0, atol=1e-6)


def tensors() -> tuple[np.ndarray, ...]:
    """Queries [2, 4, 6, 16], keys and values [2, 4, 20, 16], and a mask [2, 1, 6, 20] that leaves no row empty."""
    rng = np.random.default_rng(0)
    queries, keys, values = (rng.normal(size=(2, 4, n, 16)).astype(np.float32) for n in (6, 20, 20))
    mask = rng.random((2, 1, 6, 20)) < 0.7
    mask[..., 0] = True
    return queries, keys, values, mask


def test_the_first_of_two_equal_heads_answers_as_one_would() -> None:
    """Of 2 H query heads, 2 h and 2 h + 1 read key head h: the order in which the network is rewritten."""
    queries, keys, values, mask = tensors()
    once = attention(4, queries, keys, values, mask)
    twice = attention(8, np.repeat(queries, 2, axis=1), keys, values, mask)
    np.testing.assert_allclose(twice.reshape(2, 4, 2, 6, 16)[:, :, 0], once, rtol=0, atol=1e-6)


def test_a_node_answers_as_a_query_head_of_its_own() -> None:
    """Of H N query heads, h N + n reads key head h with the mask of node n: the network's form for sm86."""
    queries, keys, values, mask = tensors()
    once = attention(4, queries, keys, values, mask)
    masks = np.repeat(mask, 4, axis=1).reshape(2, 24, 1, 20)
    apart = attention(24, queries.reshape(2, 24, 1, 16), keys, values, masks)
    np.testing.assert_allclose(apart.reshape(2, 4, 6, 16), once, rtol=0, atol=1e-6)
