"""Attention that reads the KV cache where it lies: every query head twice.

Before its attention kernel for several nodes, TensorRT-RTX 1.7.1 copies keys and values [R, H, S, D] to [R H, S, D] in
layers of their own: the whole cache, in every call. From Ada on, the kernel for grouped queries (more query heads
than key heads) takes the cache as it is, provided that the queries are an input or output of the engine. So the
parsed network gets every query head twice, drops the second answer, and shows the queries as outputs `scratch.i`
[R, 2 H, N, D] that nobody reads. The numbers are the same; attention's own products, which are small, are done twice.
The ONNX file stays as it is. docs/tensorrt.md has the layer counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .target import Target

SCRATCH = "scratch."  # the names of the added outputs start so
_FIRST = (8, 9)  # Ada; for Ampere keys and values would be copied twice
_GROUP = 2  # query heads that share a key head
_ZERO = np.zeros(1, np.int32)  # here, because TensorRT does not copy what it is given


def query_heads(targets: Sequence[Target], precision: str) -> int:
    """How many times each query head is to be computed: 2 where all `targets` then read the cache in place, else 1.

    Only TensorRT-RTX's fused attention (half precisions) is known to do so.
    """
    if precision not in ("fp16", "bf16"):
        return 1
    for target in targets:
        capability = target.compute_capability
        if target.backend != "tensorrt-rtx" or capability is None or capability < _FIRST:
            return 1
    return _GROUP


def double_query_heads(trt: Any, network: Any) -> None:
    """Rewrites the attentions of `network` whose cache nothing else reads: queries [R, H, N, D], keys [R, H, S, D].

    A cache that other layers read as well (a drafter's) is copied for those anyway. Masks must be [R, 1, N, S].
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    ends = {layer.get_input(0).name: layer for layer in layers if layer.type == trt.LayerType.ATTENTION_OUTPUT}
    starts = [layer for layer in layers if layer.type == trt.LayerType.ATTENTION_INPUT]
    alone = [layer for layer in starts if len(_readers(layers, layer.get_input(2))) == 1]
    for index, attention in enumerate(alone):
        queries, keys = attention.get_input(0), attention.get_input(1)
        heads, dim = keys.shape[1], keys.shape[3]
        answer = ends[attention.get_output(0).name].get_output(0)
        readers = _readers(layers, answer)
        once = _reshape(trt, network, queries, (0, heads, 1, -1, dim))
        grouped = network.add_concatenation([once] * _GROUP)
        grouped.axis = 2
        doubled = _reshape(trt, network, grouped.get_output(0), (0, _GROUP * heads, -1, dim))
        doubled.name = f"{SCRATCH}{index}"
        network.mark_output(doubled)
        attention.set_input(0, doubled)
        both = _reshape(trt, network, answer, (0, heads, _GROUP, -1, dim))
        first = network.add_gather(both, _zero(trt, network), 2).get_output(0)  # [R, H, N, D]
        for reader, place in readers:
            reader.set_input(place, first)


def _readers(layers: Sequence[Any], tensor: Any) -> list[tuple[Any, int]]:
    """Layers that read `tensor`, and as which input."""
    found = []
    for layer in layers:
        for place in range(layer.num_inputs):
            read = layer.get_input(place)
            if read is not None and read.name == tensor.name:
                found.append((layer, place))
    return found


def _reshape(trt: Any, network: Any, tensor: Any, dims: tuple[int, ...]) -> Any:
    """0 keeps a dimension and -1 stands for the rest, as in ONNX."""
    layer = network.add_shuffle(tensor)
    layer.reshape_dims = trt.Dims(dims)
    return layer.get_output(0)


def _zero(trt: Any, network: Any) -> Any:
    """A scalar index."""
    return network.add_constant((), trt.Weights(_ZERO)).get_output(0)
