"""The `text` graph: a T5 encoder, from prompt tokens to text features.

| input | shape | what |
|---|---|---|
| ids | int64 [P, T] | token ids, left-padded |
| mask | bool [P, T] | True at the prompt's tokens |

| output | shape | what |
|---|---|---|
| features | [P, T, C] | last hidden states; exact zeros where the mask is False |

Positions are relative in T5, so a prompt's features are the same with padding on the left or on the right.

T5 was trained in bfloat16, and the residual stream of the large models passes fp16's 65504. So the stream,
the norms and the gate are float32 always, and in fp16 the gated product is scaled down by a power of two on
its way through the last matrix. All matrix products follow the weight file.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..checkpoints.source import TensorSource
from ..models.t5 import T5Config, relative_buckets
from .builder import BOOL, FLOAT, INT64, GraphBuilder, as_numpy

HIDDEN = -30000.0  # added to a masked score: zero after softmax, and within fp16's range
SHRINK = 1 / 64  # fp16: the last product's factor, a power of two, so that only subnormals are rounded


def build_text(g: GraphBuilder, source: TensorSource, config: T5Config, length: int) -> None:
    """Fills `g` with the encoder for prompts of `length` slots; names are those of the T5 checkpoint."""
    ids = g.input("ids", INT64, ["P", length])
    mask = g.input("mask", BOOL, ["P", length])
    table = g.weight("t5.shared", lambda: as_numpy(source.load("shared.weight")))
    encoder = Encoder(g, source, config)
    x = g.to_float(g.op("Gather", table, ids, axis=0))
    scores = encoder.score_mask(mask, length)
    for index in range(config.num_layers):
        with g.scope(f"block.{index}"):
            x = encoder.attention(x, f"encoder.block.{index}.layer.0", scores)
            x = encoder.feed_forward(x, f"encoder.block.{index}.layer.1")
    x = encoder.norm(x, "encoder.final_layer_norm")
    zero = g.from_float(g.constant(np.float32(0)))
    features = g.op("Where", g.reshape(mask, [0, -1, 1]), x, zero)
    g.output("features", features, g.dtype, ["P", length, config.d_model])


@dataclass(frozen=True)
class Encoder:
    """The encoder's layers on the float32 stream x [P, T, C]; `name` is a prefix of the checkpoint's keys."""

    g: GraphBuilder
    source: TensorSource
    config: T5Config

    def load(self, name: str) -> np.ndarray:
        return as_numpy(self.source.load(f"{name}.weight"))

    def linear(self, x: ir.Value, name: str) -> ir.Value:
        return self.g.linear(x, f"t5.{name}", lambda: self.load(name))

    def norm(self, x: ir.Value, name: str) -> ir.Value:
        """T5's norm is a root mean square without mean or bias; float32 in, the graph's precision out."""
        g = self.g
        scale = g.weight(f"t5.{name}", lambda: self.load(name), FLOAT)
        y = g.op("RMSNormalization", x, scale, axis=-1, epsilon=self.config.layer_norm_epsilon, stash_type=1)
        return g.from_float(y)

    def score_mask(self, mask: ir.Value, length: int) -> ir.Value:
        """[P, H, T, T], added to the scores of every layer: position bias, padding hidden."""
        g = self.g
        bias = g.weight("t5.bias", lambda: position_bias(self.source, self.config, length))
        hidden = g.from_float(g.constant(np.float32(HIDDEN)))
        return g.op("Where", g.reshape(mask, [0, 1, 1, length]), bias, hidden)

    def attention(self, x: ir.Value, name: str, scores: ir.Value) -> ir.Value:
        """x + attention over the whole prompt. T5 does not scale its scores: its weights do."""
        g, heads = self.g, self.config.num_heads
        width = heads * self.config.d_kv
        part = f"{name}.SelfAttention"

        def qkv() -> np.ndarray:
            return np.concatenate([self.load(f"{part}.{p}") for p in "qkv"])

        h = g.linear(self.norm(x, f"{name}.layer_norm"), f"t5.{part}.qkv", qkv)
        h = g.op("Transpose", g.reshape(h, [0, 0, 3 * heads, self.config.d_kv]), perm=[0, 2, 1, 3])
        q, k, v = g.split(h, [heads] * 3, axis=1)
        y = g.op("Attention", q, k, v, scores, scale=1.0)
        y = g.reshape(g.op("Transpose", y, perm=[0, 2, 1, 3]), [0, 0, width])
        return g.op("Add", x, g.to_float(self.linear(y, f"{part}.o")))

    def feed_forward(self, x: ir.Value, name: str) -> ir.Value:
        """x + wo(gelu(wi_0 x) * (wi_1 x)); gate and value are one product."""
        g, part = self.g, f"{name}.DenseReluDense"

        def gate_up() -> np.ndarray:
            return np.concatenate([self.load(f"{part}.{p}") for p in ("wi_0", "wi_1")])

        h = g.to_float(g.linear(self.norm(x, f"{name}.layer_norm"), f"t5.{part}.wi", gate_up))
        gate, value = g.op("Split", h, outputs=2, axis=-1, num_outputs=2)
        h = g.op("Mul", g.op("Gelu", gate, approximate="tanh"), value)
        if g.dtype != ir.DataType.FLOAT16:
            return g.op("Add", x, g.to_float(self.linear(g.from_float(h), f"{part}.wo")))
        h = g.from_float(g.op("Mul", h, g.constant(np.float32(SHRINK))))
        y = g.to_float(self.linear(h, f"{part}.wo"))
        return g.op("Add", x, g.op("Mul", y, g.constant(np.float32(1 / SHRINK))))


def position_bias(source: TensorSource, config: T5Config, length: int) -> np.ndarray:
    """float32 [1, H, T, T]: T5's learned bias of each query and key distance, which the first block holds."""
    table = as_numpy(source.load("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"))
    buckets = relative_buckets(
        length, config.relative_attention_num_buckets, config.relative_attention_max_distance
    )
    return table[buckets.numpy()].transpose(2, 0, 1)[None]
