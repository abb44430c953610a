"""Runs a written graph once in ONNX Runtime, one group of its layers after the other.

ONNX Runtime holds what it computes with in float32 on a CPU, whatever the graph's precision: 27 GiB for a model of 7B.
So the graph is cut between its outermost scopes ("layers.3" ends, "layers.4" begins) into groups of consecutive nodes,
as many as fit `LIMIT`. Each group is a session of its own, which reads its weights from the bundle's files where they
lie and gets by name whatever an earlier group has computed. A graph that fits is one group.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

# Bytes of a group's weights in float32: three layers of a 7B model. ONNX Runtime needs twice that for a moment, as it
# packs them.
LIMIT = 3 << 30
_FOLDER = "session.model_external_initializers_file_folder_path"  # where a model from memory finds its weight files


@dataclass(frozen=True)
class Graph:
    """A graph as it was written, its weights left in their files; `twin`: as float32 with weights of bfloat16, for
    which ONNX Runtime has no kernels on CPUs."""

    file: Path
    twin: bool = False
    limit: int = LIMIT

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """The graph's `outputs` for `inputs`, which may be wider than the graph's own; a cache that is not given
        (`past_*`) is empty. Raises KeyError for an output that the graph does not have."""
        model = onnx.load(str(self.file), load_external_data=False)
        if self.twin:
            model = float_twin(model, self.file.parent)
        made = {value.name for value in model.graph.output}
        if missing := [name for name in outputs if name not in made]:
            raise KeyError(missing[0])
        values = dict(inputs)
        rows = len(inputs["positions"]) if "positions" in inputs else 0
        groups = cut(model, self.limit)
        for group, needed in zip(groups, _needed(groups, outputs), strict=True):
            part = _Part(model, group, values, rows)
            asked = [name for name in part.makes if name in needed] or [name for name in part.makes if name in made]
            values |= part.run(self.file.parent, asked)
            values = {name: value for name, value in values.items() if name in needed}
        return {name: values[name] for name in outputs}


def cut(model: ModelProto, limit: int) -> list[list[NodeProto]]:
    """All nodes in their order, in groups that are one scope or whose weights take at most `limit` bytes in float32."""
    sizes = {weight.name: 4 * prod(weight.dims) for weight in model.graph.initializer}
    groups: list[list[NodeProto]] = []
    held: set[str] = set()
    for _, scope in groupby(model.graph.node, lambda node: _outermost(node.name)):
        nodes = list(scope)
        own = {name for node in nodes for name in node.input if name in sizes}
        if not groups or sum(sizes[name] for name in held | own) > limit:
            groups.append([])
            held = set()
        groups[-1] += nodes
        held |= own
    return groups


def _outermost(node: str) -> str:
    """"layers.0" of "/layers.0/attention/MatMul"; nothing of "/Transpose"."""
    return node.split("/")[1] if node.count("/") > 1 else ""


def _needed(groups: Sequence[Sequence[NodeProto]], outputs: Iterable[str]) -> list[set[str]]:
    """For each group, the names that are read after it."""
    after, found = set(outputs), []
    for group in reversed(groups):
        found.append(set(after))
        after |= {name for node in group for name in node.input}
    return found[::-1]


@dataclass(frozen=True)
class _Part:
    """One group of a model's nodes, and `values`: the graph's inputs and what earlier groups have computed.

    An empty cache has `rows` rows.
    """

    model: ModelProto
    nodes: Sequence[NodeProto]
    values: Mapping[str, np.ndarray]
    rows: int

    @property
    def makes(self) -> list[str]:
        return [name for node in self.nodes for name in node.output if name]

    def run(self, folder: Path, outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """Its session is gone afterwards, so groups are never in memory together."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry(_FOLDER, str(folder))
        given = self._given()
        model = self._model(given, outputs).SerializeToString()
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return dict(zip(outputs, map(np.asarray, session.run(list(outputs), given)), strict=True))

    def _reads(self) -> list[str]:
        """What comes from outside of the group, each name once; weights are part of the group."""
        own = {*self.makes, *(weight.name for weight in self.model.graph.initializer), ""}
        return list(dict.fromkeys(name for node in self.nodes for name in node.input if name not in own))

    def _given(self) -> dict[str, np.ndarray]:
        """What the group reads, inputs of the graph in their own type."""
        declared = {value.name: value.type.tensor_type for value in self.model.graph.input}
        given = {}
        for name in self._reads():
            if name not in declared:
                given[name] = self.values[name]
                continue
            dtype = helper.tensor_dtype_to_np_dtype(declared[name].elem_type)
            if name in self.values or not name.startswith("past_"):
                given[name] = self.values[name].astype(dtype, copy=False)
            else:
                given[name] = np.zeros([self.rows, *(d.dim_value for d in declared[name].shape.dim[1:])], dtype)
        return given

    def _model(self, given: Mapping[str, np.ndarray], outputs: Iterable[str]) -> ModelProto:
        graph = self.model.graph
        read = {name for node in self.nodes for name in node.input}
        declared = {value.name: value for value in (*graph.input, *graph.output)}
        inputs = [declared.get(name) or _value(name, array) for name, array in given.items()]
        results = [declared.get(name) or onnx.ValueInfoProto(name=name) for name in outputs]  # ONNX Runtime infers it
        weights = [weight for weight in graph.initializer if weight.name in read]
        weights, casts = _widened(weights)
        own = helper.make_graph([*casts, *self.nodes], graph.name, inputs, results, weights)
        return helper.make_model(own, opset_imports=self.model.opset_import, ir_version=self.model.ir_version)


def _widened(weights: Iterable[TensorProto]) -> tuple[list[TensorProto], list[NodeProto]]:
    """`weights`, those of bfloat16 under other names, and what makes float32 of these under their own."""
    read, casts = [], []
    for weight in weights:
        if weight.data_type == TensorProto.BFLOAT16:
            half = TensorProto()
            half.CopyFrom(weight)
            half.name = f"{weight.name}:half"
            casts.append(helper.make_node("Cast", [half.name], [weight.name], to=TensorProto.FLOAT))
            weight = half
        read.append(weight)
    return read, casts


def _value(name: str, array: np.ndarray) -> onnx.ValueInfoProto:
    """Of any size, so that sizes of one group are not taken for those of another."""
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor_value_info(name, kind, [None] * array.ndim)


def float_twin(model: ModelProto, folder: Path) -> ModelProto:
    """`model`, a graph of `folder` in bfloat16, changed to compute in float32. Weights of bfloat16 stay in their files:
    a group reads them through casts.

    Weights that were written in float32 are rounded, because all are that PyTorch reads beside them; not the tables of
    rotations, which are computed and no weights.
    """
    graph = model.graph
    computed = {name for node in graph.node if node.op_type == "RotaryEmbedding" for name in node.input}
    for weight in graph.initializer:
        is_file, is_half = weight.data_location == TensorProto.EXTERNAL, weight.data_type == TensorProto.BFLOAT16
        is_rounded = weight.data_type == TensorProto.FLOAT and weight.name not in computed
        if (is_file and is_rounded) or (is_half and not is_file):
            array = numpy_helper.to_array(weight, str(folder)).astype(ml_dtypes.bfloat16)
            weight.CopyFrom(numpy_helper.from_array(array.astype(np.float32), weight.name))
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT
    return model
