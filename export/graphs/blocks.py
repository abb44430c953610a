"""Pieces that the graphs share: norms, rotary tables, places in a cache."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from .builder import FLOAT, GraphBuilder

Produce = Callable[[], np.ndarray]


def half_split_rows(weight: np.ndarray, heads: int) -> np.ndarray:
    """Reorders rows [H * Dh, ...] so that rotating adjacent pairs becomes rotating halves.

    Each head's even channels come first, then its odd ones. Queries and keys are reordered alike, so every
    dot product stays what it was, and the half-split rotation is the cheaper one on every backend.
    """
    dim = weight.shape[0] // heads
    return weight.reshape(heads, dim // 2, 2, -1).transpose(0, 2, 1, 3).reshape(weight.shape)


def rope_tables(g: GraphBuilder, table: np.ndarray, owner: str) -> tuple[ir.Value, ir.Value]:
    """float32 cos and sin [positions, Dh/2] of a table [positions, Dh/2, 2]; `owner` names the weights."""
    cos = g.weight(f"{owner}.rope.cos", lambda: table[..., 0], FLOAT)
    sin = g.weight(f"{owner}.rope.sin", lambda: table[..., 1], FLOAT)
    return cos, sin


def no_turn(table: np.ndarray) -> np.ndarray:
    """The row [1, Dh/2, 2] by which rotating changes nothing, for a table [positions, Dh/2, 2] of (cos, sin)."""
    return np.tile(np.array([1, 0], table.dtype), (1, table.shape[1], 1))


def rms_norm(g: GraphBuilder, x: ir.Value, name: str, produce: Produce, eps: float) -> ir.Value:
    """Root mean square in float32 (stash_type 1), cast back, then the scale: Llama's order."""
    return g.op("RMSNormalization", x, g.weight(name, produce), axis=-1, epsilon=eps, stash_type=1)


def rotate(g: GraphBuilder, x: ir.Value, rope: tuple[ir.Value, ir.Value], positions: ir.Value) -> ir.Value:
    """[R, heads, N, dim], rotated; in float32, as in the original."""
    return g.from_float(g.op("RotaryEmbedding", g.to_float(x), *rope, positions))


def attention_bias(g: GraphBuilder, visible: ir.Value) -> ir.Value:
    """What attention adds to its scores, in the dtype of queries, from `visible` bool of the same shape.

    Made once for all layers that share it: of a bool mask, ONNX Runtime makes it anew in each. What is not visible is
    finite and counts exactly 0 where anything is visible.
    """
    dtype = g.dtype.numpy()
    lowest = np.float32(-65504 if dtype == np.float16 else -1e30)
    return g.op("Where", visible, g.constant(dtype.type(0)), g.constant(dtype.type(lowest)))


def of_prompt(g: GraphBuilder, x: ir.Value) -> ir.Value:
    """[P] -> [P, 1, 1], to scale what belongs to each slot."""
    return g.reshape(x, [-1, 1, 1])


def whole_blocks(slots: int) -> int:
    """Cache slots filled up to a multiple of 8: fused attention on CUDA takes masks whose rows begin at 16 bytes."""
    return -(-slots // 8) * 8


def cache_positions(slots: int) -> np.ndarray:
    """int64 [1, S]: the index of every cache slot."""
    return np.arange(slots, dtype=np.int64)[None]


def window_index(g: GraphBuilder, slots: int, start: ir.Value, width: int) -> tuple[ir.Value, ir.Value]:
    """bool [R, S]: whether a slot lies before the window [start, start + width); and int64 [R, S]: its place in the
    window, or `width` outside of it."""
    place = g.op("Sub", g.constant(cache_positions(slots), "slots"), g.reshape(start, [-1, 1]))
    outside = g.constant(np.int64(width))
    before = g.op("Less", place, g.constant(np.int64(0)))
    return before, g.op("Where", before, outside, g.op("Min", place, outside))
