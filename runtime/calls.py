"""Engine calls bound to their buffers.

Each call belongs to one shape (P prompts, R rows, N nodes) and owns its small inputs and its outputs; large
results are handed on by sharing memory: the drafter writes the embeddings that the target reads, and reads the
hidden states that the target wrote.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .backends import BoundCall, Engine
from .bundle import Manifest
from .cache import KVCache
from .noise import NoiseWindow
from .tree import AnyTree, DynamicTree, Tree


@dataclass(frozen=True)
class Layout:
    """P prompts on R rows: all conditional rows first, then (under guidance) the unconditional ones."""

    prompts: int
    guided: bool

    @property
    def rows(self) -> int:
        return 2 * self.prompts if self.guided else self.prompts

    def prompt_of_row(self) -> np.ndarray:
        """int64 [R]."""
        return np.arange(self.rows, dtype=np.int64) % self.prompts

    def rows_of(self, prompt: int) -> list[int]:
        return [prompt, self.prompts + prompt] if self.guided else [prompt]

    def guidance(self, scale: float) -> np.ndarray:
        """float32 [P, R] that mixes rows into u + scale * (c - u)."""
        eye = np.eye(self.prompts, dtype=np.float32)
        if not self.guided:
            return eye
        return np.concatenate([eye * np.float32(scale), eye * np.float32(1 - scale)], axis=1)


class TargetCall:
    """The target on N nodes a row: prefill (a causal chunk), plain decoding (N = 1) or a tree."""

    def __init__(
        self, engine: Engine, manifest: Manifest, cache: KVCache, layout: Layout, nodes: int,
        shared: Mapping[str, np.ndarray],
    ) -> None:  # fmt: skip
        model, target = manifest.model, manifest.target
        p, r, k = layout.prompts, layout.rows, target.top_k
        self.vocab_size = model.vocab_size
        dtype = engine.input_dtype("embeds")
        self.embeds = np.zeros((r, nodes, model.dim), dtype)
        self.positions = np.zeros((r, nodes), np.int64)
        self.write_index = np.zeros(r, np.int64)
        self.tree_mask = np.zeros((r, nodes, target.window + 1), bool)
        self.logits = np.zeros((p, nodes, k), np.float32)
        self.ids = np.zeros((p, nodes, k), np.int64)
        self.log_sum_exp = np.zeros((p, nodes), np.float32)
        self.hidden = np.zeros((r, nodes, model.dim), dtype)
        self.similarity = np.zeros((p, nodes, nodes), np.float32)
        past, present = cache.bindings(r)
        inputs = {name: getattr(self, name) for name in ("embeds", "positions", "write_index", "tree_mask")}
        outputs = {name: getattr(self, name) for name in ("logits", "ids", "log_sum_exp", "hidden", "similarity")}
        self.guidance = shared["guidance"]  # float32 [P, R]
        self.seconds = 0.0  # spent inside the engine so far
        self._call = engine.bind({**inputs, **shared, **past}, {**outputs, **present})

    def run(self) -> None:
        self.seconds += timed(self._call)


def timed(call: BoundCall) -> float:
    """Runs a call; returns its seconds."""
    start = time.perf_counter()
    call.run()
    return time.perf_counter() - start


class EmbedCall:
    """The `embed` engine, from ids int64 [R, N] to the target call's embeds [R, N, D]."""

    def __init__(self, engine: Engine, embeds: np.ndarray) -> None:
        self.ids = np.zeros(embeds.shape[:2], np.int64)
        self.seconds = 0.0  # spent inside the engine so far
        self._call = engine.bind({"ids": self.ids}, {"embeds": embeds})

    def run(self) -> None:
        self.seconds += timed(self._call)


class DraftBuffers:
    """What the drafter leaves for the rest of a round; shared by its first call and its steady one.

    `trees` holds each prompt's tree of this round, `depths` int64 [P, N] and `ancestors` bool [P, N, N] what
    verification needs of them, and `law_rows` says for nodes with children which row of log_q is theirs. They stay
    as they are with a static tree; `read_trees` reads those of a dynamic one after each call.
    """

    def __init__(self, manifest: Manifest, layout: Layout, tree: AnyTree, embeds: np.ndarray) -> None:
        p, vocab = layout.prompts, manifest.model.vocab_size
        self.dynamic = isinstance(tree, DynamicTree)
        self.cache_steps = tree.depth  # the catch-up, then each level but the last
        self.noise = np.zeros((p, tree.depth + 1, vocab), np.float32)
        self.window = NoiseWindow(self.noise)
        self.tree_tokens = np.zeros((p, tree.size), np.int64)
        self.log_q = np.zeros((p, tree.laws, vocab), np.float32)
        self.embeds = embeds  # [R, N, D], the target call's input
        self.parents = np.zeros((p, tree.size), np.int64)
        self.sources = np.zeros((p, tree.size), np.int64)  # the row of log_q that a node was drafted from
        self.depths = np.zeros((p, tree.size), np.int64)
        self.ancestors = np.tile(np.eye(tree.size, dtype=bool), (p, 1, 1))
        if isinstance(tree, DynamicTree):
            self.trees, self.law_rows = [Tree(tree.name, (-1,))] * p, [dict[int, int]()] * p
            return
        self.depths[:], self.ancestors[:] = tree.depths, tree.ancestors
        self.trees, self.law_rows = [tree] * p, [{node: row for row, node in enumerate(tree.internal)}] * p

    def outputs(self) -> dict[str, np.ndarray]:
        """Where the draft graph writes."""
        names = ("parents", "sources", "depths", "ancestors") if self.dynamic else ()
        return {name: getattr(self, name) for name in ("tree_tokens", "log_q", "embeds", *names)}

    def read_trees(self, prompts: Sequence[int]) -> None:
        """Reads the trees that the graph has chosen for `prompts`."""
        if not self.dynamic:
            return
        for p in prompts:
            parents = self.parents[p].tolist()
            self.trees[p] = Tree(self.trees[p].name, tuple(parents))
            self.law_rows[p] = dict(zip(parents[1:], self.sources[p, 1:].tolist(), strict=True))


class DraftCall:
    """The drafter on M new pairs a row, reading `hidden` [R, N', D] of the target's call before."""

    def __init__(
        self, engine: Engine, cache: KVCache, layout: Layout, pairs: int, hidden: np.ndarray,
        buffers: DraftBuffers, shared: Mapping[str, np.ndarray],
    ) -> None:  # fmt: skip
        p, r = layout.prompts, layout.rows
        self.path = np.zeros((p, pairs), np.int64)
        self.tokens = np.zeros((p, pairs), np.int64)
        self.count = np.ones(p, np.int64)
        self.positions = np.tile(np.arange(pairs, dtype=np.int64), (r, 1))
        self.write_index = np.zeros(r, np.int64)
        past, present = cache.bindings(r, buffers.cache_steps)
        inputs = {name: getattr(self, name) for name in ("path", "tokens", "count", "positions", "write_index")}
        self.seconds = 0.0  # spent inside the engine so far
        self._call = engine.bind(
            {"hidden": hidden, "noise": buffers.noise, **inputs, **shared, **past},
            {**buffers.outputs(), **present},
        )

    def place(self, start: np.ndarray) -> None:
        """Sets slots and positions of the pairs: they follow each other from start [R]."""
        self.write_index[:] = start
        self.positions[:] = start[:, None] + np.arange(self.positions.shape[1])

    def run(self) -> None:
        self.seconds += timed(self._call)
