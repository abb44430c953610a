"""A graph once more, in operators that only ONNX Runtime has: a GPU starts fewer kernels for it.

x + y and the RMSNormalization that reads the sum become one SkipSimplifiedLayerNormalization, which gives both. That is
twice in each layer. Both add in the graph's precision and take the statistics in float32 (on CUDA since ONNX Runtime
1.31, which `ort-cuda` asks for). TensorRT reads the standard graph, of which it makes fewer layers.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

DOMAIN = "com.microsoft"  # of ONNX Runtime's operators
FUSED = ".fused.onnx"  # how the files' names end


def write_fused(standard: Path, out: Path) -> bool:
    """Writes the fused form of the model in `standard` to `out`, which must lie in its folder: both read the same
    weight files. False, and no file, where there is nothing to fuse."""
    if out.parent != standard.parent:
        raise ValueError(f"{out} is not in the folder of {standard}")
    model = ir.load(standard)
    graph, fused = model.graph, False
    for norm in list(graph):
        if norm.op_type == "RMSNormalization" and (add := _sum_before(norm)) is not None:
            _fuse(graph, add, norm)
            fused = True
    if fused:
        model.opset_imports[DOMAIN] = 1
        ir.save(model, out)
    return fused


def _sum_before(norm: ir.Node) -> ir.Node | None:
    """The Add of two activations [R, N, D] whose sum `norm` reads. A bias is a weight, and no activation."""
    value = norm.inputs[0]
    add = None if value is None else value.producer()
    if add is None or add.op_type != "Add" or any(x is None or x.is_initializer() for x in add.inputs):
        return None
    return add


def _fuse(graph: ir.Graph, add: ir.Node, norm: ir.Node) -> None:
    """One node in the place of the two: its first output is that of `norm`, its fourth the sum."""
    both = ir.node(
        "SkipSimplifiedLayerNormalization", [*add.inputs, norm.inputs[1]],
        {"epsilon": norm.attributes["epsilon"].as_float()}, domain=DOMAIN, num_outputs=4, name=norm.name,
    )  # fmt: skip
    graph.insert_before(add, both)
    for old, new in ((norm.outputs[0], both.outputs[0]), (add.outputs[0], both.outputs[3])):
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        new.name, new.type, new.shape = old.name, old.type, old.shape
    both.outputs[1].name = both.outputs[2].name = ""  # statistics: an output without a name is left out
    graph.remove([norm, add], safe=True)
