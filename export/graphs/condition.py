"""The `condition` graph: what the image should show, as prefix embeddings for `target`.

| input | shape | what |
|---|---|---|
| features | [R, T, C] | text features, padded slots zero (models that read features) |
| class_ids | int64 [R] | class of each row (class-conditional models) |
| ids | int64 [R, T] | token ids of each row (models that read those); the rows for guidance have ids of their own |
| uncond | bool [R] | rows that get the null condition instead, for guidance (not with `ids`) |

| output | shape | what |
|---|---|---|
| prefix | [R, T, D] | prefix embeddings; the last slot is valid in every row |
"""

from __future__ import annotations

from ...runtime.bundle import FEATURES, TOKENS
from ..checkpoints.source import TensorSource
from ..model import Conditioner
from .builder import BOOL, INT64, GraphBuilder, as_numpy


def build_condition(g: GraphBuilder, weights: TensorSource, conditioner: Conditioner, dim: int) -> None:
    """Fills `g` with a model's conditioner."""
    info, shape = conditioner.info, ["R", conditioner.info.length, dim]
    if info.kind == TOKENS:
        ids = g.input("ids", INT64, ["R", info.length])
        table = g.weight("condition.embedding", lambda: as_numpy(weights.load("condition.embedding.weight")))
        g.output("prefix", g.op("Gather", table, ids, axis=0), g.dtype, shape)
        return
    assert conditioner.build is not None  # `Conditioner` checks it
    if info.kind == FEATURES:
        given = g.input("features", g.dtype, ["R", info.length, info.width])
    else:
        given = g.input("class_ids", INT64, ["R"])
    uncond = g.input("uncond", BOOL, ["R"])
    g.output("prefix", conditioner.build(g, weights, given, uncond), g.dtype, shape)
