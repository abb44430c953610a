"""How a draft graph walks down its tree, from the root's predicted state: static trees here.

What a walk starts from and what it leaves are shared with dynamic trees (`dynamic.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ...runtime.tree import Tree
from .builder import GraphBuilder
from .drafter import DraftCache, DraftGraph, expanded


@dataclass(frozen=True)
class Start:
    """What a walk reads.

    `state` [R, 1, D] is the drafter's prediction behind the root, `root` int64 [P, 1] its token, `position` [R, 1] its
    row of the rotary table; `for_rows` takes a value of each prompt to its rows; noise [P, L + 1, V]. All nodes see the
    slots `committed` bool [R, 1, S]; `place` int64 [R, S] says which drafted node a slot is for, those with children
    counted in the order in which they are drafted, and is their number I - 1 at all other slots.
    """

    state: ir.Value
    root: ir.Value
    position: ir.Value
    cache: DraftCache
    committed: ir.Value
    place: ir.Value
    for_rows: Callable[[ir.Value], ir.Value]
    noise: ir.Value
    guidance: ir.Value
    temperature: ir.Value

    def layer(self, d: DraftGraph, x: ir.Value, depth: int, nodes: int, by_slot: ir.Value) -> ir.Value:
        """The drafter's layer on `nodes` nodes x [R, n, D], which see the drafted slots by_slot bool [R, S, n]."""
        g = d.g
        visible = g.op("Or", g.op("Transpose", by_slot, perm=[0, 2, 1]), self.committed)
        mask = g.op("Unsqueeze", visible, g.constant([1]))  # [R, 1, n, S]
        positions = g.op("Add", self.position, g.constant(np.full((1, nodes), depth, np.int64), "depth"))  # [R, n]
        return d.layer(x, lambda qkv: self.cache.attend(qkv, positions, mask))

    def level_noise(self, g: GraphBuilder, level: int) -> ir.Value:
        """[P, 1, V]"""
        return g.op("Slice", self.noise, g.constant([level]), g.constant([level + 1]), g.constant([1]))


@dataclass(frozen=True)
class Drafted:
    """What a walk leaves: tokens int64 [P, N], laws float32 [P, I, V], and a dynamic tree's other outputs by name."""

    tokens: ir.Value
    laws: ir.Value
    chosen: dict[str, ir.Value] = field(default_factory=dict)


def pick_children(
    g: GraphBuilder, tree: Tree, nodes: list[int], log_q: ir.Value, level_noise: ir.Value
) -> ir.Value:
    """Tokens int64 [P, children] of the children of `nodes`: the top-k of log q + noise ."""
    most = max(len(tree.children[node]) for node in nodes)
    _, ids = g.op(
        "TopK", g.op("Add", log_q, level_noise), g.constant([most]), outputs=2, axis=-1, largest=1, sorted=1
    )
    picked = [i * most + rank for i, node in enumerate(nodes) for rank in range(len(tree.children[node]))]
    return g.op("Gather", g.reshape(ids, [0, -1]), g.constant(picked), axis=1)


def walk_tree(d: DraftGraph, tree: Tree, start: Start) -> Drafted:
    """Drafts a static tree level by level."""
    g, state = d.g, start.state
    nodes, tokens, laws = [0], [start.root], []
    order: list[int] = []  # nodes whose keys are written, in the order of their slots
    for level in range(tree.depth):
        with g.scope(f"level.{level}"):
            log_q = d.law(state, start.guidance, start.temperature)  # [P, n, V]
            laws.append(log_q)
            picked = pick_children(g, tree, nodes, log_q, start.level_noise(g, level))  # [P, children]
            tokens.append(picked)
            children = [child for node in nodes for child in tree.children[node]]
            inner = [child for child in children if tree.children[child]]
            if not inner:
                continue
            own = start.for_rows(g.op("Gather", picked, g.constant([children.index(n) for n in inner]), axis=1))
            parents = g.constant([nodes.index(tree.parents[n]) for n in inner])
            x = d.fused_input(own, g.op("Gather", state, parents, axis=1))
            order += inner
            seen = np.zeros((expanded(tree) + 1, len(inner)), bool)  # the last row: slots of no node
            seen[: len(order)] = tree.ancestors[np.ix_(inner, order)].T
            by_slot = g.op("Gather", g.constant(seen, "ancestors"), start.place)  # [R, S, n]
            state = start.layer(d, x, level + 1, len(inner), by_slot)
            nodes = inner
    laws_all = g.op("Concat", *laws, axis=1) if len(laws) > 1 else laws[0]
    return Drafted(g.op("Concat", *tokens, axis=1), laws_all)
