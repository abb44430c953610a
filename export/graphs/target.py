"""The `target` graph: prefill, plain decoding and tree verification in one engine.

| input | shape | what |
|---|---|---|
| embeds | [R, N, D] | embeddings of the nodes (or of a chunk of the prefix) |
| positions | int64 [R, N] | row of the rotary table: prefix slot, or prefix length + image token index |
| write_index | int64 [R] | first cache slot that this call writes |
| tree_mask | bool [R, N, W + 1] | may node n see the slot write_index + j; the last column is always False |
| cache_mask | bool [R, S] | slots that may ever be seen (False at padded prefix slots) |
| guidance | [P, R] | weights that mix the rows of a prompt into its guided state |
| temperature | [P] | divides the guided logits |
| past_key.i, past_value.i | [R, H, S, Dh] | cache, updated in place |

| output | shape | what |
|---|---|---|
| logits, ids | [P, N, K] | the K largest guided logits / temperature, and their token ids |
| log_sum_exp | [P, N] | over the whole vocabulary |
| hidden | [R, N, D] | after the final norm |
| similarity | [P, N, N] | cosines between the guided hidden states |
| present_key.i, present_value.i | [R, H, S, Dh] | the same memory as past_key.i, past_value.i |
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..checkpoints.source import TensorSource
from ..models.llamagen import LlamaGenConfig, rope_2d
from . import blocks
from .builder import BOOL, FLOAT, INT64, GraphBuilder, as_numpy


@dataclass(frozen=True)
class TargetShape:
    """Static sizes of a target graph: W nodes at most in one call, K kept logits, S cache slots."""

    window: int
    top_k: int
    slots: int


HEAD = "target.head.T"  # the head's name in the target's weight file; the drafter's graph reads it there


def target_shape(config: LlamaGenConfig, max_nodes: int, top_k: int) -> TargetShape:
    """Cache slots for the prefix, the image and one tree past its end."""
    slots = config.prefix_len + config.image_tokens + max_nodes
    return TargetShape(max(max_nodes, config.prefix_len), min(top_k, config.vocab_size), slots)


def visible_slots(
    g: GraphBuilder, shape: TargetShape, tree_mask: ir.Value, cache_mask: ir.Value, write_index: ir.Value
) -> ir.Value:
    """bool [R, 1, N, S]: committed slots that are not masked, and the node's ancestors in this call's window."""
    place = window_index_of(g, shape, write_index)
    # [R, N, W + 1] -> [R, W + 1, N], one row per slot, -> [R, N, S]
    by_slot = g.op("GatherND", g.op("Transpose", tree_mask, perm=[0, 2, 1]), place, batch_dims=1)
    in_tree = g.op("Transpose", by_slot, perm=[0, 2, 1])
    slots = g.constant(blocks.cache_positions(shape.slots), "slots")
    committed = g.op("And", g.op("Less", slots, g.reshape(write_index, [-1, 1])), cache_mask)  # [R, S]
    visible = g.op("Or", in_tree, g.reshape(committed, [-1, 1, shape.slots]))
    return g.op("Unsqueeze", visible, g.constant([1]))


def window_index_of(g: GraphBuilder, shape: TargetShape, write_index: ir.Value) -> ir.Value:
    place = blocks.window_index(g, shape.slots, write_index, shape.window)
    return g.op("Unsqueeze", place, g.constant([2]))  # [R, S, 1]


def build_target(g: GraphBuilder, source: TensorSource, config: LlamaGenConfig, shape: TargetShape) -> None:
    """Fills `g` with the target's graph; weights come from `source` under LlamaGen's own names."""
    heads = blocks.Heads(config.n_head, config.head_dim, shape.slots)
    cache_shape = ["R", config.n_head, shape.slots, config.head_dim]
    embeds = g.input("embeds", g.dtype, ["R", "N", config.dim])
    positions = g.input("positions", INT64, ["R", "N"])
    write_index = g.input("write_index", INT64, ["R"])
    tree_mask = g.input("tree_mask", BOOL, ["R", "N", shape.window + 1])
    cache_mask = g.input("cache_mask", BOOL, ["R", shape.slots])
    guidance = g.input("guidance", FLOAT, ["P", "R"])
    temperature = g.input("temperature", FLOAT, ["P"])
    past = [
        (g.input(f"past_key.{i}", g.dtype, cache_shape), g.input(f"past_value.{i}", g.dtype, cache_shape))
        for i in range(config.n_layer)
    ]
    with g.scope("mask"):
        mask = visible_slots(g, shape, tree_mask, cache_mask, write_index)
    table = rope_2d(config.grid, config.head_dim, config.prefix_len, tail=shape.window, base=config.rope_base)
    rope = blocks.rope_tables(g, table, "target")
    hidden, present = embeds, []
    for i in range(config.n_layer):
        with g.scope(f"layers.{i}"):
            hidden, kv = layer(g, source, config, heads, i, hidden, rope, positions, past[i], write_index, mask)
            present.append(kv)
    hidden = blocks.rms_norm(
        g, hidden, "target.norm", lambda: as_numpy(source.load("norm.weight")), config.norm_eps
    )
    with g.scope("head"):
        outputs = sampling_head(g, source, config, shape, hidden, guidance, temperature)
    for name, value, dtype, dims in outputs:
        g.output(name, value, dtype, dims)
    g.output("hidden", hidden, g.dtype, ["R", "N", config.dim])
    for i, (key, value) in enumerate(present):
        g.output(f"present_key.{i}", key, g.dtype, cache_shape)
        g.output(f"present_value.{i}", value, g.dtype, cache_shape)


def layer(g, source, config, heads, index, x, rope, positions, past, write_index, mask):
    """One pre-norm block: attention over the cache, then SwiGLU. Returns the new x [R, N, D] and the cache."""
    name = f"layers.{index}"

    def load(suffix: str) -> np.ndarray:
        return as_numpy(source.load(f"{name}.{suffix}.weight"))

    def wqkv() -> np.ndarray:
        q, k, v = np.split(load("attention.wqkv"), 3)
        half = [blocks.half_split_rows(w, heads.count) for w in (q, k)]
        return np.concatenate([*half, v])

    def gate_up() -> np.ndarray:
        return np.concatenate([load("feed_forward.w1"), load("feed_forward.w3")])

    with g.scope("attention"):
        norm = f"target.{name}.attention_norm"
        h = blocks.rms_norm(g, x, norm, lambda: load("attention_norm"), config.norm_eps)
        qkv = g.linear(h, f"target.{name}.wqkv", wqkv)
        y, cache = blocks.cached_attention(g, qkv, heads, rope, positions, past, write_index, mask)
        x = g.op("Add", x, g.linear(y, f"target.{name}.wo", lambda: load("attention.wo")))
    with g.scope("feed_forward"):
        h = blocks.rms_norm(g, x, f"target.{name}.ffn_norm", lambda: load("ffn_norm"), config.norm_eps)
        y = blocks.swiglu(
            g, h, f"target.{name}.w13", gate_up, f"target.{name}.w2", lambda: load("feed_forward.w2")
        )
        return g.op("Add", x, y), cache


def sampling_head(g, source, config, shape, hidden, guidance, temperature):
    """Guided logits, their K largest, log-sum-exp and the similarity of the guided states, all in float32."""
    state = blocks.guided(g, hidden, guidance, config.dim)  # [P, N, D]
    head = g.weight(HEAD, lambda: np.ascontiguousarray(as_numpy(source.load("output.weight")).T))
    logits = g.op("Div", blocks.logits(g, state, head), blocks.of_prompt(g, temperature))  # [P, N, V]
    top, ids = g.op("TopK", logits, g.constant([shape.top_k]), outputs=2, axis=-1, largest=1, sorted=1)
    largest = g.op("Slice", top, g.constant([0]), g.constant([1]), g.constant([2]))
    lse = g.op("Squeeze", blocks.log_sum_exp(g, logits, largest), g.constant([2]))
    return [
        ("logits", top, FLOAT, ["P", "N", shape.top_k]),
        ("ids", ids, INT64, ["P", "N", shape.top_k]),
        ("log_sum_exp", lse, FLOAT, ["P", "N"]),
        ("similarity", blocks.cosine_similarity(g, state), FLOAT, ["P", "N", "N"]),
    ]
