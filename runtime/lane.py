"""A lane: the buffers and bound calls that draw the images of a memory's slots with one tree, or without one.

Three kinds of calls share buffers, so nothing is copied between engines: the drafter writes the embeddings that the
target reads, and reads the hidden states that the target wrote. Calls run on the slots at the front; each number of
slots (`Backend.sizes`) is bound once. A slot is filled by calls of its own on views of the same memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np

from .backends import Backend, BoundCall, Buffer
from .bundle import Manifest
from .conditioner import Prefix
from .engines import Engines
from .noise import NoiseWindow
from .scratch import TARGET_SCRATCH, Scratch
from .slots import Memory, SlotBuffers
from .tree import AnyTree, DynamicTree, Tree

_SETTINGS = ("guidance", "temperature")
_SAMPLER = ("top_k", "top_p")
_TARGET_INPUTS = ("embeds", "positions", "write_index", "tree_mask", "cache_mask", "depths", *_SETTINGS, *_SAMPLER)
_TARGET_OUTPUTS = ("drawn", "logits", "ids", "states", "hidden", "similarity")
_DRAFT_INPUTS = ("path", "tokens", "count", *_SETTINGS)
_CHOSEN = ("parents", "sources", "depths", "ancestors")  # what the graph of a dynamic tree chooses


class Lane:
    """Everything bound for one layout: `rows` 2 (guidance) or 1, and a tree (None: plain decoding)."""

    def __init__(
        self, backend: Backend, engines: Engines, manifest: Manifest, memory: Memory, rows: int, tree: AnyTree | None
    ) -> None:  # fmt: skip
        self.manifest, self.memory, self.rows, self.tree = manifest, memory, rows, tree
        self._backend, self._engines = backend, engines
        self.plan, self.prefix_len = manifest.model.plan, manifest.model.condition.length
        self.engine_seconds = 0.0  # spent inside the engines of decoding rounds so far
        self._buffers = SlotBuffers(backend, memory.slots, rows)
        self._constants = self._index_slots()
        self._bound: dict[tuple[str, int], BoundCall] = {}
        self._sizes = backend.sizes(memory.slots)
        self._binders = {"target": self._bind_target, "embed": self._bind_embed, "draft": self._bind_draft}
        self._allocate_target()
        if tree is None:
            self.ids = self._buffers.add("ids_in", (1,), "int64", "in", by_row=True)
        else:
            self._allocate_draft(tree)

    def _index_slots(self) -> dict[str, Buffer]:
        """rows_of_prompt int64 [P, G] and prompt_of_row int64 [R] of slots from 0 on; a call's part starts there."""
        slots, rows = self.memory.slots, self.rows
        rows_of_prompt = self._backend.buffer((slots, rows), "int64", "in")
        rows_of_prompt.host[:] = np.arange(slots * rows).reshape(slots, rows)
        prompt_of_row = self._backend.buffer((slots * rows,), "int64", "in")
        prompt_of_row.host[:] = np.arange(slots * rows) // rows
        return {"rows_of_prompt": rows_of_prompt, "prompt_of_row": prompt_of_row}

    def _index(self, slots: int) -> dict[str, Buffer]:
        """The indices of a call on `slots` slots, by name."""
        rows_of_prompt, prompt_of_row = self._constants.values()
        return {
            "rows_of_prompt": rows_of_prompt.view(0, slots),
            "prompt_of_row": prompt_of_row.view(0, slots * self.rows),
        }

    # buffers ------------------------------------------------------------------------------------------------
    def _allocate_target(self) -> None:
        model, target, add = self.manifest.model, self.manifest.target, self._buffers.add
        nodes, levels = (1, 1) if self.tree is None else (self.tree.size, self.tree.depth + 1)
        engine, k = self._engines["target"], target.top_k
        self.guidance = add("guidance", (self.rows,), "float32", "in")  # [P, G]
        self.temperature = add("temperature", (), "float32", "in")
        self.top_k = add("top_k", (), "int64", "in")
        self.top_p = add("top_p", (), "float32", "in")
        self.noise = add("noise", (levels, model.vocab_size), "float32", "in")
        self.window = NoiseWindow(self.noise)
        self.forced = add("forced", (levels,), "int64", "in")
        add("embeds", (nodes, model.dim), engine.dtype("embeds"), "device", by_row=True)
        self.positions = add("positions", (nodes,), "int64", "in", by_row=True)
        self.write_index = add("write_index", (), "int64", "in", by_row=True)
        self.tree_mask = add("tree_mask", (nodes, target.window + 1), "bool", "in", by_row=True)
        self.cache_mask = add("cache_mask", (target.slots,), "bool", "in", by_row=True)
        self.depths = add("depths", (nodes,), "int64", "in" if self._is_static else "out")  # [P, N]
        self.drawn = add("drawn", (nodes,), "int64", "out")
        self.logits = add("logits", (nodes, k), "float32", "out")
        self.kept_ids = add("ids", (nodes, k), "int64", "out")
        self.states = add("states", (nodes, model.features), "float32", "out")
        add("hidden", (nodes, model.dim), engine.dtype("hidden"), "device", by_row=True)
        self.similarity = add("similarity", (nodes, nodes), "float32", "out")
        self.cache_mask[:] = True
        self.temperature[:] = self.top_p[:] = self.top_k[:] = 1
        if self.tree is None:
            self.tree_mask[:, :, 0] = True

    def _allocate_draft(self, tree: AnyTree) -> None:
        model, drafter, add = self.manifest.model, self.manifest.drafter, self._buffers.add
        assert drafter is not None  # a tree comes with its drafter
        pairs, slots = tree.depth + 1, self.memory.slots
        self.path = add("path", (pairs,), "int64", "in")
        self.pair_tokens = add("tokens", (pairs,), "int64", "in")
        self.count = add("count", (), "int64", "in")
        self.pair_positions = add("pair_positions", (pairs,), "int64", "in", by_row=True)
        self.pair_index = add("pair_index", (), "int64", "in", by_row=True)
        self.pair_mask = add("pair_mask", (drafter.slots,), "bool", "in", by_row=True)
        self.tree_tokens = add("tree_tokens", (tree.size,), "int64", "out")
        self.log_q = add("log_q", (tree.laws, model.vocab_size), "float32", "out")
        self.count[:], self.pair_mask[:] = 1, True
        self.pair_positions[:] = np.arange(pairs)
        self.trees: list[Tree] = [Tree(tree.name, (-1,))] * slots
        self.law_rows: list[dict[int, int]] = [{}] * slots
        if isinstance(tree, DynamicTree):
            self.parents = add("parents", (tree.size,), "int64", "out")
            self.sources = add("sources", (tree.size,), "int64", "out")
            self.ancestors = add("ancestors", (tree.size, tree.size), "bool", "out")
            return
        self.depths[:] = tree.depths
        self.tree_mask[:, :, : tree.size] = tree.ancestors
        self.trees = [tree] * slots
        self.law_rows = [{node: row for row, node in enumerate(tree.internal)}] * slots

    @property
    def _is_static(self) -> bool:
        return not isinstance(self.tree, DynamicTree)

    @cached_property
    def _chosen(self) -> tuple[str, ...]:
        return () if self._is_static else _CHOSEN

    @cached_property
    def _forced(self) -> tuple[str, ...]:
        return ("forced",) if self.plan.has_forced else ()

    # calls on the slots at the front ------------------------------------------------------------------------
    def run_target(self, slots: int, fetch: Sequence[str]) -> None:
        """The target on the nodes of the first `slots` slots."""
        self._run("target", slots, ("drawn", *fetch))

    def run_embed(self, slots: int) -> None:
        self._run("embed", slots, ())

    def run_draft(self, slots: int, fetch: Sequence[str]) -> None:
        """Catches up and drafts for the first `slots` slots."""
        self._run("draft", slots, ("tree_tokens", *self._chosen, *fetch))

    def _run(self, kind: str, slots: int, fetch: Sequence[str]) -> None:
        size = next(size for size in self._sizes if size >= slots)
        call = self._bound_for(kind, size, self._binders[kind])
        started = time.perf_counter()
        call.run(fetch)
        self.engine_seconds += time.perf_counter() - started

    def _bound_for(self, kind: str, number: int, bind: Callable[[int], BoundCall]) -> BoundCall:
        """The call of a kind on so many slots, or for this slot; bound once."""
        if (kind, number) not in self._bound:
            self._bound[kind, number] = bind(number)
        return self._bound[kind, number]

    def _bind_target(self, slots: int) -> BoundCall:
        inputs = self._buffers.part((*_TARGET_INPUTS, "noise", *self._forced), 0, slots)
        inputs["rows_of_prompt"] = self._index(slots)["rows_of_prompt"]
        past, present = self.memory.target.bindings(0, slots * self.rows)
        outputs = self._buffers.part(_TARGET_OUTPUTS, 0, slots)
        return self._engines["target"].bind({**inputs, **past}, {**outputs, **present})

    def _bind_embed(self, slots: int) -> BoundCall:
        given = self._buffers.part(("ids_in", "embeds"), 0, slots)
        return self._engines["embed"].bind({"ids": given["ids_in"]}, {"embeds": given["embeds"]})

    def _bind_draft(self, slots: int) -> BoundCall:
        given = self._buffers.part((*_DRAFT_INPUTS, "pair_positions", "pair_index", "pair_mask", "hidden"), 0, slots)
        inputs = {"positions": given.pop("pair_positions"), "write_index": given.pop("pair_index"),
                  "cache_mask": given.pop("pair_mask"), **given, **self._index(slots)}  # fmt: skip
        return self._bind_drafter(inputs, 0, slots)

    def _bind_drafter(self, inputs: Mapping[str, Buffer], start: int, stop: int) -> BoundCall:
        """The draft engine with its inputs of a call, its noise, outputs and cache being those of the slots."""
        assert self.tree is not None and self.memory.drafter is not None  # lanes without a tree draft nothing
        noise = self._buffers.part(("noise", *self._forced), start, stop)
        outputs = self._buffers.part(("tree_tokens", "log_q", "embeds", *self._chosen), start, stop)
        # The catch-up, then each level but the last, update the cache.
        past, present = self.memory.drafter.bindings(start * self.rows, stop * self.rows, self.tree.depth)
        engine = self._engines[self.manifest.tree(self.tree.name).engine]
        return engine.bind({**inputs, **noise, **past}, {**outputs, **present})

    # filling a slot -----------------------------------------------------------------------------------------
    def prefill(self, slot: int, prefix: Prefix, noise: np.ndarray) -> int:
        """Reads a prefix into a slot; returns the token drawn behind it (-1: not finite). noise is float32 [V].

        One causal chunk; padded slots see only themselves and are seen by nobody (LlamaGen's mask). Whatever image was
        in the slot, nothing of it stays: nobody has looked at the tree nodes that it did not take.
        """
        rows = self.rows_of(slot)
        self.memory.target.clear(rows.start, rows.stop)
        self.cache_mask[rows, : self.prefix_len] = prefix.mask
        self._scratch.load(prefix, noise, int(self.plan.forced[0]))
        self._bound_for("prefill", slot, self._bind_prefill).run(("drawn",))
        return int(self._scratch.drawn[0, -1])

    def first_draft(self, slot: int, token: int) -> None:
        """Reads the prefix, `token` behind it, into the drafter's cache, and drafts the slot's first tree."""
        drafter, rows = self.memory.drafter, self.rows_of(slot)
        assert drafter is not None and self.manifest.drafter is not None  # lanes without a tree draft nothing
        drafter.clear(rows.start, rows.stop)  # nobody watches whether a drafter's numbers are finite
        if not self.manifest.drafter.sees_padding:
            self.pair_mask[rows, : self.prefix_len] = self.cache_mask[rows, : self.prefix_len]
        self._scratch.tokens[0, -1] = token
        self._bound_for("first draft", slot, self._bind_first_draft).run(("tree_tokens", "log_q", *self._chosen))
        self.read_trees([slot])

    @cached_property
    def _scratch(self) -> Scratch:
        return Scratch(self._backend, self._engines, self.manifest, self.rows)

    def _bind_prefill(self, slot: int) -> BoundCall:
        inputs = self._scratch.part((*TARGET_SCRATCH, *self._forced))
        inputs |= self._buffers.part(("cache_mask", *_SETTINGS, *_SAMPLER), slot, slot + 1)
        inputs["rows_of_prompt"] = self._index(1)["rows_of_prompt"]
        past, present = self.memory.target.bindings(slot * self.rows, (slot + 1) * self.rows)
        outputs = self._scratch.part(("drawn", "hidden"))
        return self._engines["target"].bind({**inputs, **past}, {**outputs, **present})

    def _bind_first_draft(self, slot: int) -> BoundCall:
        inputs = self._scratch.part(("hidden", "path", "tokens", "count", "slots", "write_index"))
        inputs["positions"] = inputs.pop("slots")
        inputs |= self._buffers.part(_SETTINGS, slot, slot + 1)
        inputs["cache_mask"] = self._buffers.part(("pair_mask",), slot, slot + 1)["pair_mask"]
        return self._bind_drafter({**inputs, **self._index(1)}, slot, slot + 1)

    def rows_of(self, slot: int) -> slice:
        """The rows of a slot in every cache and buffer."""
        return slice(slot * self.rows, (slot + 1) * self.rows)

    def read_trees(self, slots: Sequence[int]) -> None:
        """Reads the trees that the graph has chosen for `slots`; static ones stay as they are."""
        if self._is_static:
            return
        for p in slots:
            parents = self.parents[p].tolist()
            self.trees[p] = Tree(self.trees[p].name, tuple(parents))
            self.law_rows[p] = dict(zip(parents[1:], self.sources[p, 1:].tolist(), strict=True))
            self.tree_mask[self.rows_of(p), :, : len(parents)] = self.ancestors[p]

    # slots as a whole ---------------------------------------------------------------------------------------
    def move(self, source: int, to: int, done: int) -> None:
        """Moves an image with `done` tokens from one slot to another."""
        rows, slots = self.rows_of(to), self.prefix_len + done
        caches = [self.memory.target]
        if self.tree is not None and self.memory.drafter is not None:
            caches.append(self.memory.drafter)
            self.trees[to], self.law_rows[to] = self.trees[source], self.law_rows[source]
        for cache in caches:
            cache.clear(rows.start, rows.stop)
            cache.copy_rows(source * self.rows, rows.start, self.rows, slots)
        self._buffers.move(source, to)
        self.window.move(source, to)
