"""Rounds of the real runtime with the kernels in the place of its host functions, on the buffers of its lanes.

A backend on a GPU would do the same: engines and kernels take turns on shared arrays, and the host reads records.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from kernels.cpu import Device

from cascade_trt.runtime import loop
from cascade_trt.runtime.backends.kernels.rules import SETTING, Rules, kind_of, setting_of
from cascade_trt.runtime.drafting import Eagle, Jacobi, Mixed, States
from cascade_trt.runtime.lane import Lane
from cascade_trt.runtime.rules.lantern import Neighbours
from cascade_trt.runtime.slots import Accepted, Sequences, TokenSequence, occupied
from cascade_trt.runtime.tree import Tree

IMAGES = ("seed", "stream", "rule", "end", "first", "done", "tokens", "guesses", "read")  # what lanes share


class LaneOnDevice:
    """The kernels' arrays of one lane: its buffers where it has them, `shared` those of the images."""

    def __init__(self, library: ctypes.CDLL, lane: Lane, shared: dict[str, np.ndarray] | None) -> None:
        self.lane = lane
        source, tree, plan = lane.source, lane.tree, lane.plan
        given = {
            "noise": lane.noise, "depths": lane.depths, "tree_tokens": source.tokens, "origins": source.origins,
            "positions": lane.positions, "write_index": lane.write_index, "drawn": lane.drawn,
            "pair_mask": lane.workspace.pair_mask.view(np.uint8), "plan_forced": plan.forced.astype(np.int32),
            "plan_above": plan.above.astype(np.int32), "plan_left": plan.left.astype(np.int32), **(shared or {}),
        }  # fmt: skip
        if plan.has_forced:
            given["forced"] = lane.forced
        if lane.second is not None:
            given["runner_up"] = lane.second
        if isinstance(source, Jacobi):
            given["embed_ids"] = source._ids
        if isinstance(source, Mixed):
            given["drafted_tokens"] = source.eagle.tokens
            given["drafted_nodes"] = np.array(tree.drafted_nodes, np.int32)
        if isinstance(tree, Tree):
            given["parents"] = np.array(tree.parents, np.int64)
            if tree.guessed:
                given["guessed"] = np.isin(np.arange(tree.size), tree.guessed).astype(np.int32)
            if tree.depth:
                given["continuations"] = tree.continuations.astype(np.int32)
        else:
            given["parents"] = source._parents
        optional = ("forced", "runner_up", "embed_ids", "drafted_tokens", "drafted_nodes", "guessed", "continuations")
        self.device = Device(
            library, tuple(name for name in optional if name not in given), given, slots=lane.memory.slots,
            rows=lane.rows, nodes=tree.size, levels=tree.depth + 1, vocab=lane.noise.shape[2], length=plan.length,
            prefix=lane.prefix_len, pair_slots=lane.workspace.pair_mask.shape[1],
            drafted=len(given.get("drafted_nodes", ())), tree_stride=0 if isinstance(tree, Tree) else tree.size,
        )  # fmt: skip
        self.drafts_on: Device | None = None  # a mixed tree's draft engine has levels of its own
        if isinstance(source, Mixed):
            images = {name: getattr(self.device, name) for name in (*IMAGES, "plan_forced")}
            part = images | {"noise": source._noise} | ({"forced": source._forced} if plan.has_forced else {})
            sizes = self.device.sizes | {"levels": source._levels}
            self.drafts_on = Device(library, tuple(name for name in optional if name not in part), part, **sizes)
        slots = lane.memory.slots
        self.scratch = np.zeros((2, slots, lane.logits.shape[2])), np.full((slots, lane.noise.shape[2]), -1, np.int32)

    def rules(self, settings: np.ndarray, neighbours: np.ndarray) -> Rules:
        lane, source, (pq, places) = self.lane, self.lane.source, self.scratch
        if isinstance(lane.tree, Tree):
            rows = np.zeros(lane.tree.size, np.int64)
            for node, row in source.q_rows[0].items():
                rows[list(lane.tree.children[node])] = row
        else:
            rows = source._sources
        self.kept = rows, lane.plan.row_starts.astype(np.uint8)
        most, distributions = lane.logits.shape[2], source.log_q.shape[1]
        addresses = [
            x.ctypes.data for x in (settings, self.kept[1], lane.logits, lane.kept_ids, source.log_q, rows,
                                    lane.similarity, neighbours, pq[0], pq[1], places)
        ]  # fmt: skip
        stride = 0 if isinstance(lane.tree, Tree) else lane.tree.size
        return Rules(most, distributions, neighbours.shape[1], stride, *addresses)


class KernelLoop:
    """Stands in for functions of `loop`."""

    def __init__(self, library: ctypes.CDLL, patch: pytest.MonkeyPatch) -> None:
        self._library, self._lanes, self._images = library, {}, None
        self._settings, self._neighbours = np.zeros(0, SETTING), np.zeros((1, 0), np.int32)
        self._prefill, self._emit, self._move = loop.prefill, loop.emit, Lane.move
        self.rounds = 0
        for name in ("prefill", "draft", "complete", "verify", "accept", "commit", "emit"):
            patch.setattr(loop, name, getattr(self, name))
        patch.setattr(Lane, "move", lambda lane, *where: self.move(lane, *where))

    def of(self, lane: Lane) -> LaneOnDevice:
        if lane not in self._lanes:
            made = self._lanes[lane] = LaneOnDevice(self._library, lane, self._images)
            self._images = {name: getattr(made.device, name) for name in IMAGES}
            if not len(self._settings):
                self._settings = np.zeros(lane.memory.slots, SETTING)
        return self._lanes[lane]

    def prefill(self, lane: Lane, slot: int, sequence: TokenSequence, prefix: Any) -> None:
        self._prefill(lane, slot, sequence, prefix)
        lane.window.clear(slot)  # the kernels write its rows from now on
        d, stream = self.of(lane).device, loop.stream_of(sequence)
        kind = kind_of(sequence.rule)
        assert kind is not None
        d.seed[slot], d.stream[slot], d.rule[slot] = sequence.seed, -1 if stream is None else stream, kind
        d.end[slot], d.done[slot], d.read[slot] = lane.plan.length, sequence.done, sequence.read
        d.first[lane.rows_of(slot)] = sequence.first
        d.tokens[slot], d.guesses[slot] = sequence.tokens, sequence.guesses
        if isinstance(sequence.rule, Neighbours):
            self._neighbours = np.ascontiguousarray(sequence.rule.table, np.int32)
        self._settings[slot] = setting_of(sequence.rule, sequence.sampling, lane.logits.shape[2])

    def draft(self, lane: Lane, sequences: Sequences, states: States) -> None:
        before = next(one for one in self._lanes.values() if one.lane._buffers is states.buffers).device
        now = self.of(lane)
        now.device.run("noise")
        source = lane.source
        if now.drafts_on is not None:
            now.drafts_on.run("noise")
            source = source.eagle
        if isinstance(source, Eagle):
            before.run("pairs")
            given = source._pairs_of(states.most)
            given.path[:], given.tokens[:], given.count[:] = before.path, before.path_tokens, before.count
            given.positions[:], given.write_index[:] = before.pair_positions, before.pair_write_index
            source._run(len(sequences), states.most, states, with_q="log_q" in loop.needs(sequences))
            source._read_trees({slot: None for slot, _ in occupied(sequences)})

    def complete(self, lane: Lane, sequences: Sequences) -> None:
        self.of(lane).device.run("place")
        if isinstance(lane.source, Jacobi):
            size = lane.workspace.size_for(len(sequences))
            lane.source._calls.setdefault(size, lane.source._bind(size)).run(())
        lane.take_masks(slot for slot, _ in occupied(sequences))

    def verify(self, lane: Lane, sequences: Sequences) -> None:
        names = [name for need in loop.needs(sequences) for name in loop._TARGET_OUTPUTS.get(need, ())]
        lane.run_target(len(sequences), names)

    def accept(self, lane: Lane, sequences: Sequences) -> dict[int, Accepted | None]:
        one = self.of(lane)
        d = one.device
        d.run("walk")
        d.run("walk_by_rule", 4, one.rules(self._settings, self._neighbours))
        found: dict[int, Accepted | None] = {}
        for slot, _ in occupied(sequences):
            start, count, flags, *rest = d.record[slot].tolist()
            assert not flags and count
            tokens, causes, origins = np.reshape(rest, (3, -1))[:, :count].tolist()
            found[slot] = Accepted(start, d.path[slot, :count].tolist(), tokens, causes, origins)
        self.rounds += 1
        return found

    def commit(self, lane: Lane, _sequences: Sequences, _accepted: object) -> None:
        self.of(lane).device.commit(lane.memory.target._block)

    def emit(self, lane: Lane, sequences: Sequences, accepted: dict[int, Accepted | None]) -> None:
        d = self.of(lane).device
        d.run("advance")
        self._emit(lane, sequences, accepted)  # the host's own account, for whoever draws or waits
        for slot, sequence in occupied(sequences):
            assert d.done[slot] == sequence.done
            sequence.guesses[:] = -7  # nobody reads the host's

    def move(self, lane: Lane, source: int, to: int, done: int) -> None:
        self._move(lane, source, to, done)
        for one in self._lanes.values():
            d = one.device
            for name in (*IMAGES, "path", "path_tokens", "count", "record"):
                rows = lane.rows_of(to), lane.rows_of(source)
                if name != "first":
                    getattr(d, name)[to] = getattr(d, name)[source]
                elif one.lane is lane:
                    d.first[rows[0]] = d.first[rows[1]]
        self._settings[to] = self._settings[source]
        self._images["end"][source] = 0  # type: ignore[index]
