"""The `draft` graph: catch up with what the target accepted, then draft the whole tree, in one call.

First the drafter reads the M newest pairs (causally, written to its cache), then it walks down the tree level by
level: children of a node are the top-k of log q + noise. Nodes with children are written to the slots behind the M
pairs, where the next call begins to write: its slots follow the accepted pairs, so nothing has to be undone.

The layer runs L times, on the pairs and on each of the L levels but the last, and updates and reads the cache each
time: past_key.i becomes present_key.i in time i. All of them may be the same memory (`DraftCache`).

| input | shape | what |
|---|---|---|
| hidden | [R, N', D] | the target's output of the call before (prefill or verification) |
| path | int64 [P, M] | rows of `hidden` to read, padded at the end with any valid row |
| tokens | int64 [P, M] | the token that follows each; the last valid one is the tree's root |
| count | int64 [P] | how many of the M are valid |
| positions | int64 [R, M] | row of the drafter's rotary table of each pair; they follow each other |
| write_index | int64 [R] | first drafter cache slot that this call writes |
| cache_mask | bool [R, S] | slots that may be seen at all |
| prompt_of_row | int64 [R] | the slot that a row belongs to |
| rows_of_prompt | int64 [P, G] | the rows of each slot |
| noise | [P, L + 1, V] | added to log q before the top-k, a row for each level (the last is the host's) |
| guidance, temperature | [P, G], [P] | as for the target |
| forced | int64 [P, L + 1] | the token forced behind nodes of each depth, or -1; where the plan has any |
| past_key.i, past_value.i | [R, Hkv, S, Dh] | the drafter's cache, updated in place; i < L |

| output | shape | what |
|---|---|---|
| tree_tokens | int64 [P, N] | tokens of the tree's nodes, the root first |
| embeds | [R, N, D] | the target's embeddings of them, ready for `target` |
| log_q | [P, I, V] | the drafter's distribution at the I nodes that have children, in node order |
| features | [R, M, D] | the predicted hidden states of the M pairs |
| present_key.i, present_value.i | [R, Hkv, S, Dh] | the same memory as past_key.i, past_value.i |

Where a token is forced, all children of a level's nodes carry it, and the first one counts. Nodes are codes or syntax
tokens; log_q is always over the codes, so at a forced level it says nothing.

A dynamic tree is chosen in the graph (`dynamic.py`); log_q then has a row for each expanded node, and there are

| output | shape | what |
|---|---|---|
| parents | int64 [P, N] | each node's parent, -1 at the root |
| sources | int64 [P, N] | the row of log_q that a node was drafted from |
| depths | int64 [P, N] | 0 at the root |
| ancestors | bool [P, N, N] | row n marks what node n sees |
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...runtime.tree import AnyTree, DynamicTree
from . import blocks
from .builder import BOOL, FLOAT, INT64
from .drafter import DraftCache, DraftGraph, catch_up, committed_slots, expanded
from .dynamic import walk_dynamic
from .walks import Start, walk_tree


def build_draft(d: DraftGraph, tree: AnyTree) -> None:
    """Fills the builder of `d` with the graph that drafts `tree`."""
    g, plan, dim = d.g, d.target.plan, d.target.stack.dim
    hidden = g.input("hidden", g.dtype, ["R", "N_hidden", dim])
    path = g.input("path", INT64, ["P", "M"])
    tokens = g.input("tokens", INT64, ["P", "M"])
    count = g.input("count", INT64, ["P"])
    positions = g.input("positions", INT64, ["R", "M"])
    write_index = g.input("write_index", INT64, ["R"])
    cache_mask = g.input("cache_mask", BOOL, ["R", d.shape.slots])
    prompt_of_row = g.input("prompt_of_row", INT64, ["R"])
    rows_of_prompt = g.input("rows_of_prompt", INT64, ["P", "G"])
    noise = g.input("noise", FLOAT, ["P", tree.depth + 1, plan.codes])
    guidance = g.input("guidance", FLOAT, ["P", "G"])
    temperature = g.input("temperature", FLOAT, ["P"])
    forced = g.input("forced", INT64, ["P", tree.depth + 1]) if plan.has_forced else None
    cache = DraftCache(d, tree.depth, write_index)

    def for_rows(x: ir.Value) -> ir.Value:
        return g.op("Gather", x, prompt_of_row, axis=0)

    with g.scope("catch_up"):
        rows = g.op("Unsqueeze", for_rows(path), g.constant([2]))  # [R, M, 1]
        chosen = g.op("GatherND", hidden, rows, batch_dims=1)  # [R, M, D]
        first = g.op("Gather", positions, g.constant([0]), axis=1)  # [R, 1]
        slots = g.op("Add", g.op("Sub", positions, first), g.reshape(write_index, [-1, 1]))  # [R, M]
        features = catch_up(d, chosen, for_rows(tokens), positions, slots, cache_mask, cache)
        last = g.op("Sub", count, g.constant(np.int64(1)))  # [P]
        last_rows = g.reshape(for_rows(last), [-1, 1])  # [R, 1]
        state = g.op("Unsqueeze", g.op("GatherND", features, last_rows, batch_dims=1), g.constant([1]))
        root = g.op("GatherND", tokens, g.reshape(last, [-1, 1]), batch_dims=1)  # [P]
        root_position = g.op("Add", first, last_rows)  # [R, 1]
        committed = committed_slots(d, write_index, for_rows(count), cache_mask)
        behind = g.op("Add", g.op("Gather", slots, g.constant([-1]), axis=1), g.constant(np.int64(1)))  # [R, 1]
        _, place = blocks.window_index(g, d.shape.slots, behind, expanded(tree))  # [R, S]
        divisor = blocks.of_prompt(g, temperature)
        levels = [1] * (tree.depth + 1)
        scaled = g.split(g.op("Mul", noise, divisor), levels, axis=1)
        forced_levels = None if forced is None else g.split(forced, levels, axis=1)
    start = Start(
        state, g.reshape(root, [-1, 1]), root_position, cache, committed, place, for_rows, scaled,
        d.readout(rows_of_prompt, guidance), divisor, forced_levels,
    )  # fmt: skip
    drafted = walk_dynamic(d, tree, start) if isinstance(tree, DynamicTree) else walk_tree(d, tree, start)
    embeds = g.op("Gather", d.embeddings, for_rows(drafted.tokens))
    g.output("tree_tokens", drafted.tokens, INT64, ["P", tree.size])
    g.output("embeds", embeds, g.dtype, ["R", tree.size, dim])
    g.output("log_q", drafted.distributions, FLOAT, ["P", tree.distributions, plan.codes])
    g.output("features", features, g.dtype, ["R", "M", dim])
    cache.outputs()
    for name, value in drafted.chosen.items():
        kind, shape = (BOOL, ["P", tree.size, tree.size]) if name == "ancestors" else (INT64, ["P", tree.size])
        g.output(name, value, kind, shape)
