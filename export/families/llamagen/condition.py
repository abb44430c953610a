"""LlamaGen's conditioners as graph parts: the caption MLP, and the table of classes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch

from ....runtime.bundle import CLASS, FEATURES, ConditionInfo
from ...checkpoints.source import TensorSource
from ...graphs.builder import GraphBuilder, as_numpy
from ...model import Conditioner
from .model import LlamaGenConfig


def conditioner(config: LlamaGenConfig) -> Conditioner:
    """Captions or classes, as the checkpoint has them; both rows of an image have the caption's mask."""
    if config.condition == "text":
        return Conditioner(ConditionInfo(FEATURES, config.prefix_len, width=config.caption_dim), caption_prefix)
    return Conditioner(ConditionInfo(CLASS, config.prefix_len, classes=config.num_classes), class_prefix)


def caption_prefix(g: GraphBuilder, weights: TensorSource, features: ir.Value, uncond: ir.Value) -> ir.Value:
    """[R, T, D]: the caption MLP of the features; no bias, so padded slots stay zero."""

    def load(layer: str) -> np.ndarray:
        return as_numpy(weights.load(f"condition.{layer}.weight"))

    # The tanh form of GELU cubes its input: in float32, because half precision overflows beyond 40.
    h = g.to_float(g.linear(features, "condition.fc1", lambda: load("fc1")))
    h = g.from_float(g.op("Gelu", h, approximate="tanh"))
    prefix = g.linear(h, "condition.fc2", lambda: load("fc2"))
    null = g.weight("condition.null", lambda: null_caption(weights))
    return g.op("Where", g.reshape(uncond, [-1, 1, 1]), null, prefix)


def null_caption(weights: TensorSource) -> np.ndarray:
    """float32 [1, T, D]: the MLP of the null caption, the same for every prompt, so computed here once."""
    features, fc1, fc2 = (
        weights.load(f"condition.{name}").float() for name in ("null_features", "fc1.weight", "fc2.weight")
    )
    with torch.no_grad():
        h = torch.nn.functional.gelu(features @ fc1.T, approximate="tanh")
        return as_numpy(h @ fc2.T)[None]


def class_prefix(g: GraphBuilder, weights: TensorSource, class_ids: ir.Value, uncond: ir.Value) -> ir.Value:
    """[R, 1, D]: a row of the class table, whose last row is the null class."""
    null = g.constant(np.int64(weights.shape("condition.classes.weight")[0] - 1))
    row = g.op("Where", uncond, null, class_ids)
    table = g.weight("condition.classes", lambda: as_numpy(weights.load("condition.classes.weight")))
    return g.op("Gather", table, g.reshape(row, [-1, 1]), axis=0)
