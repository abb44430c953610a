"""Rewrites the attentions of a parsed network so that they read the KV cache where it lies (`attention.py`).

TensorRT-RTX's kernels for grouped queries (more query heads than key heads) take keys and values as they are. The
numbers are the same in both forms; attention's own products, which are small, are done twice in the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

SCRATCH = "scratch."  # the names of the outputs that `double_query_heads` adds start so
_GROUP = 2  # query heads that share a key head
_ZERO = np.zeros(1, np.int32)  # here, because TensorRT does not copy what it is given


def double_query_heads(trt: Any, network: Any) -> None:
    """Every query head twice, in each attention: queries [R, H, N, D], keys [R, H, S, D], masks [R, 1, N, S].

    The second answer is dropped. The kernel reads the cache in place only if the queries are an input or output of
    the engine, so they are shown as outputs `scratch.i` [R, 2 H, N, D] that nobody reads. A model whose queries share
    key heads anyway keeps its queries [R, H, N, D], and they are shown.
    """
    layers = _layers(network)
    for index, (attention, end) in enumerate(_attentions(trt, layers)):
        queries, keys = attention.get_input(0), attention.get_input(1)
        heads, dim = keys.shape[1], keys.shape[3]
        if queries.shape[1] > heads:
            _show(network, queries, index)
            continue
        answer = end.get_output(0)
        readers = _readers(layers, answer)
        once = _reshape(network, queries, (0, heads, 1, -1, dim))
        grouped = network.add_concatenation([once] * _GROUP)
        grouped.axis = 2
        doubled = _reshape(network, grouped.get_output(0), (0, _GROUP * heads, -1, dim))
        _show(network, doubled, index)
        attention.set_input(0, doubled)
        both = _reshape(network, answer, (0, heads, _GROUP, -1, dim))
        _replace(readers, network.add_gather(both, _zero(trt, network), 2).get_output(0))  # [R, H, N, D]


def _show(network: Any, queries: Any, index: int) -> None:
    """Makes the queries of attention `index` an output."""
    queries.name = f"{SCRATCH}{index}"
    network.mark_output(queries)


def nodes_as_query_heads(trt: Any, network: Any, dimension: str, size: int) -> None:
    """Every node a query head: queries [R, H, N, D] become [R, H N, 1, D] with masks [R, H N, 1, S], keys stay.

    The number of heads must be fixed, so the open `dimension` in which nodes are counted has `size` from now on:
    inputs lose it.
    """
    _fix(network, dimension, size)
    layers = _layers(network)
    masks: dict[str, Any] = {}  # name of a mask -> its form for each head; layers of the target share one
    for attention, end in _attentions(trt, layers):
        queries, mask, answer = attention.get_input(0), attention.get_input(3), end.get_output(0)
        heads, nodes, dim = tuple(queries.shape)[1:]
        readers = _readers(layers, answer)
        if mask.name not in masks:
            every = network.add_concatenation([mask] * heads)
            every.axis = 1
            masks[mask.name] = _reshape(network, every.get_output(0), (0, heads * nodes, 1, -1))
        attention.set_input(3, masks[mask.name])
        attention.set_input(0, _reshape(network, queries, (0, heads * nodes, 1, dim)))
        _replace(readers, _reshape(network, answer, (0, heads, nodes, dim)))


def _fix(network: Any, dimension: str, size: int) -> None:
    """Gives every input's open `dimension` its size."""
    for tensor in (network.get_input(index) for index in range(network.num_inputs)):
        names = [tensor.get_dimension_name(axis) for axis in range(len(tensor.shape))]
        if dimension in names:
            tensor.shape = [size if name == dimension else old for name, old in zip(names, tensor.shape, strict=True)]


def _layers(network: Any) -> list[Any]:
    return [network.get_layer(index) for index in range(network.num_layers)]


def _attentions(trt: Any, layers: Sequence[Any]) -> list[tuple[Any, Any]]:
    """First and last layer of each attention."""
    ends = {layer.get_input(0).name: layer for layer in layers if layer.type == trt.LayerType.ATTENTION_OUTPUT}
    starts = [layer for layer in layers if layer.type == trt.LayerType.ATTENTION_INPUT]
    return [(layer, ends[layer.get_output(0).name]) for layer in starts]


def _readers(layers: Sequence[Any], tensor: Any) -> list[tuple[Any, int]]:
    """Layers that read `tensor`, and as which input."""
    found = []
    for layer in layers:
        for place in range(layer.num_inputs):
            read = layer.get_input(place)
            if read is not None and read.name == tensor.name:
                found.append((layer, place))
    return found


def _replace(readers: Sequence[tuple[Any, int]], tensor: Any) -> None:
    """Has `readers` read `tensor` instead."""
    for reader, place in readers:
        reader.set_input(place, tensor)


def _reshape(network: Any, tensor: Any, dims: tuple[int, ...]) -> Any:
    """0 keeps a dimension and -1 stands for the rest, as in ONNX."""
    layer = network.add_shuffle(tensor)
    layer.reshape_dims = dims
    return layer.get_output(0)


def _zero(trt: Any, network: Any) -> Any:
    """A scalar index."""
    return network.add_constant((), trt.Weights(_ZERO)).get_output(0)
