"""The walk down a dynamic tree (EAGLE-2, arXiv 2406.16858, section 4): expand the likeliest nodes, keep the likeliest.

A level's candidates are the `width` children of each expanded node (a beam); of those the `width` likeliest are the
next beams. A candidate's score is the sum of log-probabilities on its path, those of log q + noise: EAGLE-2's own
without noise, and on the coupled tree how near each child comes to winning the shared draw. All shapes are static:
candidates number width * (1 + width * (levels - 1)), and the best N - 1 of them, in the order in which they were
drafted, are the nodes behind the root. Beams and kept nodes are put back into that order, so a tree's nodes stay
breadth-first, children of one node side by side, the drafter's first choice first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...runtime.tree import DynamicTree
from .builder import FLOAT, INT64, GraphBuilder
from .drafter import DraftGraph, expanded
from .walks import Drafted, Start, distributions

# A child is never as likely as its parent, though float32 may round its probability to 1: so the best nodes always
# hold the parents of all of them, whatever a backend does with ties.
_LESS_LIKELY = np.float32(-1e-4)
# The score of a forced token's copies, never kept if anything else is there. It doubles from parent to child: float32
# would not tell a child that is less likely by any other measure. Trees of 60 levels stay finite.
_COPY = np.float32(-1e20)


@dataclass(frozen=True)
class Beams:
    """The nodes that a level expands: their numbers among all candidates int64 [P, W], their scores [P, W], their
    states [R, W, D], and what they see of the beams so far, float32 [P, W, held], 1 or 0."""

    numbers: ir.Value
    scores: ir.Value
    state: ir.Value
    seen: ir.Value


def walk_dynamic(d: DraftGraph, tree: DynamicTree, start: Start) -> Drafted:
    """Drafts all candidates level by level, then keeps the likeliest."""
    g = d.g
    state, beams = start.state, None
    turns = turns_by_levels(d, tree, start)
    levels: list[ir.Value] = []
    scores: list[ir.Value] = []  # candidates' scores and tokens, [P, W] and then [P, W * W] a level
    tokens: list[ir.Value] = []
    numbers: list[ir.Value] = []  # of the beams of each level
    for level in range(tree.depth):
        with g.scope(f"level.{level}"):
            logits = start.logits(state)  # [P, 1 or W, V]
            levels.append(logits)
            ranked = distributions(g, g.op("Add", logits, start.noise[level]), start.temperature)
            values, ids = g.op("TopK", ranked, g.constant([tree.width]), outputs=2, axis=-1, largest=1, sorted=1)
            values = g.op("Min", values, g.constant(_LESS_LIKELY))
            if (forced := start.is_forced(g, level)) is not None:
                values, ids = forced_children(g, tree.width, forced, values, ids)
            if beams is not None:
                above = g.op("Unsqueeze", beams.scores, g.constant([2]))
                own = g.op("Add", values, above)
                values = own if forced is None else below_copies(g, above, own)
            scores.append(g.reshape(values, [0, -1]))
            tokens.append(g.reshape(ids, [0, -1]))
            if level + 1 < tree.depth:
                beams = expand(d, tree, start, level, turns[level], (scores[-1], tokens[-1]), beams)
                state = beams.state
                numbers.append(beams.numbers)
    with g.scope("keep"):
        chosen = keep(g, tree, start.root, g.concat(scores, axis=1), g.concat(tokens, axis=1), numbers)
    return Drafted(chosen.pop("tokens"), distributions(g, g.concat(levels, axis=1), start.temperature), chosen)


def turns_by_levels(d: DraftGraph, tree: DynamicTree, start: Start) -> tuple[ir.Value, ...]:
    """Turns [R * heads, W] of the beams of every level, made at once."""
    levels = tree.depth - 1
    if not levels:
        return ()
    below = np.repeat(np.arange(1, tree.depth), tree.width)
    return d.g.split(d.stack.turns(start.positions(d.g, below)), [tree.width] * levels, axis=1)


def forced_children(
    g: GraphBuilder, width: int, forced: tuple[ir.Value, ir.Value], values: ir.Value, ids: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """Scores and tokens [P, n, W] of a level's children, where it is forced: the first is certain, the rest copies."""
    scores = np.full((1, 1, width), _COPY, np.float32)
    scores[..., 0] = _LESS_LIKELY
    where, token = (g.op("Unsqueeze", x, g.constant([2])) for x in forced)  # [P, 1, 1]
    return g.op("Where", where, g.constant(scores, "forced"), values), g.op("Where", where, token, ids)


def below_copies(g: GraphBuilder, above: ir.Value, own: ir.Value) -> ir.Value:
    """Scores [P, n, W] of children whose parents have the scores `above` [P, n, 1]."""
    copy = g.op("Less", above, g.constant(_COPY / np.float32(2)))
    return g.op("Where", copy, g.op("Add", above, above), own)


def expand(
    d: DraftGraph, tree: DynamicTree, start: Start, level: int, turns: ir.Value,
    candidates: tuple[ir.Value, ir.Value], before: Beams | None,
) -> Beams:  # fmt: skip
    """Runs the drafter on the level's likeliest candidates, whose scores and tokens are [P, W or W * W]; turns
    [R * heads, W]."""
    g, width = d.g, tree.width
    scores, tokens = candidates
    none = no_prompt_differs(g, start.root)
    own = g.op("Gather", g.constant(np.eye(width, dtype=np.float32)[None], "own"), none, axis=0)  # [P, W, W]
    if before is None:
        first = 0
        local = g.op("Gather", g.constant(np.arange(width)[None], "all"), none, axis=0)  # [P, W]
        parent_state = g.op("Gather", start.state, g.constant([0] * width), axis=1)
        seen = own
    else:
        first = width * (1 + width * (level - 1))
        local = best(g, scores, width)
        parent = g.op("Unsqueeze", g.op("Div", local, g.constant(np.int64(width))), g.constant([2]))  # [P, W, 1]
        parent_state = g.op("GatherND", before.state, start.for_rows(parent), batch_dims=1)
        seen = g.op("Concat", g.op("GatherND", before.seen, parent, batch_dims=1), own, axis=2)
    picked = g.op("GatherElements", tokens, local, axis=1)
    x = d.fused_input(start.for_rows(picked), parent_state)
    bias = start.bias(g, drafted_slots(g, tree, start, level, seen))
    state = d.layer(x, lambda qkv: start.cache.attend(qkv, turns, bias))
    numbers = g.op("Add", local, g.constant(np.int64(first)))
    return Beams(numbers, g.op("GatherElements", scores, local, axis=1), state, seen)


def drafted_slots(g: GraphBuilder, tree: DynamicTree, start: Start, level: int, seen: ir.Value) -> ir.Value:
    """bool [R, S, W]: slots of the beams so far that each beam of the level sees; seen float32 [P, W, held]."""
    missing = expanded(tree) + 1 - tree.width * (level + 1)  # beams to come, and slots of no beam
    padded = g.op("Pad", seen, g.constant([0, 0, 0, 0, 0, missing]))
    marked = g.op("Greater", g.op("Transpose", start.for_rows(padded), perm=[0, 2, 1]), g.constant(np.float32(0.5)))
    return g.op("GatherND", marked, g.op("Unsqueeze", start.place, g.constant([2])), batch_dims=1)


def keep(
    g: GraphBuilder, tree: DynamicTree, root: ir.Value, scores: ir.Value, tokens: ir.Value, expanded: list[ir.Value]
) -> dict[str, ir.Value]:
    """The kept nodes as the graph's outputs, from the candidates' scores and tokens [P, C]."""
    width, count = tree.width, np.arange(tree.candidates)
    source_of = np.where(count < width, 0, count // width)  # the distribution that a candidate was drafted from
    depth_of = np.where(count < width, 1, 2 + (count - width) // width**2)
    none = no_prompt_differs(g, root)
    nil = g.op("Sub", root, root)  # int64 [P, 1]
    outside = g.op("Sub", nil, g.constant([1]))  # -1: the root is no candidate
    kept = best(g, scores, tree.size - 1)  # [P, N - 1]
    sources = g.op("Gather", g.constant(source_of, "source_of"), kept)
    parents = g.op("GatherElements", g.concat([outside, *expanded], axis=1), sources, axis=1)  # numbers of candidates
    same = g.op(
        "Equal",
        g.op("Unsqueeze", parents, g.constant([2])),
        g.op("Unsqueeze", g.concat([outside, kept], axis=1), g.constant([1])),
    )
    steps = g.cast(same, FLOAT)  # [P, N - 1, N]: 1 at a node's parent
    root_row = g.op("Gather", g.constant(np.zeros((1, 1, tree.size), np.float32), "root_row"), none, axis=0)
    up = g.op("Concat", root_row, steps, axis=1)
    own = g.constant(np.eye(tree.size, dtype=np.float32)[None], "own")
    above = g.op("Add", up, own)
    for _ in range(tree.depth - 1):
        above = g.op("Add", g.op("MatMul", up, above), own)
    return {
        "tokens": g.concat([root, g.op("GatherElements", tokens, kept, axis=1)], axis=1),
        "parents": g.concat([outside, g.op("ArgMax", steps, axis=2, keepdims=0)], axis=1),
        "sources": g.concat([nil, sources], axis=1),
        "depths": g.concat([nil, g.op("Gather", g.constant(depth_of, "depth_of"), kept)], axis=1),
        "ancestors": g.op("Greater", above, g.constant(np.float32(0.5))),
    }


def best(g: GraphBuilder, scores: ir.Value, count: int) -> ir.Value:
    """Places int64 [P, count] of the highest scores [P, n], in rising order."""
    _, places = g.op("TopK", scores, g.constant([count]), outputs=2, axis=-1, largest=1, sorted=1)
    as_float = g.cast(places, FLOAT)  # exact below 2^24, and every backend sorts it
    ordered, _ = g.op("TopK", as_float, g.constant([count]), outputs=2, axis=-1, largest=0, sorted=1)
    return g.cast(ordered, INT64)


def no_prompt_differs(g: GraphBuilder, root: ir.Value) -> ir.Value:
    """int64 [P] of zeros: gathers a constant once for each prompt."""
    return g.reshape(g.op("Sub", root, root), [-1])
