"""The `condition` graph: what the image should show, as prefix embeddings for `target`.

| input | shape | what |
|---|---|---|
| features | [R, T, C] | text features, padded slots zero (models that read features) |
| class_ids | int64 [R] | class of each row (class-conditional models) |
| uncond | bool [R] | rows that get the null condition instead, for guidance |

| output | shape | what |
|---|---|---|
| prefix | [R, T, D] | prefix embeddings; the last slot is valid in every row |
"""

from __future__ import annotations

from ...runtime.bundle import FEATURES
from ..checkpoints.source import TensorSource
from ..model import Conditioner
from .builder import BOOL, INT64, GraphBuilder


def build_condition(g: GraphBuilder, weights: TensorSource, conditioner: Conditioner, dim: int) -> None:
    """Fills `g` with a model's conditioner."""
    info = conditioner.info
    if info.kind == FEATURES:
        given = g.input("features", g.dtype, ["R", info.length, info.width])
    else:
        given = g.input("class_ids", INT64, ["R"])
    uncond = g.input("uncond", BOOL, ["R"])
    g.output("prefix", conditioner.build(g, weights, given, uncond), g.dtype, ["R", info.length, dim])
