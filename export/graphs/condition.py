"""The `condition` graph: what the picture should show, as prefix embeddings for `target`.

| input | shape | what |
|---|---|---|
| features | [R, T, C] | text features, padded slots zero (text-conditional models) |
| class_ids | int64 [R] | class of each row (class-conditional models) |
| uncond | bool [R] | rows that get the null condition instead, for guidance |

| output | shape | what |
|---|---|---|
| prefix | [R, T, D] | prefix embeddings; T is 1 for classes |
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch

from ..checkpoints.source import TensorSource
from ..models.llamagen import LlamaGenConfig
from .builder import BOOL, INT64, GraphBuilder, as_numpy


def build_condition(g: GraphBuilder, source: TensorSource, config: LlamaGenConfig) -> None:
    """Fills `g` with the conditioning of `config`; weights come from `source` under LlamaGen's own names."""
    build = caption_prefix if config.condition == "text" else class_prefix
    g.output("prefix", build(g, source, config), g.dtype, ["R", config.prefix_len, config.dim])


def caption_prefix(g: GraphBuilder, source: TensorSource, config: LlamaGenConfig) -> ir.Value:
    """[R, T, D]: the caption MLP of the features; no bias, so padded slots stay zero."""
    features = g.input("features", g.dtype, ["R", config.prefix_len, config.caption_dim])
    uncond = g.input("uncond", BOOL, ["R"])

    def load(layer: str) -> np.ndarray:
        return as_numpy(source.load(f"cls_embedding.cap_proj.{layer}.weight"))

    # The tanh form of GELU cubes its input: in float32, because half precision overflows beyond 40.
    h = g.to_float(g.linear(features, "condition.fc1", lambda: load("fc1")))
    h = g.from_float(g.op("Gelu", h, approximate="tanh"))
    prefix = g.linear(h, "condition.fc2", lambda: load("fc2"))
    null = g.weight("condition.null", lambda: null_caption(source, config))
    return g.op("Where", g.reshape(uncond, [-1, 1, 1]), null, prefix)


def null_caption(source: TensorSource, config: LlamaGenConfig) -> np.ndarray:
    """float32 [1, T, D]: the MLP of the null caption, the same for every prompt, so computed here once."""
    features = source.load("cls_embedding.uncond_embedding")[: config.prefix_len].float()
    fc1, fc2 = (source.load(f"cls_embedding.cap_proj.{layer}.weight").float() for layer in ("fc1", "fc2"))
    with torch.no_grad():
        h = torch.nn.functional.gelu(features @ fc1.T, approximate="tanh")
        return as_numpy(h @ fc2.T)[None]


def class_prefix(g: GraphBuilder, source: TensorSource, config: LlamaGenConfig) -> ir.Value:
    """[R, 1, D]: a row of the class table, whose last row is the null class."""
    class_ids = g.input("class_ids", INT64, ["R"])
    uncond = g.input("uncond", BOOL, ["R"])
    null = g.constant(np.int64(config.num_classes))
    row = g.op("Where", uncond, null, class_ids)
    name = "cls_embedding.embedding_table.weight"
    table = g.weight("condition.classes", lambda: as_numpy(source.load(name)))
    return g.op("Gather", table, g.reshape(row, [-1, 1]), axis=0)
