"""The drafter as graph parts: its one layer, the catch-up with the target, attention of drafted nodes.

The drafter is one EAGLE layer: it reads the target's hidden state of a token with the embedding of the token
that follows and predicts the next hidden state; the target's head turns that into the drafter's law q.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..checkpoints.source import TensorSource
from ..models.drafter import DrafterConfig
from ..models.llamagen import rope_2d
from . import blocks
from .builder import GraphBuilder, as_numpy

NEVER = np.float32(-1e9)  # a masked score; finite, so that a row without visible slots stays a number


@dataclass(frozen=True)
class DraftShape:
    """Static sizes: S drafter cache slots, rows in the rotary table's tail, V and N from config and tree."""

    slots: int
    tail: int


def draft_shape(config: DrafterConfig, image_tokens: int, max_depth: int) -> DraftShape:
    """Slots for the prefix, the image, and the padding of the last catch-up."""
    return DraftShape(config.prefix_len - 1 + image_tokens + max_depth + 1, 2 * (max_depth + 1))


class DraftGraph:
    """Builds one draft graph. Holds what every step needs: builder, weights, geometry and inputs."""

    def __init__(
        self,
        g: GraphBuilder,
        source: TensorSource,
        config: DrafterConfig,
        shape: DraftShape,
        head: ir.ExternalTensor,
        embeddings: ir.ExternalTensor,
    ) -> None:
        self.g, self.source, self.config, self.shape = g, source, config, shape
        self.heads = blocks.Heads(config.n_head, config.head_dim, shape.slots)
        self.head, self.embeddings = g.shared(head), g.shared(embeddings)
        self.own_embeddings = g.weight("drafter.embed_tokens", lambda: self.load("embed_tokens"))
        table = rope_2d(
            config.grid, config.head_dim, config.prefix_len - 1, tail=shape.tail, base=config.rope_base
        )
        self.rope = blocks.rope_tables(g, table, "drafter")

    def load(self, name: str) -> np.ndarray:
        return as_numpy(self.source.load(f"{name}.weight"))

    def fused_input(self, tokens: ir.Value, hidden: ir.Value) -> ir.Value:
        """fc(cat(embed(tokens), hidden)): tokens [R, n], hidden [R, n, D] -> [R, n, D]."""
        g = self.g
        pair = g.op("Concat", g.op("Gather", self.own_embeddings, tokens), hidden, axis=-1)
        x = g.linear(pair, "drafter.fc", lambda: self.load("fc"))
        if self.config.bias:
            x = g.op("Add", x, g.weight("drafter.fc.bias", lambda: as_numpy(self.source.load("fc.bias"))))
        return x

    def layer(self, x: ir.Value, attend: Callable[[ir.Value], ir.Value]) -> ir.Value:
        """The decoder layer (no norm before attention); `attend` maps qkv [R, n, 3D] to [R, n, D]."""
        g = self.g

        def qkv() -> np.ndarray:
            q, k, v = (self.load(f"layers.0.self_attn.{p}_proj") for p in "qkv")
            half = [blocks.half_split_rows(w, self.config.n_head) for w in (q, k)]
            return np.concatenate([*half, v])

        def gate_up() -> np.ndarray:
            return np.concatenate([self.load(f"layers.0.mlp.{p}_proj") for p in ("gate", "up")])

        y = attend(g.linear(x, "drafter.wqkv", qkv))
        x = g.op("Add", x, g.linear(y, "drafter.wo", lambda: self.load("layers.0.self_attn.o_proj")))
        norm = "layers.0.post_attention_layernorm"
        h = blocks.rms_norm(g, x, "drafter.norm", lambda: self.load(norm), self.config.norm_eps)
        down = self.load
        y = blocks.swiglu(
            g, h, "drafter.w13", gate_up, "drafter.w2", lambda: down("layers.0.mlp.down_proj")
        )
        return g.op("Add", x, y)

    def law(self, features: ir.Value, guidance: ir.Value, temperature: ir.Value) -> ir.Value:
        """float32 log q [P, n, V] from predicted states [R, n, D]."""
        state = blocks.guided(self.g, features, guidance, self.config.dim)
        logits = blocks.scaled_logits(self.g, state, self.head, temperature)
        return self.g.op("LogSoftmax", logits, axis=-1)


@dataclass(frozen=True)
class Committed:
    """The drafter's cache after the catch-up, and which of its slots tree nodes may see."""

    keys: ir.Value  # [R, H, S, Dh]
    values: ir.Value
    bias: ir.Value  # float32 [R, 1, 1, S]: 0 where visible


def catch_up(
    d: DraftGraph, hidden: ir.Value, tokens: ir.Value, positions: ir.Value, write_index: ir.Value,
    cache_mask: ir.Value, past: tuple[ir.Value, ir.Value],
) -> tuple[ir.Value, tuple[ir.Value, ir.Value]]:  # fmt: skip
    """Reads the pairs (hidden [R, M, D], tokens [R, M]) causally; returns features [R, M, D] and the cache."""
    g = d.g
    first = g.op("Gather", positions, g.constant([0]), axis=1)  # [R, 1]
    own_slot = g.op("Add", g.op("Sub", positions, first), g.reshape(write_index, [-1, 1]))  # [R, M]
    slots = g.constant(np.arange(d.shape.slots, dtype=np.int64)[None, None], "slots")
    causal = g.op("LessOrEqual", slots, g.op("Unsqueeze", own_slot, g.constant([2])))  # [R, M, S]
    visible = g.op("And", causal, g.reshape(cache_mask, [-1, 1, d.shape.slots]))
    mask = g.op("Unsqueeze", visible, g.constant([1]))  # [R, 1, M, S]
    kept: list[tuple[ir.Value, ir.Value]] = []

    def attend(qkv: ir.Value) -> ir.Value:
        y, cache = blocks.cached_attention(g, qkv, d.heads, d.rope, positions, past, write_index, mask)
        kept.append(cache)
        return y

    return d.layer(d.fused_input(tokens, hidden), attend), kept[0]


def tree_attention(
    d: DraftGraph, qkv: ir.Value, positions: ir.Value, committed: Committed,
    drafted: tuple[ir.Value, ir.Value] | None, tree_bias: ir.Value, held: int,
) -> tuple[ir.Value, tuple[ir.Value, ir.Value]]:  # fmt: skip
    """Attention of n tree nodes over the cache and the drafted nodes above them.

    The two parts are joined in one softmax without joining keys, so no call writes the cache a second time (ONNX
    Runtime reads it where it lies; TensorRT-RTX pads its rows once a call, for the products of all levels).
    `tree_bias` float32 [1 or R, 1, n, held] is 0 where a node sees one of the `held` nodes drafted so far, itself and
    its level included. Returns [R, n, D] and all drafted keys and values.
    """
    g, heads = d.g, d.heads
    width = heads.count * heads.dim
    qk, v = g.split(qkv, [2 * width, width])
    qk = blocks.rotate(g, qk, 2 * heads.count, heads.dim, d.rope, positions)
    q, k = g.split(qk, [heads.count, heads.count], axis=1)  # [R, H, n, Dh]
    v = g.op("Transpose", g.reshape(v, [0, 0, heads.count, heads.dim]), perm=[0, 2, 1, 3])
    if drafted is not None:
        k = g.op("Concat", drafted[0], k, axis=2)
        v = g.op("Concat", drafted[1], v, axis=2)
    q = g.op("Mul", q, g.from_float(g.constant(np.float32(heads.dim**-0.5))))
    by_slot = g.op("MatMul", committed.keys, g.op("Transpose", q, perm=[0, 1, 3, 2]))  # [R, H, S, n]
    on_cache = g.to_float(g.op("Transpose", by_slot, perm=[0, 1, 3, 2]))
    on_tree = g.to_float(g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2])))
    scores = g.op(
        "Concat", g.op("Add", on_cache, committed.bias), g.op("Add", on_tree, tree_bias), axis=-1
    )
    weights = g.from_float(g.op("Softmax", scores, axis=-1))
    for_cache, for_tree = g.split(weights, [heads.slots, held])
    y = g.op("Add", g.op("MatMul", for_cache, committed.values), g.op("MatMul", for_tree, v))
    return g.reshape(g.op("Transpose", y, perm=[0, 2, 1, 3]), [0, 0, width]), (k, v)


def visible_cache(
    d: DraftGraph, cache: tuple[ir.Value, ir.Value], write_index: ir.Value, count_of_row: ir.Value, cache_mask: ir.Value
) -> Committed:
    """Slots before write_index + count are what tree nodes see of the cache."""
    g = d.g
    length = g.reshape(g.op("Add", write_index, count_of_row), [-1, 1])
    seen = g.op("And", g.op("Less", g.constant(blocks.cache_positions(d.shape.slots), "slots"), length), cache_mask)
    bias = g.op("Where", seen, g.constant(np.float32(0)), g.constant(NEVER))  # [R, S]
    return Committed(cache[0], cache[1], g.reshape(bias, [-1, 1, 1, d.shape.slots]))
