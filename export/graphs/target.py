"""The `target` graph: prefill, plain decoding and tree verification in one engine.

P slots hold one image each, on G rows: 2 under guidance, else 1.

| input | shape | what |
|---|---|---|
| embeds | [R, N, D] | embeddings of the nodes (or of a chunk of the prefix) |
| positions | int64 [R, N] | row of the rotary table |
| write_index | int64 [R] | first cache slot that this call writes |
| tree_mask | bool [R, N, W + 1] | may node n see the slot write_index + j; the last column is always False |
| cache_mask | bool [R, S] | slots that may ever be seen (False at padded prefix slots) |
| rows_of_prompt | int64 [P, G] | the rows of each slot |
| guidance | [P, G] | weights that mix them: s, 1 - s; or 1 |
| temperature | [P] | divides the guided logits |
| top_k, top_p | int64 [P], [P] | what the sampler keeps: of the K logits (1 is greedy), of the probability (1: all) |
| noise | [P, L, V] | Gumbel noise, one row for each position |
| depths | int64 [P, N] | the row of `noise` that belongs to the token after node n |
| forced | int64 [P, L] | the token that the sequence forces at a row's position, or -1; where the plan has any |
| past_key.i, past_value.i | [R, Hkv, S, Dh] | cache, updated in place |

| output | shape | what |
|---|---|---|
| drawn | int64 [P, N] | the token after each node; -1 where a row of the slot is not finite |
| runner_up | int64 [P, N] | the token that came second in the draw; `drawn` where the sampler keeps no other |
| logits, ids | [P, N, K] | the K largest guided logits / temperature, and their token ids |
| states | [P, N, F] | the guided features that the readout's linear map reads, 0 where `drawn` is -1 |
| hidden | [R, N, D] | after the final norm |
| similarity | [P, N, N] | cosines between `states` |
| present_key.i, present_value.i | [R, Hkv, S, Dh] | the same memory as past_key.i, past_value.i |
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..model import TargetModel
from . import blocks
from .builder import BOOL, FLOAT, INT64, GraphBuilder
from .readout import ReadoutGraph, cosine_similarity
from .sampler import draw, finite, sampler_inputs
from .stack import Stack


@dataclass(frozen=True)
class TargetShape:
    """Static sizes of a target graph: W nodes at most in one call, K kept logits, S cache slots."""

    window: int
    top_k: int
    slots: int


def target_shape(model: TargetModel, max_nodes: int, top_k: int) -> TargetShape:
    """Cache slots for the prefix, the sequence and one tree past its end, filled up to whole blocks."""
    slots = blocks.whole_blocks(model.prefix_len + model.plan.length + max_nodes)
    return TargetShape(max(max_nodes, model.prefix_len), min(top_k, model.plan.codes), slots)


def visible_slots(
    g: GraphBuilder, shape: TargetShape, tree_mask: ir.Value, cache_mask: ir.Value, write_index: ir.Value
) -> ir.Value:
    """bool [R, 1, N, S]: committed slots that are not masked, and the node's ancestors in this call's window."""
    behind, place = blocks.window_index(g, shape.slots, write_index, shape.window)
    place = g.op("Unsqueeze", place, g.constant([2]))
    # [R, N, W + 1] -> [R, W + 1, N], one row per slot, -> [R, N, S]
    by_slot = g.op("GatherND", g.op("Transpose", tree_mask, perm=[0, 2, 1]), place, batch_dims=1)
    in_tree = g.op("Transpose", by_slot, perm=[0, 2, 1])
    committed = g.op("And", behind, cache_mask)  # [R, S]
    visible = g.op("Or", in_tree, g.reshape(committed, [-1, 1, shape.slots]))
    return g.op("Unsqueeze", visible, g.constant([1]))


def build_target(g: GraphBuilder, model: TargetModel, shape: TargetShape) -> None:
    """Fills `g` with the graph of `model`."""
    spec, rows = model.stack, model.prefix_len + model.plan.length + shape.window
    stack = Stack(g, model.weights, spec, "target", shape.slots, rows)
    embeds = g.input("embeds", g.dtype, ["R", "N", spec.dim])
    positions = g.input("positions", INT64, ["R", "N"])
    write_index = g.input("write_index", INT64, ["R"])
    tree_mask = g.input("tree_mask", BOOL, ["R", "N", shape.window + 1])
    cache_mask = g.input("cache_mask", BOOL, ["R", shape.slots])
    rows_of_prompt = g.input("rows_of_prompt", INT64, ["P", "G"])
    guidance = g.input("guidance", FLOAT, ["P", "G"])
    temperature = g.input("temperature", FLOAT, ["P"])
    sampler = sampler_inputs(g, model.plan.codes, model.plan.has_forced)
    past, present = stack.caches(spec.n_layer), []
    with g.scope("mask"):
        bias = blocks.attention_bias(g, visible_slots(g, shape, tree_mask, cache_mask, write_index))
    turns = stack.turns(positions)
    x = embeds
    for i in range(spec.n_layer):

        def attend(qkv: ir.Value, i: int = i) -> ir.Value:
            q, k, v = stack.rotated_heads(i, qkv, turns)
            y, cache = stack.attend(q, (k, v), past[i], write_index, bias)
            present.append(cache)
            return y

        with g.scope(f"layers.{i}"):
            x = stack.layer(i, x, attend)
    hidden = stack.norm(x, "norm")
    with g.scope("readout"):
        readout = ReadoutGraph(g, model.readout, model.weights, rows_of_prompt, guidance)
        mixed = readout.states(hidden)
        fine = finite(g, x, mixed, rows_of_prompt)
        states = g.op("Where", fine, mixed, g.constant(np.float32(0)))  # sorting has no order for NaN
        logits = g.op("Div", readout.logits(states), blocks.of_prompt(g, temperature))  # [P, N, V]
    with g.scope("sampler"):
        top, ids = g.op("TopK", logits, g.constant([shape.top_k]), outputs=2, axis=-1, largest=1, sorted=1)
        drawn, runner_up = draw(g, model.plan.codes, shape.top_k, (top, ids), fine, sampler)
    g.output("drawn", drawn, INT64, ["P", "N"])
    g.output("runner_up", runner_up, INT64, ["P", "N"])
    g.output("logits", top, FLOAT, ["P", "N", shape.top_k])
    g.output("ids", ids, INT64, ["P", "N", shape.top_k])
    g.output("states", states, FLOAT, ["P", "N", model.readout.width])
    g.output("hidden", hidden, g.dtype, ["R", "N", spec.dim])
    g.output("similarity", cosine_similarity(g, states), FLOAT, ["P", "N", "N"])
    stack.outputs(present)
