"""A lane: everything bound to draw one batch of P prompts with one tree, or without one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import loop
from .backends import Engine
from .bundle import Manifest
from .cache import KVCache
from .calls import DraftBuffers, DraftCall, EmbedCall, Layout, TargetCall
from .rules import Rule
from .sampling import Sampling
from .stats import Stats
from .tree import AnyTree

Progress = Callable[[loop.State], None]


@dataclass(frozen=True)
class Engines:
    """The loaded engines of a bundle; `draft` holds one for each tree."""

    target: Engine
    embed: Engine
    draft: dict[str, Engine]


class Lane:
    """Buffers and bound calls for one layout; made once, then used for every batch of that shape."""

    def __init__(
        self, manifest: Manifest, engines: Engines, cache: KVCache, drafter_cache: KVCache | None,
        layout: Layout, tree: AnyTree | None,
    ) -> None:  # fmt: skip
        self.manifest, self.layout, self.tree = manifest, layout, tree
        self._cache, model = cache, manifest.model
        p, r = layout.prompts, layout.rows
        self._guidance = np.zeros((p, r), np.float32)
        self._temperature = np.ones(p, np.float32)
        self._cache_mask = np.ones((r, manifest.target.slots), bool)
        mixing = {"guidance": self._guidance, "temperature": self._temperature}
        shared = {**mixing, "cache_mask": self._cache_mask}
        self.prefill = TargetCall(engines.target, manifest, cache, layout, model.prefix_len, shared)
        self.prefill.positions[:] = np.arange(model.prefix_len)
        nodes = 1 if tree is None else tree.size
        self.step = TargetCall(engines.target, manifest, cache, layout, nodes, shared)
        if tree is None:
            self.step.tree_mask[:, :, :nodes] = True
            self._embed = EmbedCall(engines.embed, self.step.embeds)
            return
        assert manifest.drafter is not None and drafter_cache is not None  # a tree comes with its drafter
        self.buffers = DraftBuffers(manifest, layout, tree, self.step.embeds)
        self.step.tree_mask[:, :, :nodes] = self.buffers.ancestors[layout.prompt_of_row()]
        every_slot = np.ones((r, manifest.drafter.slots), bool)
        shared = {**mixing, "cache_mask": every_slot, "prompt_of_row": layout.prompt_of_row()}
        engine = engines.draft[tree.name]
        self._first_draft = DraftCall(
            engine, drafter_cache, layout, model.prefix_len, self.prefill.hidden, self.buffers, shared
        )
        self._first_draft.path[:] = np.arange(model.prefix_len)
        self._draft = DraftCall(
            engine, drafter_cache, layout, tree.depth + 1, self.step.hidden, self.buffers, shared
        )

    def run(
        self, prefix: np.ndarray, prefix_mask: np.ndarray, state: loop.State, rule: Rule | None,
        sampling: Sampling, stats: Stats, progress: Progress,
    ) -> None:  # fmt: skip
        """Draws the batch: prefix [R, T, D] and its mask bool [R, T] in, `state.codes` out."""
        self._guidance[:] = self.layout.guidance(sampling.guidance_scale)
        self._temperature[:] = sampling.engine_temperature
        with stats.stage("prefill"):
            self._run_prefill(prefix, prefix_mask)
            loop.sample_next(self.prefill, state, sampling)
        progress(state)
        before = self._engine_seconds()
        if rule is None or self.tree is None:
            self._plain(state, sampling, stats, progress)
        else:
            self._speculative(state, rule, sampling, stats, progress)
        stats.engine_seconds += self._engine_seconds() - before
        stats.rounds += int(state.rounds.sum())
        stats.tokens += int((state.done - 1).sum())
        stats.target_calls += state.target_calls

    def _engine_seconds(self) -> float:
        """Seconds spent inside the engines of decoding rounds since the lane was made."""
        calls = [self._embed] if self.tree is None else [self._first_draft, self._draft]
        return self.step.seconds + sum(call.seconds for call in calls)

    def _run_prefill(self, prefix: np.ndarray, prefix_mask: np.ndarray) -> None:
        """One causal chunk; padded slots see only themselves and are seen by nobody (LlamaGen's mask)."""
        length = self.manifest.model.prefix_len
        self._cache_mask[:, :length] = prefix_mask
        causal = np.tri(length, dtype=bool) & prefix_mask[:, None, :]
        self.prefill.tree_mask[:, :, :length] = causal | np.eye(length, dtype=bool)
        self.prefill.embeds[:] = prefix
        self.prefill.run()

    def _plain(self, state: loop.State, sampling: Sampling, stats: Stats, progress: Progress) -> None:
        while state.unfinished:
            with stats.stage("verify"):
                loop.decode_one(self.step, self._embed, state, self.layout, self.manifest.model.prefix_len)
            with stats.stage("accept"):
                loop.sample_next(self.step, state, sampling)
            progress(state)

    def _speculative(
        self, state: loop.State, rule: Rule, sampling: Sampling, stats: Stats, progress: Progress
    ) -> None:
        length = self.manifest.model.prefix_len
        call = self._first_draft
        call.tokens[:, -1] = state.codes[:, 0]
        call.count[:] = length
        while state.unfinished:
            with stats.stage("draft"):
                loop.draft(call, self.buffers, state, rule, sampling)
            with stats.stage("verify"):
                loop.verify(self.step, self.buffers, state, self.layout, length)
            with stats.stage("accept"):
                accepted = loop.accept(self.step, self.buffers, state, rule, sampling)
            with stats.stage("commit"):
                loop.commit(self._cache, state, accepted, self.layout, length)
            with stats.stage("emit"):
                call = self._draft
                loop.emit(state, accepted, call, self.layout, length)
                progress(state)
