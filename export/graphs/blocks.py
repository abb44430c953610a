"""Pieces that the graphs share: cache masks, rotary tables, attention over a cache, the sampling head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from .builder import FLOAT, GraphBuilder

Produce = Callable[[], np.ndarray]


@dataclass(frozen=True)
class Heads:
    """Attention geometry: `count` heads of `dim` channels over a cache of `slots`."""

    count: int
    dim: int
    slots: int


def half_split_rows(weight: np.ndarray, heads: int) -> np.ndarray:
    """Reorders rows [H * Dh, in] so that rotating adjacent pairs becomes rotating halves.

    Each head's even channels come first, then its odd ones. Queries and keys are reordered alike, so every
    dot product stays what it was, and the half-split rotation is the cheaper one on every backend.
    """
    dim = weight.shape[0] // heads
    return weight.reshape(heads, dim // 2, 2, -1).transpose(0, 2, 1, 3).reshape(weight.shape)


def rope_tables(g: GraphBuilder, table: torch.Tensor, owner: str) -> tuple[ir.Value, ir.Value]:
    """float32 cos and sin [positions, Dh/2] of a table [positions, Dh/2, 2]; `owner` names the weights."""
    cos = g.weight(f"{owner}.rope.cos", lambda: table[..., 0].numpy(), FLOAT)
    sin = g.weight(f"{owner}.rope.sin", lambda: table[..., 1].numpy(), FLOAT)
    return cos, sin


def rms_norm(g: GraphBuilder, x: ir.Value, name: str, produce: Produce, eps: float) -> ir.Value:
    """Root mean square in float32 (stash_type 1), cast back, then the scale: LlamaGen's order."""
    return g.op("RMSNormalization", x, g.weight(name, produce), axis=-1, epsilon=eps, stash_type=1)


def swiglu(g: GraphBuilder, x: ir.Value, up_name: str, up: Produce, down_name: str, down: Produce) -> ir.Value:
    """down(silu(gate x) * (up x)); gate and up are one product, `up` gives them stacked [2F, D]."""
    gate, value = g.op("Split", g.linear(x, up_name, up), outputs=2, axis=-1, num_outputs=2)
    silu = g.op("Mul", gate, g.op("Sigmoid", gate))
    return g.linear(g.op("Mul", silu, value), down_name, down)


def rotate(g: GraphBuilder, x: ir.Value, rope: tuple[ir.Value, ir.Value], positions: ir.Value) -> ir.Value:
    """[R, heads, N, dim], rotated; in float32, as in the original."""
    return g.from_float(g.op("RotaryEmbedding", g.to_float(x), *rope, positions))


def cached_attention(
    g: GraphBuilder,
    qkv: ir.Value,  # [R, N, 3 * H * Dh], queries and keys half-split
    heads: Heads,
    rope: tuple[ir.Value, ir.Value],
    positions: ir.Value,  # [R, N]
    past: tuple[ir.Value, ir.Value],  # [R, H, S, Dh] each
    write_index: ir.Value,  # [R]
    mask: ir.Value,  # bool [R, 1, N, S]
) -> tuple[ir.Value, tuple[ir.Value, ir.Value]]:
    """Writes keys and values at write_index and attends over the whole cache; returns [R, N, D] and the cache."""
    q, k, v = rotated_heads(g, qkv, heads, rope, positions)
    return updated_attention(g, q, (k, v), heads, past, write_index, mask)


def rotated_heads(
    g: GraphBuilder, qkv: ir.Value, heads: Heads, rope: tuple[ir.Value, ir.Value], positions: ir.Value
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Queries, keys and values [R, H, N, Dh] of qkv [R, N, 3 * H * Dh], queries and keys rotated."""
    qkv = g.op("Transpose", g.reshape(qkv, [0, 0, 3 * heads.count, heads.dim]), perm=[0, 2, 1, 3])  # [R, 3H, N, Dh]
    qk, v = g.split(qkv, [2 * heads.count, heads.count], axis=1)
    q, k = g.split(rotate(g, qk, rope, positions), [heads.count, heads.count], axis=1)
    return q, k, v


def updated_attention(
    g: GraphBuilder,
    q: ir.Value,  # [R, H, N, Dh]
    written: tuple[ir.Value, ir.Value],  # [R, H, W, Dh] each
    heads: Heads,
    past: tuple[ir.Value, ir.Value],  # [R, H, S, Dh] each
    write_index: ir.Value,  # [R]
    mask: ir.Value,  # bool [R, 1, N, S]
) -> tuple[ir.Value, tuple[ir.Value, ir.Value]]:
    """Writes W keys and values at write_index, then attends over the cache; returns [R, N, D] and the cache."""
    keys = g.op("TensorScatter", past[0], written[0], write_index, axis=2)
    values = g.op("TensorScatter", past[1], written[1], write_index, axis=2)
    y = g.op("Attention", q, keys, values, mask, scale=heads.dim**-0.5)
    y = g.reshape(g.op("Transpose", y, perm=[0, 2, 1, 3]), [0, 0, heads.count * heads.dim])
    return y, (keys, values)


def guided(g: GraphBuilder, hidden: ir.Value, guidance: ir.Value, dim: int) -> ir.Value:
    """float32 guided states [P, N, D] = guidance [P, R] x hidden [R, N, D].

    A row of `guidance` holds s at the conditional row and 1 - s at the unconditional one, so this is
    u + s (c - u). The head is linear, so mixing states gives the logits that mixing logits would, with half
    the head's work; one row of weight 1 is plain decoding, and more streams need no other graph.
    """
    rows = g.op("Flatten", g.to_float(hidden), axis=1)  # [R, N * D]
    return g.reshape(g.op("MatMul", guidance, rows), [0, -1, dim])


def logits(g: GraphBuilder, state: ir.Value, head: ir.Value) -> ir.Value:
    """float32 logits [P, N, V] of guided states [P, N, D]."""
    return g.to_float(g.op("MatMul", g.from_float(state), head))


def of_prompt(g: GraphBuilder, x: ir.Value) -> ir.Value:
    """[P] -> [P, 1, 1], to scale what belongs to each prompt."""
    return g.reshape(x, [-1, 1, 1])


def log_sum_exp(g: GraphBuilder, logits: ir.Value, largest: ir.Value) -> ir.Value:
    """[P, N, 1], shifted by the largest logit [P, N, 1] so that no exponential overflows."""
    total = g.op("ReduceSum", g.op("Exp", g.op("Sub", logits, largest)), g.constant([-1]), keepdims=1)
    return g.op("Add", g.op("Log", total), largest)


def cosine_similarity(g: GraphBuilder, state: ir.Value) -> ir.Value:
    """float32 [P, N, N]: cosines between the guided states of the tree's nodes [P, N, D]."""
    norm = g.op("ReduceL2", state, g.constant([-1]), keepdims=1)
    unit = g.op("Div", state, g.op("Max", norm, g.constant(np.float32(1e-12))))
    return g.op("MatMul", unit, g.op("Transpose", unit, perm=[0, 2, 1]))


def cache_positions(slots: int) -> np.ndarray:
    """int64 [1, S]: the index of every cache slot."""
    return np.arange(slots, dtype=np.int64)[None]


def window_index(g: GraphBuilder, slots: int, start: ir.Value, width: int) -> ir.Value:
    """int64 [R, S]: each slot's place in the window [start, start + width), or `width` outside of it."""
    place = g.op("Sub", g.constant(cache_positions(slots), "slots"), g.reshape(start, [-1, 1]))
    inside = g.op(
        "And",
        g.op("GreaterOrEqual", place, g.constant(np.int64(0))),
        g.op("Less", place, g.constant(np.int64(width))),
    )
    return g.op("Where", inside, place, g.constant(np.int64(width)))
