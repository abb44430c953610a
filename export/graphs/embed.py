"""The `embed` graph: token ids to input embeddings.

| input | shape | what |
|---|---|---|
| ids | int64 [R, N] | codes and syntax tokens |

| output | shape | what |
|---|---|---|
| embeds | [R, N, D] | what `target` takes as `embeds` |
"""

from __future__ import annotations

import onnx_ir as ir

from ..checkpoints.source import TensorSource
from .builder import INT64, GraphBuilder, as_numpy


def embedding(g: GraphBuilder, weights: TensorSource) -> ir.Value:
    """The target's table [tokens, D], which its weight file holds once for all graphs."""
    return g.weight("target.embedding", lambda: as_numpy(weights.load("embedding.weight")))


def build_embed(g: GraphBuilder, weights: TensorSource) -> None:
    """Fills `g` with the embedding lookup; the table goes to (or is found in) the weight file of `g`."""
    ids = g.input("ids", INT64, ["R", "N"])
    width = weights.shape("embedding.weight")[1]
    g.output("embeds", g.op("Gather", embedding(g, weights), ids, axis=0), g.dtype, ["R", "N", width])
