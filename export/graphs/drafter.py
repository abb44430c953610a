"""The drafter as graph parts: its one layer, the catch-up with the target, attention of drafted nodes.

The drafter is one EAGLE layer: it reads the target's hidden state of a token with the embedding of the token
that follows and predicts the next hidden state; the target's head turns that into the drafter's law q.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...runtime.tree import AnyTree
from ..checkpoints.source import TensorSource
from ..models.drafter import DrafterConfig
from ..models.llamagen import rope_2d
from . import blocks
from .builder import GraphBuilder, as_numpy


@dataclass(frozen=True)
class DraftShape:
    """Static sizes: S drafter cache slots, rows in the rotary table's tail, V and N from config and tree."""

    slots: int
    tail: int


def draft_shape(config: DrafterConfig, image_tokens: int, trees: Sequence[AnyTree]) -> DraftShape:
    """Slots for the prefix, the image, the padding of the last catch-up, and the drafted nodes behind it."""
    depth, drafted = max(tree.depth for tree in trees), max(expanded(tree) for tree in trees)
    return DraftShape(config.prefix_len - 1 + image_tokens + depth + 1 + drafted, 2 * (depth + 1))


def expanded(tree: AnyTree) -> int:
    """How many nodes behind the root the drafter's layer runs on: those with children."""
    return tree.laws - 1


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

    def logits(self, features: ir.Value, guidance: ir.Value) -> ir.Value:
        """float32 [P, n, V], guided, from predicted states [R, n, D]."""
        return blocks.logits(self.g, blocks.guided(self.g, features, guidance, self.config.dim), self.head)


class DraftCache:
    """The cache in a call that updates and reads it in several steps: one for the catch-up, one for each level.

    TensorRT insists that an updated cache is an input of the engine and its successor an output, each of one update,
    so updates cannot be chained. Each step therefore has names of its own, past_key.i and present_key.i, and writes
    what the earlier steps have written once more, its own nodes behind. Of the slots that it sees, those before
    write_index were in its past and the others it has written itself, so it is right whether or not the steps share
    their memory: in shared memory it writes the same values to the same slots, and new ones where no step looked.
    """

    def __init__(self, d: DraftGraph, steps: int, write_index: ir.Value) -> None:
        self._d, self._write_index = d, write_index
        self._shape = ["R", d.config.n_head, d.shape.slots, d.config.head_dim]
        self._past = [self._inputs(step) for step in range(steps)]
        self._present: list[tuple[ir.Value, ir.Value]] = []
        self._written: tuple[ir.Value, ir.Value] | None = None  # keys and values [R, H, W, Dh] of all steps so far

    def _inputs(self, step: int) -> tuple[ir.Value, ir.Value]:
        g = self._d.g
        return g.input(f"past_key.{step}", g.dtype, self._shape), g.input(f"past_value.{step}", g.dtype, self._shape)

    def attend(self, qkv: ir.Value, positions: ir.Value, mask: ir.Value) -> ir.Value:
        """The next step: qkv [R, n, 3D], positions [R, n], mask bool [R, 1, n, S]; returns [R, n, D]."""
        d, g = self._d, self._d.g
        q, k, v = blocks.rotated_heads(g, qkv, d.heads, d.rope, positions)
        if self._written is not None:
            k = g.op("Concat", self._written[0], k, axis=2)
            v = g.op("Concat", self._written[1], v, axis=2)
        self._written = (k, v)
        past = self._past[len(self._present)]
        y, present = blocks.updated_attention(g, q, (k, v), d.heads, past, self._write_index, mask)
        self._present.append(present)
        return y

    def outputs(self) -> None:
        """Makes every step's cache an output of the graph."""
        g = self._d.g
        for step, (keys, values) in enumerate(self._present):
            g.output(f"present_key.{step}", keys, g.dtype, self._shape)
            g.output(f"present_value.{step}", values, g.dtype, self._shape)


def catch_up(
    d: DraftGraph, hidden: ir.Value, tokens: ir.Value, positions: ir.Value, slots: ir.Value, cache_mask: ir.Value,
    cache: DraftCache,
) -> ir.Value:  # fmt: skip
    """Reads the pairs (hidden [R, M, D], tokens [R, M]) causally into `slots` [R, M]; returns features [R, M, D]."""
    g = d.g
    every = g.constant(blocks.cache_positions(d.shape.slots)[None], "slots")
    causal = g.op("LessOrEqual", every, g.op("Unsqueeze", slots, g.constant([2])))  # [R, M, S]
    visible = g.op("And", causal, g.reshape(cache_mask, [-1, 1, d.shape.slots]))
    mask = g.op("Unsqueeze", visible, g.constant([1]))  # [R, 1, M, S]
    return d.layer(d.fused_input(tokens, hidden), lambda qkv: cache.attend(qkv, positions, mask))


def committed_slots(d: DraftGraph, write_index: ir.Value, count_of_row: ir.Value, cache_mask: ir.Value) -> ir.Value:
    """bool [R, 1, S]: slots before write_index + count are what all tree nodes see of the cache."""
    g = d.g
    length = g.reshape(g.op("Add", write_index, count_of_row), [-1, 1])
    seen = g.op("And", g.op("Less", g.constant(blocks.cache_positions(d.shape.slots), "slots"), length), cache_mask)
    return g.op("Unsqueeze", seen, g.constant([1]))
