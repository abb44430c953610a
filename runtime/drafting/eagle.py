"""`eagle`: the draft engine reads what the target accepted, then drafts, in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..backends import BoundCall, Buffer
from ..slots import Sequences, SlotBuffers, TokenSequence, occupied
from ..tree import AnyTree, DynamicTree, Tree
from ..workspace import SETTINGS, Workspace, bound_for
from .base import Origin, States
from .pairs import Pairs

_CHOSEN = ("parents", "sources", "depths", "ancestors")  # what the graph of a dynamic tree chooses


class Eagle:
    """Drafts whole trees. `buffers` hold `noise`, `forced` and `embeds` of its tree."""

    def __init__(self, workspace: Workspace, tree: AnyTree, buffers: SlotBuffers) -> None:
        self.workspace, self.tree = workspace, tree
        manifest, slots = workspace.manifest, workspace.memory.slots
        engine = manifest.engine_for(tree)
        assert engine is not None  # the caller has a tree that is drafted
        self._engine, self._buffers = engine, buffers
        self.tokens = buffers.add("tree_tokens", (tree.size,), "int64", "out")
        self.origins = workspace.array(buffers, "origins", (tree.size,), "int8", Origin.EAGLE)
        self.log_q = buffers.add("log_q", (tree.distributions, manifest.model.vocab_size), "float32", "out")
        self._pairs: dict[int, Pairs] = {}
        self._calls: dict[tuple[int, SlotBuffers, SlotBuffers], BoundCall] = {}  # by slots, pairs, states
        self._first_calls: dict[int, BoundCall] = {}
        self._chosen: tuple[str, ...] = ()
        if isinstance(tree, DynamicTree):
            self._chosen = _CHOSEN
            self.trees = [Tree(tree.name, (-1,))] * slots
            self.q_rows: list[dict[int, int]] = [{}] * slots
            self._parents = buffers.add("parents", (tree.size,), "int64", "out")
            self._sources = buffers.add("sources", (tree.size,), "int64", "out")
            buffers.add("ancestors", (tree.size, tree.size), "bool", "out")
        else:
            self.trees = [tree] * slots
            self.q_rows = [{node: row for row, node in enumerate(tree.internal)}] * slots

    # a round ------------------------------------------------------------------------------------------------
    def draft(self, sequences: Sequences, states: States, with_q: bool) -> None:
        newest = {slot: sequence for slot, sequence in occupied(sequences) if sequence.newest is not None}
        most = max((len(s.newest.tokens) for s in newest.values() if s.newest is not None), default=1)
        pairs = next(size for size in self.workspace.backend.sizes(states.most) if size >= most)
        given = self._pairs_of(pairs)
        given.path[:] = 0  # a slot without an image must not name a node that these states do not have
        for slot, sequence in newest.items():
            self._load(given, slot, sequence)
        self._run(len(sequences), given, states, with_q)
        self._read_trees(newest)

    def queue(self, slots: int, states: States) -> None:
        """The call for the first `slots` slots, where kernels have written what it reads: nothing comes back."""
        assert states.pairs is not None  # its lane is on the device
        self._run(slots, states.pairs, states, with_q=False)

    def _pairs_of(self, pairs: int) -> Pairs:
        if pairs not in self._pairs:
            self._pairs[pairs] = Pairs.allocate(self.workspace, pairs)
        return self._pairs[pairs]

    def _load(self, given: Pairs, slot: int, sequence: TokenSequence) -> None:
        """What was accepted of an image in the round before."""
        walked, workspace = sequence.newest, self.workspace
        assert walked is not None  # the caller's choice
        count = len(walked.tokens)
        given.path[slot], given.tokens[slot] = walked.path[-1], walked.tokens[-1]
        given.path[slot, :count], given.tokens[slot, :count] = walked.path[:count], walked.tokens
        given.count[slot] = count
        start, rows = workspace.prefix_len + walked.start - 1, workspace.rows_of(slot)
        given.write_index[rows] = start
        given.positions[rows] = start + np.arange(given.positions.shape[1])
        if sequence.read < start:  # other lanes have drawn since: what they drew is not in the cache
            workspace.pair_mask[rows, sequence.read : start] = False
        sequence.read = start + count

    def run(self, slots: int, pairs: int, states: States) -> None:
        """The engine on whatever is in the buffers, for those who measure it."""
        self._run(slots, states.pairs or self._pairs_of(pairs), states, with_q=False)

    def _run(self, slots: int, given: Pairs, states: States, with_q: bool) -> None:
        def bind(_: tuple[int, SlotBuffers, SlotBuffers]) -> BoundCall:
            return self._bind(given, size, states)

        size = self.workspace.size_for(slots)
        call = bound_for(self._calls, (size, given.buffers, states.buffers), bind)
        self.workspace.run(call, self._fetched(with_q))

    def _fetched(self, with_q: bool) -> tuple[str, ...]:
        """What the host reads of a call."""
        if self.workspace.on_device:
            return ()
        return "tree_tokens", *self._chosen, *(("log_q",) if with_q else ())

    def _bind(self, given: Pairs, slots: int, states: States) -> BoundCall:
        inputs = given.bindings(slots) | states.buffers.part(("hidden",), 0, slots)
        inputs |= self.workspace.part(SETTINGS, 0, slots)
        inputs["cache_mask"] = self.workspace.part(("pair_mask",), 0, slots)["pair_mask"]
        return self._bind_engine(inputs, 0, slots)

    def _bind_engine(self, inputs: Mapping[str, Buffer], start: int, stop: int) -> BoundCall:
        """The engine with what a call reads of its own; noise, outputs and cache are those of the slots."""
        workspace, count = self.workspace, stop - start
        assert workspace.memory.drafter is not None  # there is a draft engine
        shared = self._buffers.part(("noise", *workspace.forced), start, stop)
        shared |= {"rows_of_prompt": workspace.rows_of_prompt(count), "prompt_of_row": workspace.prompt_of_row(count)}
        outputs = self._buffers.part(("tree_tokens", "log_q", "embeds", *self._chosen), start, stop)
        rows = workspace.rows
        # The catch-up, then each level but the last, update the cache.
        past, present = workspace.memory.drafter.bindings(start * rows, stop * rows, self.tree.depth)
        return workspace.engines[self._engine].bind({**inputs, **shared, **past}, {**outputs, **present})

    def _read_trees(self, slots: Sequence[int] | Mapping[int, object]) -> None:
        """Reads the trees that the graph has chosen for `slots`; static ones stay as they are."""
        if not self._chosen or self.workspace.on_device:
            return
        for p in slots:
            parents = self._parents[p].tolist()
            self.trees[p] = Tree(self.tree.name, tuple(parents))
            self.q_rows[p] = dict(zip(parents[1:], self._sources[p, 1:].tolist(), strict=True))

    def complete(self, sequences: Sequences) -> None:
        """Nothing: the engine leaves tokens and embeddings."""

    def embed(self, slots: int) -> None:
        """Nothing, as above."""

    # a fresh image ------------------------------------------------------------------------------------------
    def begin(self, slot: int, sequence: TokenSequence) -> None:
        """Reads the prefix, the sequence's first token behind it, and drafts."""
        workspace = self.workspace
        workspace.scratch.tokens[0, -1] = sequence.tokens[0]
        call = bound_for(self._first_calls, slot, self._bind_first)
        call.run(self._fetched(with_q=True))
        sequence.read = workspace.prefix_len
        self._read_trees([slot])

    def _bind_first(self, slot: int) -> BoundCall:
        workspace = self.workspace
        inputs = workspace.scratch.part(("hidden", "path", "tokens", "count", "slots", "write_index"))
        inputs["positions"] = inputs.pop("slots")
        inputs |= workspace.part(SETTINGS, slot, slot + 1)
        inputs["cache_mask"] = workspace.part(("pair_mask",), slot, slot + 1)["pair_mask"]
        return self._bind_engine(inputs, slot, slot + 1)
