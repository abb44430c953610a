"""How a draft graph walks down its tree, from the root's predicted state: static trees here.

What a walk starts from and what it leaves are shared with dynamic trees (`dynamic.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ...runtime.tree import Tree
from . import blocks
from .builder import GraphBuilder
from .drafter import DraftCache, DraftGraph, expanded
from .readout import ReadoutGraph


@dataclass(frozen=True)
class Start:
    """What a walk reads.

    `state` [R, 1, D] is the drafter's prediction behind the root, `root` int64 [P, 1] its token, `position` [R, 1] its
    row of the rotary table; `for_rows` takes a value of each prompt to its rows; `noise` holds [P, 1, V] for each level
    and the host's, times `temperature` [P, 1, 1], since logits get it before they are divided; `forced` holds int64
    [P, 1] for each of them, -1 where nothing is forced, or is None where nothing ever is. All nodes see the slots
    `committed` bool [R, 1, S]; `place` int64 [R, S] says which drafted node a slot is for, those with children counted
    in the order in which they are drafted, and is their number I - 1 at all other slots.
    """

    state: ir.Value
    root: ir.Value
    position: ir.Value
    cache: DraftCache
    committed: ir.Value
    place: ir.Value
    for_rows: Callable[[ir.Value], ir.Value]
    noise: tuple[ir.Value, ...]
    readout: ReadoutGraph
    temperature: ir.Value
    forced: tuple[ir.Value, ...] | None

    def logits(self, state: ir.Value) -> ir.Value:
        """float32 [P, n, V], guided, of predicted states [R, n, D]."""
        return self.readout.logits(self.readout.states(state))

    def is_forced(self, g: GraphBuilder, level: int) -> tuple[ir.Value, ir.Value] | None:
        """Where the children of a level's nodes are forced, bool [P, 1], and to which token, int64 [P, 1]."""
        if self.forced is None:
            return None
        return g.op("GreaterOrEqual", self.forced[level], g.constant(np.int64(0))), self.forced[level]

    def bias(self, g: GraphBuilder, by_slot: ir.Value) -> ir.Value:
        """[R, 1, n, S], for attention of n nodes that see the drafted slots by_slot bool [R, S, n]."""
        visible = g.op("Or", g.op("Transpose", by_slot, perm=[0, 2, 1]), self.committed)
        return blocks.attention_bias(g, g.op("Unsqueeze", visible, g.constant([1])))

    def positions(self, g: GraphBuilder, depths: np.ndarray) -> ir.Value:
        """int64 [R, n]: rows of the rotary table of nodes so far below the root."""
        return g.op("Add", self.position, g.constant(depths[None].astype(np.int64), "depth"))


@dataclass(frozen=True)
class Drafted:
    """What a walk leaves: tokens int64 [P, N], q float32 [P, I, V], and a dynamic tree's other outputs by name."""

    tokens: ir.Value
    distributions: ir.Value
    chosen: dict[str, ir.Value] = field(default_factory=dict)


def pick_children(
    g: GraphBuilder, tree: Tree, nodes: list[int], logits: ir.Value, level_noise: ir.Value
) -> ir.Value:
    """Tokens int64 [P, children] of the children of `nodes`: the top-k of logits + noise."""
    most = max(len(tree.children[node]) for node in nodes)
    _, ids = g.op(
        "TopK", g.op("Add", logits, level_noise), g.constant([most]), outputs=2, axis=-1, largest=1, sorted=1
    )
    picked = [i * most + rank for i, node in enumerate(nodes) for rank in range(len(tree.children[node]))]
    return columns(g, g.reshape(ids, [0, -1]), picked, len(nodes) * most)


def columns(g: GraphBuilder, x: ir.Value, chosen: list[int], count: int) -> ir.Value:
    """x[:, chosen] of x [., count, ...]; x itself where that is all of it, in order."""
    return x if chosen == list(range(count)) else g.op("Gather", x, g.constant(chosen), axis=1)


def walk_tree(d: DraftGraph, tree: Tree, start: Start) -> Drafted:
    """Drafts a static tree level by level."""
    g, state = d.g, start.state
    nodes, tokens, levels = [0], [start.root], []
    views = seen_by_levels(d, tree, start)
    for level in range(tree.depth):
        with g.scope(f"level.{level}"):
            logits = start.logits(state)  # [P, n, V]
            levels.append(logits)
            picked = pick_children(g, tree, nodes, logits, start.noise[level])  # [P, children]
            if (forced := start.is_forced(g, level)) is not None:
                picked = g.op("Where", forced[0], forced[1], picked)
            tokens.append(picked)
            children = [child for node in nodes for child in tree.children[node]]
            inner = [child for child in children if tree.children[child]]
            if not inner:
                continue
            own = start.for_rows(columns(g, picked, [children.index(n) for n in inner], len(children)))
            parents = [nodes.index(tree.parents[n]) for n in inner]
            x = d.fused_input(own, columns(g, state, parents, len(nodes)))
            bias, turns = views[level]
            state = d.layer(x, lambda qkv, t=turns, b=bias: start.cache.attend(qkv, t, b))
            nodes = inner
    return Drafted(g.concat(tokens, axis=1), distributions(g, g.concat(levels, axis=1), start.temperature))


def distributions(g: GraphBuilder, logits: ir.Value, temperature: ir.Value) -> ir.Value:
    """log q float32 [P, n, V] of logits [P, n, V]; on a CPU cheaper for all levels at once."""
    return g.op("LogSoftmax", g.op("Div", logits, temperature), axis=-1)


def seen_by_levels(d: DraftGraph, tree: Tree, start: Start) -> list[tuple[ir.Value, ir.Value]]:
    """Bias [R, 1, n, S] and turns [R * heads, n] of the n nodes with children of every level behind the root.

    Made for all levels at once: on a CPU small operators cost what they cost to call, and levels are many.
    """
    g = d.g
    inner = [n for n in tree.internal if n]  # in the order of their slots
    if not inner:
        return []
    depths = np.array([tree.depths[n] for n in inner])
    seen = np.zeros((expanded(tree) + 1, len(inner)), bool)  # the last row: slots of no node
    seen[:-1] = tree.ancestors[np.ix_(inner, inner)].T
    bias = start.bias(g, g.op("Gather", g.constant(seen, "ancestors"), start.place))
    turns = d.stack.turns(start.positions(g, depths))
    sizes = np.bincount(depths)[1:].tolist()
    return list(zip(g.split(bias, sizes, axis=2), g.split(turns, sizes, axis=1), strict=True))
