"""The `embed` graph: token ids to input embeddings.

| input | shape | what |
|---|---|---|
| ids | int64 [R, N] | image token ids |

| output | shape | what |
|---|---|---|
| embeds | [R, N, D] | what `target` takes as `embeds` |
"""

from __future__ import annotations

from ..checkpoints.source import TensorSource
from .builder import INT64, GraphBuilder, as_numpy

EMBEDDINGS = "target.tok_embeddings"  # the table's name in the target's weight file, where others read it


def build_embed(g: GraphBuilder, source: TensorSource) -> None:
    """Fills `g` with the embedding lookup; the table goes to (or is found in) the weight file of `g`."""
    ids = g.input("ids", INT64, ["R", "N"])
    table = g.weight(EMBEDDINGS, lambda: as_numpy(source.load("tok_embeddings.weight")))
    width = source.shape("tok_embeddings.weight")[1]
    g.output("embeds", g.op("Gather", table, ids, axis=0), g.dtype, ["R", "N", width])
