"""The drafter as graph parts: its one layer, the catch-up with the target, attention of drafted nodes.

The drafter is one EAGLE layer: it reads the target's hidden state of a token with the embedding of the token
that follows and predicts the next hidden state; the target's head turns that into the drafter's distribution q.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ...runtime.tree import AnyTree
from ..model import DrafterModel, TargetModel
from . import blocks
from .builder import GraphBuilder, as_numpy
from .embed import embedding
from .readout import ReadoutGraph
from .stack import Attend, Stack


@dataclass(frozen=True)
class DraftShape:
    """Static sizes: S drafter cache slots, and rows of the rotary table."""

    slots: int
    positions: int


def draft_shape(target: TargetModel, drafted: Sequence[AnyTree], max_nodes: int) -> DraftShape:
    """Slots for the prefix, the sequence, the padding of the last catch-up, and the drafted nodes behind it.

    A round accepts a path of a tree of at most `max_nodes`, of which one of `drafted` may be the first part only.
    """
    levels, inner = (max(count(tree) for tree in drafted) for count in (lambda tree: tree.depth + 1, expanded))
    read, pairs = target.prefix_len - 1 + target.plan.length, max(max_nodes, levels)
    return DraftShape(blocks.whole_blocks(read + pairs + inner), read + pairs + levels)


def expanded(tree: AnyTree) -> int:
    """How many nodes behind the root the drafter's layer runs on: those with children."""
    return tree.distributions - 1


class DraftGraph:
    """Builds one draft graph: the drafter's layer, the target's embeddings and readout.

    `g` finds the target's tensors among those of other weight files; inputs of the graph come with `inputs`.
    """

    def __init__(self, g: GraphBuilder, drafter: DrafterModel, target: TargetModel, shape: DraftShape) -> None:
        self.g, self.drafter, self.target, self.shape = g, drafter, target, shape
        self.stack = Stack(g, drafter.weights, drafter.stack, "drafter", shape.slots, shape.positions)
        self.embeddings = embedding(g, target.weights)
        self._own = g.weight("drafter.embedding", lambda: self.stack.load("embedding.weight"))

    def fused_input(self, tokens: ir.Value, hidden: ir.Value) -> ir.Value:
        """fc(cat(embed(tokens), hidden)): tokens [R, n], hidden [R, n, D] -> [R, n, D]."""
        g = self.g
        pair = g.op("Concat", g.op("Gather", self._own, tokens), hidden, axis=-1)
        x = g.linear(pair, "drafter.fc", lambda: self.stack.load("fc.weight"))
        if self.drafter.fc_bias:
            x = g.op("Add", x, g.weight("drafter.fc.bias", lambda: as_numpy(self.drafter.weights.load("fc.bias"))))
        return x

    def layer(self, x: ir.Value, attend: Attend) -> ir.Value:
        """The drafter's one layer; `attend` maps qkv to what attention gives."""
        return self.stack.layer(0, x, attend)

    def readout(self, rows_of_prompt: ir.Value, guidance: ir.Value) -> ReadoutGraph:
        """The target's, which turns predicted states into the drafter's distribution."""
        return ReadoutGraph(self.g, self.target.readout, self.target.weights, rows_of_prompt, guidance)


class DraftCache:
    """The cache in a call that updates and reads it in several steps: one for the catch-up, one for each level.

    TensorRT insists that an updated cache is an input of the engine and its successor an output, each of one update,
    so updates cannot be chained. Each step therefore has names of its own, past_key.i and present_key.i, and writes
    what the earlier steps have written once more, its own nodes behind. Of the slots that it sees, those before
    write_index were in its past and the others it has written itself, so it is right whether or not the steps share
    their memory: in shared memory it writes the same values to the same slots, and new ones where no step looked.
    """

    def __init__(self, d: DraftGraph, steps: int, write_index: ir.Value) -> None:
        self._g, self._stack, self._write_index = d.g, d.stack, write_index
        self._past = d.stack.caches(steps)
        self._present: list[tuple[ir.Value, ir.Value]] = []
        self._written: tuple[ir.Value, ir.Value] | None = None  # keys and values [R, Hkv, W, Dh] of all steps so far

    def attend(self, qkv: ir.Value, turns: ir.Value, bias: ir.Value) -> ir.Value:
        """The next step: qkv of n nodes, turns [R * heads, n], bias [R, 1, n, S]; returns [R, n, H * Dh]."""
        g = self._g
        q, k, v = self._stack.rotated_heads(0, qkv, turns)
        if self._written is not None:
            k = g.op("Concat", self._written[0], k, axis=2)
            v = g.op("Concat", self._written[1], v, axis=2)
        self._written = (k, v)
        past = self._past[len(self._present)]
        y, present = self._stack.attend(q, (k, v), past, self._write_index, bias)
        self._present.append(present)
        return y

    def outputs(self) -> None:
        """Makes every step's cache an output of the graph."""
        self._stack.outputs(self._present)


def catch_up(
    d: DraftGraph, hidden: ir.Value, tokens: ir.Value, positions: ir.Value, slots: ir.Value, cache_mask: ir.Value,
    cache: DraftCache,
) -> ir.Value:  # fmt: skip
    """Reads the pairs (hidden [R, M, D], tokens [R, M]) causally into `slots` [R, M]; returns features [R, M, D]."""
    g = d.g
    every = g.constant(blocks.cache_positions(d.shape.slots)[None], "slots")
    own = g.op("Unsqueeze", slots, g.constant([2]))  # [R, M, 1]
    causal = g.op("LessOrEqual", every, own)  # [R, M, S]
    visible = g.op("And", causal, g.reshape(cache_mask, [-1, 1, d.shape.slots]))
    if not d.drafter.sees_padding:  # a padded pair sees itself: with nothing to see, its state would be NaN
        visible = g.op("Or", visible, g.op("Equal", every, own))
    bias = blocks.attention_bias(g, g.op("Unsqueeze", visible, g.constant([1])))  # [R, 1, M, S]
    turns = d.stack.turns(positions)
    return d.layer(d.fused_input(tokens, hidden), lambda qkv: cache.attend(qkv, turns, bias))


def committed_slots(d: DraftGraph, write_index: ir.Value, count_of_row: ir.Value, cache_mask: ir.Value) -> ir.Value:
    """bool [R, 1, S]: slots before write_index + count are what all tree nodes see of the cache."""
    g = d.g
    length = g.reshape(g.op("Add", write_index, count_of_row), [-1, 1])
    seen = g.op("And", g.op("Less", g.constant(blocks.cache_positions(d.shape.slots), "slots"), length), cache_mask)
    return g.op("Unsqueeze", seen, g.constant([1]))
