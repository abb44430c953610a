"""From hidden states to guided logits, in the target's graph and the drafter's: both read the target's weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..checkpoints.source import TensorSource
from ..model import Readout
from .builder import FLOAT, GraphBuilder, as_numpy


@dataclass(frozen=True)
class ReadoutGraph:
    """The readout of `weights` in a graph with the inputs rows_of_prompt int64 [P, G] and guidance [P, G]."""

    g: GraphBuilder
    readout: Readout
    weights: TensorSource
    rows_of_prompt: ir.Value
    guidance: ir.Value

    def states(self, hidden: ir.Value) -> ir.Value:
        """float32 guided features [P, N, F] of hidden [R, N, D]: of each slot's rows alone, so that what is not
        finite in one slot stays there.

        A row of `guidance` holds s for the conditional row and 1 - s for the unconditional one: u + s (c - u). What
        comes behind is linear, and a bias survives because the weights add up to 1: so mixing features gives the
        logits that mixing logits would, with half the head's work. One row of weight 1 is decoding without guidance.
        """
        g = self.g
        features = self.readout.features(g, self.weights, hidden)  # [R, N, F]
        rows = g.to_float(g.op("Gather", features, self.rows_of_prompt, axis=0))  # [P, G, N, F]
        # A product: on CUDA a sum over an axis in the middle needs cuDNN, and nothing else in this graph does.
        mixed = g.op("MatMul", g.reshape(self.guidance, [0, 1, -1]), g.reshape(rows, [0, 0, -1]))  # [P, 1, N F]
        return g.reshape(mixed, [0, -1, self.readout.width])

    def logits(self, states: ir.Value) -> ir.Value:
        """float32 logits [P, N, V] of guided features [P, N, F]."""
        g = self.g
        logits = g.to_float(g.linear(g.from_float(states), "target.readout", lambda: self._load("weight")))
        if not self.readout.bias:
            return logits
        bias = g.weight("target.readout.bias", lambda: self._load("bias"), FLOAT)
        return g.op("Add", logits, bias)

    def _load(self, kind: str) -> np.ndarray:
        return as_numpy(self.weights.load(f"readout.{kind}"))


def cosine_similarity(g: GraphBuilder, states: ir.Value) -> ir.Value:
    """float32 [P, N, N]: cosines between states [P, N, F]."""
    # Not ReduceL2: on CUDA that one needs cuDNN, and nothing else in this graph does.
    norm = g.op("Sqrt", g.op("ReduceSum", g.op("Mul", states, states), g.constant([-1]), keepdims=1))
    unit = g.op("Div", states, g.op("Max", norm, g.constant(np.float32(1e-12))))
    return g.op("MatMul", unit, g.op("Transpose", unit, perm=[0, 2, 1]))
