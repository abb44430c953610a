"""Several graphs as one model: ONNX Runtime packs a weight once for each session that reads it, so graphs that share
weights share the packed copies only inside one session.

inputs   graph int64 []: the number of the graph that a call runs, in the order of `merge`'s `graphs`
         <name>/<input>: the inputs of each graph; those of graphs that do not run need not be given
outputs  <name>/<output>: the outputs of each graph; those of graphs that do not run are empty

Graph k is the then-branch of an If of its own. The Ifs lie side by side: ONNX Runtime packs weights for branches of
the outermost graph, but not for an If inside an If.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from .builder import INT64, IR_VERSION, OPSET

CHOICE = "graph"


def merge(graphs: Mapping[str, Path], out: Path) -> None:
    """Writes the model of `graphs` (name -> file) to `out`, which must lie in their folder: it reads the same weight
    files. Raises ValueError for graphs of another folder, or for one name that stands for two weights."""
    if strays := [path for path in graphs.values() if path.parent != out.parent]:
        raise ValueError(f"{strays[0]} is not in the folder of {out}")
    merged = _Merged()
    for name, path in graphs.items():
        merged.add(name, ir.load(path).graph)
    ir.save(ir.Model(merged.graph(out.stem), ir_version=IR_VERSION, producer_name="cascade-trt"), out)


@dataclass
class _Merged:
    """The root graph while it grows."""

    choice: ir.Value = field(default_factory=lambda: ir.val(CHOICE, INT64, []))
    inputs: list[ir.Value] = field(default_factory=list)
    outputs: list[ir.Value] = field(default_factory=list)
    nodes: list[ir.Node] = field(default_factory=list)
    initializers: dict[str, ir.Value] = field(default_factory=dict)
    operators: dict[str, int] = field(default_factory=lambda: {"": OPSET})  # {domain: version}
    count: int = 0

    def graph(self, name: str) -> ir.Graph:
        return ir.Graph(
            [self.choice, *self.inputs], self.outputs, nodes=self.nodes,
            initializers=list(self.initializers.values()), opset_imports=self.operators, name=name,
        )  # fmt: skip

    def add(self, name: str, graph: ir.Graph) -> None:
        outputs = [str(value.name) for value in graph.outputs]
        self._take_weights(graph)
        self._take_inputs(name, graph)
        self.operators |= graph.opset_imports
        _rename(name, graph)
        number = _constant(f"{CHOICE}:{name}:number", np.array(self.count, np.int64))
        self.initializers[f"{CHOICE}:{name}:number"] = number
        self.count += 1
        chosen = ir.node("Equal", [self.choice, number], name=f"{CHOICE}:{name}")
        chosen.outputs[0].name = f"{CHOICE}:{name}:is"
        branches = {"then_branch": graph, "else_branch": _nothing(name, graph)}
        run = ir.node("If", [chosen.outputs[0]], branches, num_outputs=len(outputs), name=name)
        for value, inner, output in zip(run.outputs, graph.outputs, outputs, strict=True):
            assert inner.shape is not None  # GraphBuilder.output gives one
            value.name, value.type = f"{name}/{output}", inner.type
            value.shape = ir.Shape([None] * len(inner.shape))  # a name of a size would bind the empty outputs too
        self.nodes.extend((chosen, run))
        self.outputs.extend(run.outputs)

    def _take_weights(self, graph: ir.Graph) -> None:
        """Tensors of the weight files become the root's, once; small constants stay with their graph."""
        for name, value in list(graph.initializers.items()):
            if not isinstance(value.const_value, ir.ExternalTensor):
                continue
            shared = self.initializers.setdefault(name, value)
            if _place(shared) != _place(value):
                raise ValueError(f"{name} stands for two weights: {_place(shared)} and {_place(value)}")
            if shared is not value:
                value.replace_all_uses_with(shared)
            graph.initializers.pop(name)

    def _take_inputs(self, prefix: str, graph: ir.Graph) -> None:
        """A branch has no inputs of its own: it reads the root's."""
        for value in graph.inputs:
            value.name = f"{prefix}/{value.name}"
        self.inputs.extend(graph.inputs)
        graph.inputs.clear()


def _rename(prefix: str, graph: ir.Graph) -> None:
    """Names in a branch must differ from those of the root and of other branches. What has none keeps none: an
    output without a name is one that is left out."""
    graph.name = prefix
    nodes = list(graph)
    for named in (*graph.initializers.values(), *nodes, *(value for node in nodes for value in node.outputs)):
        if named.name:
            named.name = f"{prefix}:{named.name}"


def _nothing(name: str, graph: ir.Graph) -> ir.Graph:
    """What stands for a graph that does not run: an empty tensor for each of its outputs."""
    values = []
    for value in graph.outputs:
        assert value.shape is not None and value.dtype is not None  # GraphBuilder.output gives both
        values.append(_constant(f"{value.name}:none", np.zeros([0] * len(value.shape), value.dtype.numpy())))
    return ir.Graph([], values, nodes=[], initializers=values, name=f"{name}:none")


def _constant(name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    return ir.val(name, tensor.dtype, array.shape, const_value=tensor)


def _place(weight: ir.Value) -> tuple[str, int | None, int | None]:
    """Where a weight lies: file, offset, length."""
    tensor = weight.const_value
    assert isinstance(tensor, ir.ExternalTensor)  # the caller asks for no others
    return str(tensor.location), tensor.offset, tensor.length
