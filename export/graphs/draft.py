"""The `draft` graph: catch up with what the target accepted, then draft the whole tree, in one call.

The drafter is one EAGLE layer: it reads the target's hidden state of a token with the embedding of the token
that follows and predicts the next hidden state; the target's head turns that into the drafter's law q. First
it reads the M newest pairs (causally, written to its cache), then it walks down the static tree level by
level: children of a node are the top-k of log q + noise. Keys and values of drafted nodes live only inside
the call, so the cache is written once and nothing has to be undone.

| input | shape | what |
|---|---|---|
| hidden | [R, N', D] | the target's output of the call before (prefill or verification) |
| path | int64 [P, M] | rows of `hidden` to read, padded at the end with any valid row |
| tokens | int64 [P, M] | the token that follows each; the last valid one is the tree's root |
| count | int64 [P] | how many of the M are valid |
| positions | int64 [R, M] | row of the drafter's rotary table of each pair |
| write_index | int64 [R] | first drafter cache slot that this call writes |
| cache_mask | bool [R, S] | slots that may be seen at all |
| prompt_of_row | int64 [R] | the prompt that a row belongs to |
| noise | [P, L + 1, V] | added to log q before the top-k, a row for each level (the last is the host's) |
| guidance, temperature | [P, R], [P] | as for the target |
| past_key.0, past_value.0 | [R, H, S, Dh] | the drafter's cache, updated in place |

| output | shape | what |
|---|---|---|
| tree_tokens | int64 [P, N] | tokens of the tree's nodes, the root first |
| embeds | [R, N, D] | the target's embeddings of them, ready for `target` |
| log_q | [P, I, V] | the drafter's law at the I nodes that have children, in node order |
| features | [R, M, D] | the predicted hidden states of the M pairs |
| present_key.0, present_value.0 | [R, H, S, Dh] | the same memory as past_key.0, past_value.0 |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...runtime.tree import Tree
from ..checkpoints.source import TensorSource
from ..models.drafter import DrafterConfig
from ..models.llamagen import rope_2d
from . import blocks
from .builder import BOOL, FLOAT, INT64, GraphBuilder, as_numpy

_NEVER = np.float32(-1e9)  # a masked score; finite, so that a row without visible slots stays a number


@dataclass(frozen=True)
class DraftShape:
    """Static sizes: S drafter cache slots, rows in the rotary table's tail, V and N from config and tree."""

    slots: int
    tail: int


def draft_shape(config: DrafterConfig, image_tokens: int, max_depth: int) -> DraftShape:
    """Slots for the prefix, the image, and the padding of the last catch-up."""
    return DraftShape(config.prefix_len - 1 + image_tokens + max_depth + 1, 2 * (max_depth + 1))


class DraftGraph:
    """Builds one draft graph. Holds what every step needs: builder, weights, geometry and inputs."""

    def __init__(
        self,
        g: GraphBuilder,
        source: TensorSource,
        config: DrafterConfig,
        shape: DraftShape,
        head: ir.ExternalTensor,
        embeddings: ir.ExternalTensor,
    ) -> None:
        self.g, self.source, self.config, self.shape = g, source, config, shape
        self.heads = blocks.Heads(config.n_head, config.head_dim, shape.slots)
        self.head, self.embeddings = g.shared(head), g.shared(embeddings)
        self.own_embeddings = g.weight("drafter.embed_tokens", lambda: self.load("embed_tokens"))
        table = rope_2d(
            config.grid, config.head_dim, config.prefix_len - 1, tail=shape.tail, base=config.rope_base
        )
        self.rope = blocks.rope_tables(g, table, "drafter")

    def load(self, name: str) -> np.ndarray:
        return as_numpy(self.source.load(f"{name}.weight"))

    def fused_input(self, tokens: ir.Value, hidden: ir.Value) -> ir.Value:
        """fc(cat(embed(tokens), hidden)): tokens [R, n], hidden [R, n, D] -> [R, n, D]."""
        g = self.g
        pair = g.op("Concat", g.op("Gather", self.own_embeddings, tokens), hidden, axis=-1)
        x = g.linear(pair, "drafter.fc", lambda: self.load("fc"))
        if self.config.bias:
            x = g.op("Add", x, g.weight("drafter.fc.bias", lambda: as_numpy(self.source.load("fc.bias"))))
        return x

    def layer(self, x: ir.Value, attend: Callable[[ir.Value], ir.Value]) -> ir.Value:
        """The decoder layer (no norm before attention); `attend` maps qkv [R, n, 3D] to [R, n, D]."""
        g = self.g

        def qkv() -> np.ndarray:
            q, k, v = (self.load(f"layers.0.self_attn.{p}_proj") for p in "qkv")
            half = [blocks.half_split_rows(w, self.config.n_head) for w in (q, k)]
            return np.concatenate([*half, v])

        def gate_up() -> np.ndarray:
            return np.concatenate([self.load(f"layers.0.mlp.{p}_proj") for p in ("gate", "up")])

        y = attend(g.linear(x, "drafter.wqkv", qkv))
        x = g.op("Add", x, g.linear(y, "drafter.wo", lambda: self.load("layers.0.self_attn.o_proj")))
        norm = "layers.0.post_attention_layernorm"
        h = blocks.rms_norm(g, x, "drafter.norm", lambda: self.load(norm), self.config.norm_eps)
        down = self.load
        y = blocks.swiglu(
            g, h, "drafter.w13", gate_up, "drafter.w2", lambda: down("layers.0.mlp.down_proj")
        )
        return g.op("Add", x, y)

    def law(self, features: ir.Value, guidance: ir.Value, temperature: ir.Value) -> ir.Value:
        """float32 log q [P, n, V] from predicted states [R, n, D]."""
        state = blocks.guided(self.g, features, guidance, self.config.dim)
        logits = blocks.scaled_logits(self.g, state, self.head, temperature)
        return self.g.op("LogSoftmax", logits, axis=-1)


@dataclass(frozen=True)
class Committed:
    """The drafter's cache after the catch-up, and which of its slots tree nodes may see."""

    keys: ir.Value  # [R, H, S, Dh]
    values: ir.Value
    bias: ir.Value  # float32 [R, 1, 1, S]: 0 where visible


def catch_up(
    d: DraftGraph, hidden: ir.Value, tokens: ir.Value, positions: ir.Value, write_index: ir.Value,
    cache_mask: ir.Value, past: tuple[ir.Value, ir.Value],
) -> tuple[ir.Value, tuple[ir.Value, ir.Value]]:  # fmt: skip
    """Reads the pairs (hidden [R, M, D], tokens [R, M]) causally; returns features [R, M, D] and the cache."""
    g = d.g
    first = g.op("Gather", positions, g.constant([0]), axis=1)  # [R, 1]
    own_slot = g.op("Add", g.op("Sub", positions, first), g.reshape(write_index, [-1, 1]))  # [R, M]
    slots = g.constant(np.arange(d.shape.slots, dtype=np.int64)[None, None], "slots")
    causal = g.op("LessOrEqual", slots, g.op("Unsqueeze", own_slot, g.constant([2])))  # [R, M, S]
    visible = g.op("And", causal, g.reshape(cache_mask, [-1, 1, d.shape.slots]))
    mask = g.op("Unsqueeze", visible, g.constant([1]))  # [R, 1, M, S]
    kept: list[tuple[ir.Value, ir.Value]] = []

    def attend(qkv: ir.Value) -> ir.Value:
        y, cache = blocks.cached_attention(g, qkv, d.heads, d.rope, positions, past, write_index, mask)
        kept.append(cache)
        return y

    return d.layer(d.fused_input(tokens, hidden), attend), kept[0]


def tree_attention(
    d: DraftGraph, qkv: ir.Value, positions: ir.Value, committed: Committed,
    drafted: tuple[ir.Value, ir.Value] | None, ancestors: np.ndarray,
) -> tuple[ir.Value, tuple[ir.Value, ir.Value]]:  # fmt: skip
    """Attention of n tree nodes over the cache and the drafted nodes above them.

    The two parts are joined in one softmax without joining keys, so the cache is read where it lies.
    `ancestors` is bool [n, nodes drafted so far + n]. Returns [R, n, D] and all drafted keys and values.
    """
    g, heads = d.g, d.heads
    width = heads.count * heads.dim
    qk, v = g.split(qkv, [2 * width, width])
    qk = blocks.rotate(g, qk, 2 * heads.count, heads.dim, d.rope, positions)
    q, k = g.split(qk, [heads.count, heads.count], axis=1)  # [R, H, n, Dh]
    v = g.op("Transpose", g.reshape(v, [0, 0, heads.count, heads.dim]), perm=[0, 2, 1, 3])
    if drafted is not None:
        k = g.op("Concat", drafted[0], k, axis=2)
        v = g.op("Concat", drafted[1], v, axis=2)
    q = g.op("Mul", q, g.from_float(g.constant(np.float32(heads.dim**-0.5))))
    by_slot = g.op("MatMul", committed.keys, g.op("Transpose", q, perm=[0, 1, 3, 2]))  # [R, H, S, n]
    on_cache = g.to_float(g.op("Transpose", by_slot, perm=[0, 1, 3, 2]))
    on_tree = g.to_float(g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2])))
    tree_bias = g.constant(np.where(ancestors, np.float32(0), _NEVER)[None, None], "ancestors")
    scores = g.op(
        "Concat", g.op("Add", on_cache, committed.bias), g.op("Add", on_tree, tree_bias), axis=-1
    )
    weights = g.from_float(g.op("Softmax", scores, axis=-1))
    for_cache, for_tree = g.split(weights, [heads.slots, ancestors.shape[1]])
    y = g.op("Add", g.op("MatMul", for_cache, committed.values), g.op("MatMul", for_tree, v))
    return g.reshape(g.op("Transpose", y, perm=[0, 2, 1, 3]), [0, 0, width]), (k, v)


def pick_children(
    g: GraphBuilder, tree: Tree, nodes: list[int], log_q: ir.Value, noise: ir.Value, level: int
) -> ir.Value:
    """Tokens int64 [P, children] of the children of `nodes`: the top-k of log q + noise at this level."""
    most = max(len(tree.children[node]) for node in nodes)
    level_noise = g.op("Slice", noise, g.constant([level]), g.constant([level + 1]), g.constant([1]))
    _, ids = g.op(
        "TopK", g.op("Add", log_q, level_noise), g.constant([most]), outputs=2, axis=-1, largest=1, sorted=1
    )
    picked = [i * most + rank for i, node in enumerate(nodes) for rank in range(len(tree.children[node]))]
    return g.op("Gather", g.reshape(ids, [0, -1]), g.constant(picked), axis=1)


def build_draft(d: DraftGraph, tree: Tree) -> None:
    """Fills the builder of `d` with the graph that drafts `tree`."""
    g, config = d.g, d.config
    cache_shape = ["R", config.n_head, d.shape.slots, config.head_dim]
    hidden = g.input("hidden", g.dtype, ["R", "N_hidden", config.dim])
    path = g.input("path", INT64, ["P", "M"])
    tokens = g.input("tokens", INT64, ["P", "M"])
    count = g.input("count", INT64, ["P"])
    positions = g.input("positions", INT64, ["R", "M"])
    write_index = g.input("write_index", INT64, ["R"])
    cache_mask = g.input("cache_mask", BOOL, ["R", d.shape.slots])
    prompt_of_row = g.input("prompt_of_row", INT64, ["R"])
    noise = g.input("noise", FLOAT, ["P", tree.depth + 1, config.vocab_size])
    guidance = g.input("guidance", FLOAT, ["P", "R"])
    temperature = g.input("temperature", FLOAT, ["P"])
    past = (g.input("past_key.0", g.dtype, cache_shape), g.input("past_value.0", g.dtype, cache_shape))

    def for_rows(x: ir.Value) -> ir.Value:
        return g.op("Gather", x, prompt_of_row, axis=0)

    with g.scope("catch_up"):
        rows = g.op("Unsqueeze", for_rows(path), g.constant([2]))  # [R, M, 1]
        chosen = g.op("GatherND", hidden, rows, batch_dims=1)  # [R, M, D]
        features, cache = catch_up(
            d, chosen, for_rows(tokens), positions, write_index, cache_mask, past
        )
        last = g.op("Sub", count, g.constant(np.int64(1)))  # [P]
        last_rows = g.reshape(for_rows(last), [-1, 1])  # [R, 1]
        state = g.op("Unsqueeze", g.op("GatherND", features, last_rows, batch_dims=1), g.constant([1]))
        root = g.op("GatherND", tokens, g.reshape(last, [-1, 1]), batch_dims=1)  # [P]
        first = g.op("Gather", positions, g.constant([0]), axis=1)
        root_position = g.op("Add", first, last_rows)  # [R, 1]
        committed = visible_cache(d, cache, write_index, for_rows(count), cache_mask)
    all_tokens, laws = walk_tree(
        d, tree, state, g.reshape(root, [-1, 1]), root_position, committed, for_rows,
        noise, guidance, temperature,
    )  # fmt: skip
    embeds = g.op("Gather", d.embeddings, for_rows(all_tokens))
    internal = len(tree.internal)
    g.output("tree_tokens", all_tokens, INT64, ["P", tree.size])
    g.output("embeds", embeds, g.dtype, ["R", tree.size, config.dim])
    g.output("log_q", laws, FLOAT, ["P", internal, config.vocab_size])
    g.output("features", features, g.dtype, ["R", "M", config.dim])
    g.output("present_key.0", cache[0], g.dtype, cache_shape)
    g.output("present_value.0", cache[1], g.dtype, cache_shape)


def visible_cache(d, cache, write_index, count_of_row, cache_mask) -> Committed:
    """Slots before write_index + count are what tree nodes see of the cache."""
    g = d.g
    length = g.reshape(g.op("Add", write_index, count_of_row), [-1, 1])
    seen = g.op("And", g.op("Less", g.constant(blocks.cache_positions(d.shape.slots), "slots"), length), cache_mask)
    bias = g.op("Where", seen, g.constant(np.float32(0)), g.constant(_NEVER))  # [R, S]
    return Committed(cache[0], cache[1], g.reshape(bias, [-1, 1, 1, d.shape.slots]))


def walk_tree(d, tree, state, root, root_position, committed, for_rows, noise, guidance, temperature):
    """Drafts level by level from the root's state [R, 1, D]; returns tokens [P, N] and log q [P, I, V]."""
    g = d.g
    nodes, tokens, laws = [0], [root], []
    order: list[int] = []  # nodes whose keys are held, in the order of the drafted keys
    drafted = None
    for level in range(tree.depth):
        with g.scope(f"level.{level}"):
            log_q = d.law(state, guidance, temperature)  # [P, n, V]
            laws.append(log_q)
            picked = pick_children(g, tree, nodes, log_q, noise, level)  # [P, children]
            tokens.append(picked)
            children = [child for node in nodes for child in tree.children[node]]
            inner = [child for child in children if tree.children[child]]
            if not inner:
                continue
            own = for_rows(g.op("Gather", picked, g.constant([children.index(n) for n in inner]), axis=1))
            parents = g.constant([nodes.index(tree.parents[n]) for n in inner])
            x = d.fused_input(own, g.op("Gather", state, parents, axis=1))
            order += inner
            ancestors = tree.ancestors[np.ix_(inner, order)]
            depth = g.constant(np.full((1, len(inner)), level + 1, np.int64), "depth")
            positions = g.op("Add", root_position, depth)  # [R, n]
            kept = []

            def attend(qkv, positions=positions, drafted=drafted, ancestors=ancestors, kept=kept):
                y, keys_values = tree_attention(d, qkv, positions, committed, drafted, ancestors)
                kept.append(keys_values)
                return y

            state = d.layer(x, attend)
            drafted, nodes = kept[0], inner
    laws_all = g.op("Concat", *laws, axis=1) if len(laws) > 1 else laws[0]
    return g.op("Concat", *tokens, axis=1), laws_all
