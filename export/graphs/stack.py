"""The layers of a transformer in a graph, target or drafter: what differs between models is in its `StackSpec`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from ..checkpoints.source import TensorSource
from ..model import ADJACENT, OUT, QKV, StackSpec
from . import blocks
from .builder import GraphBuilder, as_numpy

Attend = Callable[[ir.Value], ir.Value]


class Stack:
    """Builds layers over a cache of `slots`; `owner` begins the names of its weights, `rows` sizes its rotary table."""

    def __init__(
        self, g: GraphBuilder, weights: TensorSource, spec: StackSpec, owner: str, slots: int, rows: int
    ) -> None:
        self.g, self.weights, self.spec, self.owner = g, weights, spec, owner
        self.cache_shape: list[int | str] = ["R", spec.n_kv_head, slots, spec.head_dim]
        table = spec.rotary(rows)
        self._still = len(table)  # the last row turns nothing
        self._rope = blocks.rope_tables(g, np.concatenate([table, blocks.no_turn(table)]), owner)

    def load(self, name: str) -> np.ndarray:
        return as_numpy(self.weights.load(name))

    def norm(self, x: ir.Value, name: str) -> ir.Value:
        produce = lambda: self.load(f"{name}.weight")  # noqa: E731
        return blocks.rms_norm(self.g, x, f"{self.owner}.{name}", produce, self.spec.eps)

    def layer(self, index: int, x: ir.Value, attend: Attend) -> ir.Value:
        """One block, x [R, n, D] to the same; `attend` maps qkv [R, n, (H + 2 Hkv) * Dh] to [R, n, H * Dh]."""
        g, name = self.g, f"layers.{index}"
        with g.scope("attention"):
            h = self.norm(x, f"{name}.attention_norm") if self.spec.input_norm else x
            y = attend(self._linear(h, f"{name}.{QKV}", self._paired))
            x = g.op("Add", x, self._linear(y, f"{name}.{OUT}", lambda rows: rows))
        with g.scope("feed_forward"):
            return g.op("Add", x, self._feed_forward(self.norm(x, f"{name}.ffn_norm"), f"{name}.feed_forward"))

    def _linear(self, x: ir.Value, name: str, ordered: Callable[[np.ndarray], np.ndarray]) -> ir.Value:
        """x @ W + b; `ordered` puts the rows of W and b into the order of the graph."""
        own = f"{self.owner}.{name}"
        y = self.g.linear(x, own, lambda: ordered(self.load(f"{name}.weight")))
        if name.split(".", 2)[2] not in self.spec.biases:
            return y
        return self.g.op("Add", y, self.g.weight(f"{own}.bias", lambda: ordered(self.load(f"{name}.bias"))))

    def _feed_forward(self, x: ir.Value, name: str) -> ir.Value:
        """down(silu(gate x) * (up x)); gate and up are one product."""
        g = self.g

        def gate_up() -> np.ndarray:
            return np.concatenate([self.load(f"{name}.{part}.weight") for part in ("gate", "up")])

        both = g.linear(x, f"{self.owner}.{name}.gate_up", gate_up)
        gate, value = g.op("Split", both, outputs=2, axis=-1, num_outputs=2)
        silu = g.op("Mul", gate, g.op("Sigmoid", gate))
        down = f"{name}.down"
        return g.linear(g.op("Mul", silu, value), f"{self.owner}.{down}", lambda: self.load(f"{down}.weight"))

    def _paired(self, rows: np.ndarray) -> np.ndarray:
        """Rows of queries, keys and values, so that rotating halves is right for all models."""
        spec = self.spec
        if spec.pairing != ADJACENT:
            return rows
        q, k, v = np.split(rows, np.cumsum([spec.n_head, spec.n_kv_head]) * spec.head_dim)
        halves = [blocks.half_split_rows(part, len(part) // spec.head_dim) for part in (q, k)]
        return np.concatenate([*halves, v])

    def turns(self, positions: ir.Value) -> ir.Value:
        """Rows of the rotary table, int64 [R * heads, n], for `rotated_heads` of nodes at positions [R, n]: the same
        in all layers. Values get the row that turns nothing."""
        g, heads, few = self.g, self.spec.n_head, self.spec.n_kv_head
        if self.spec.qk_norm_eps is not None:
            return positions
        turned = np.arange(heads + 2 * few)[None, :, None] < heads + few
        own = g.op("Unsqueeze", positions, g.constant([1]))
        rows = g.op("Where", g.constant(turned, "turned"), own, g.constant(np.int64(self._still)))  # [R, heads, n]
        return g.op("Flatten", rows, axis=2)

    def rotated_heads(self, index: int, qkv: ir.Value, turns: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Queries [R, H, n, Dh], keys and values [R, Hkv, n, Dh] of layer `index`; queries and keys are normalised
        where the model does so, and rotated by `turns`.

        All heads are rotated at once, values by nothing, which changes no bit of them: one rotation a layer, with one
        pair of casts in half precisions, in the place of two. A model that normalises queries and keys has taken them
        apart already.
        """
        g, heads, few, dim = self.g, self.spec.n_head, self.spec.n_kv_head, self.spec.head_dim
        count = heads + 2 * few
        qkv = g.op("Transpose", g.reshape(qkv, [0, 0, count, dim]), perm=[0, 2, 1, 3])  # [R, heads, n, Dh]
        if self.spec.qk_norm_eps is not None:
            q, k, v = g.split(qkv, [heads, few, few], axis=1)
            q = self._normed_heads(q, f"layers.{index}.attention.q_norm", self.spec.qk_norm_eps)
            k = self._normed_heads(k, f"layers.{index}.attention.k_norm", self.spec.qk_norm_eps)
            return blocks.rotate(g, q, self._rope, turns), blocks.rotate(g, k, self._rope, turns), v
        rotated = blocks.rotate(g, g.reshape(qkv, [-1, 1, 0, dim]), self._rope, turns)  # each head a row of its own
        q, k, v = g.split(g.reshape(rotated, [-1, count, 0, dim]), [heads, few, few], axis=1)
        return q, k, v

    def _normed_heads(self, x: ir.Value, name: str, eps: float) -> ir.Value:
        """LayerNorm over the channels of each head [R, heads, n, Dh]: statistics in float32, then scale and shift, of
        each head or one for all."""
        g, spec = self.g, self.spec

        def of_heads(kind: str) -> np.ndarray:
            """[heads or 1, 1, Dh], channels in the order of the graph."""
            rows = self.load(f"{name}.{kind}")
            flat = rows.reshape(-1)
            flat = blocks.half_split_rows(flat, len(rows)) if spec.pairing == ADJACENT else flat
            return flat.reshape(-1, 1, spec.head_dim)

        one = g.weight(f"{self.owner}.ones", lambda: np.ones(spec.head_dim, np.float32))
        unit = g.op("LayerNormalization", x, one, axis=-1, epsilon=eps, stash_type=1)
        scaled = g.op("Mul", unit, g.weight(f"{self.owner}.{name}.weight", lambda: of_heads("weight")))
        return g.op("Add", scaled, g.weight(f"{self.owner}.{name}.bias", lambda: of_heads("bias")))

    def attend(
        self,
        q: ir.Value,  # [R, H, n, Dh]
        written: tuple[ir.Value, ir.Value],  # [R, Hkv, W, Dh] each
        past: tuple[ir.Value, ir.Value],  # [R, Hkv, S, Dh] each
        write_index: ir.Value,  # [R]
        bias: ir.Value,  # [R, 1, n, S]: blocks.attention_bias
    ) -> tuple[ir.Value, tuple[ir.Value, ir.Value]]:
        """Writes W keys and values at write_index, then attends over the cache; gives [R, n, H * Dh] and the cache."""
        g, spec = self.g, self.spec
        keys = g.op("TensorScatter", past[0], written[0], write_index, axis=2)
        values = g.op("TensorScatter", past[1], written[1], write_index, axis=2)
        y = g.op("Attention", q, keys, values, bias, scale=spec.head_dim**-0.5)
        y = g.reshape(g.op("Transpose", y, perm=[0, 2, 1, 3]), [0, 0, spec.n_head * spec.head_dim])
        return y, (keys, values)

    def caches(self, steps: int) -> list[tuple[ir.Value, ir.Value]]:
        """Inputs past_key.i, past_value.i for i < `steps`."""
        g = self.g
        return [
            (g.input(f"past_key.{i}", g.dtype, self.cache_shape), g.input(f"past_value.{i}", g.dtype, self.cache_shape))
            for i in range(steps)
        ]

    def outputs(self, present: list[tuple[ir.Value, ir.Value]]) -> None:
        """Makes the updated caches outputs present_key.i, present_value.i."""
        for i, (keys, values) in enumerate(present):
            self.g.output(f"present_key.{i}", keys, self.g.dtype, self.cache_shape)
            self.g.output(f"present_value.{i}", values, self.g.dtype, self.cache_shape)
