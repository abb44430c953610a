"""Rounds on the device: engines and kernels take turns on one stream, and the host reads what was accepted.

| thing | owner | rule |
|---|---|---|
| length, tokens, guesses of an image | `advance` on the device | `TokenSequence` follows, at most one round behind |
| arrays of the images (`Images`) | kernels; the host fills a slot | an empty one has `end` 0, and is left alone |
| arrays of a tree (`OnDevice`) | kernels and engines | made once a lane |
| records under way | `DeviceRounds` | read in order; all of them before images change slots |

The next round is queued before the record of the one before has come, so the device never waits for the host. Only
where an image may end in a round its record is read at once: nothing is drawn behind the end. docs/kernels.md has the
order of the kernels and their arrays.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import loop
from .backends.kernels import Arrival, Kernels
from .backends.kernels.layout import NOT_FINITE, THREADS, Cache, Round, grid
from .backends.kernels.rules import EXACT, Rules, kind_of
from .conditioner import Prefix
from .device_arrays import Images, OnDevice
from .lane import Lane, Lanes
from .rounds import Walked
from .rules import Cause, Rule
from .rules.lantern import Neighbours
from .slots import Accepted, Sequences, TokenSequence, occupied
from .stats import Stats


@dataclass(frozen=True)
class Pending:
    """A round that is queued; `record` is on its way."""

    lane: Lane
    sequences: Sequences
    record: Arrival


class DeviceRounds:
    """Rounds of images whose rules are kernels; the lanes' workspace is `on_device`."""

    def __init__(self, lanes: Lanes, kernels: Kernels) -> None:
        self.lanes, self._kernels, self._workspace = lanes, kernels, lanes.workspace
        self._images = Images(lanes.workspace)
        self._made: dict[Lane, OnDevice] = {}
        self._pending: deque[Pending] = deque()
        cache = lanes.workspace.memory.target
        layers, _, rows, heads, slots, _ = cache.shape
        vector = cache.nbytes // (2 * layers * rows * heads * slots)
        self._cache = Cache.of(cache.address, layers, rows, heads, slots, vector)

    @property
    def under_way(self) -> bool:
        return bool(self._pending)

    def serves(self, rule: Rule | None) -> bool:
        return kind_of(rule) is not None and (not isinstance(rule, Neighbours) or self._images.has_table(rule.table))

    # a fresh image ------------------------------------------------------------------------------------------
    def fill(self, lane: Lane, slot: int, sequence: TokenSequence, prefix: Prefix) -> None:
        loop.read_prefix(lane, slot, sequence, prefix)
        if sequence.room:
            self._images.fill(slot, sequence)
            self._fill_noise(self._of(lane))
            lane.source.begin(slot, sequence)
            self._images.set_read(slot, sequence.read)

    # a round ------------------------------------------------------------------------------------------------
    def draft(self, lane: Lane, sequences: Sequences, before: Lane) -> None:
        self._images.keep(sequences)
        self._fill_noise(self._of(lane))
        if lane.tree.drafted is not None:
            self._launch("pairs", self._of(before).round)
            lane.source.queue(len(sequences), before.verified)

    def verify(self, lane: Lane, sequences: Sequences, stats: Stats) -> Sequence[Walked]:
        self._queue(lane, sequences, stats)
        known = self._read(1, stats)
        if any(sequence.room <= lane.tree.depth + 1 for _, sequence in occupied(sequences)):
            known += self._read(0, stats)
        return known

    def _queue(self, lane: Lane, sequences: Sequences, stats: Stats) -> None:
        self._images.keep(sequences)
        one, slots = self._of(lane), len(sequences)
        with stats.stage("verify"):
            self._launch("place", one.round)
            lane.source.embed(slots)
            lane.run_target(slots, ())
        with stats.stage("accept"):
            self._launch("walk", one.round)
            if any((kind_of(sequence.rule) or 0) > EXACT for _, sequence in occupied(sequences)):
                self._launch("walk_by_rule", one.round, one.rules())
        with stats.stage("commit"):
            self._launch("commit", one.round, self._cache)
        with stats.stage("emit"):
            self._launch("advance", one.round)
            self._pending.append(Pending(lane, sequences, self._kernels.bring(one.record)))

    def _fill_noise(self, one: OnDevice) -> None:
        """Of the lane's tree, and of the part that a draft engine has levels of its own for."""
        self._launch("noise", one.round)
        if one.drafts is not None:
            self._launch("noise", one.drafts)

    # its outcome --------------------------------------------------------------------------------------------
    def settle(self, stats: Stats) -> Sequence[Walked]:
        return self._read(0, stats)

    def _read(self, left: int, stats: Stats) -> list[Walked]:
        """Reads records until so many are under way."""
        known = []
        while len(self._pending) > left:
            started = time.perf_counter()
            with stats.stage("verify"):
                record = self._pending[0].record.wait()
            self._workspace.engine_seconds += time.perf_counter() - started
            with stats.stage("emit"):
                known.append(self._take(self._pending.popleft(), record))
        return known

    def _take(self, pending: Pending, record: np.ndarray) -> Walked:
        """What a round has accepted, written into the sequences. record int32 [P, W]."""
        accepted: dict[int, Accepted | None] = {}
        for slot, sequence in occupied(pending.sequences):
            start, count, flags, *rest = record[slot].tolist()
            if flags & NOT_FINITE:
                accepted[slot] = None
            elif count:  # an image that was not finite in the round before takes no part any more
                assert start == sequence.done
                tokens, causes, origins = np.reshape(rest, (3, -1))[:, :count].tolist()
                walked = accepted[slot] = Accepted(start, [], tokens, [Cause(cause) for cause in causes], origins)
                loop.take(sequence, pending.lane.tree.name, walked)
        return Walked(pending.lane.tree.name, pending.sequences, accepted)

    def forget(self) -> None:
        """Records under way say nothing any more; the images leave the device with the next round."""
        self._pending.clear()

    # slots as a whole ---------------------------------------------------------------------------------------
    def move(self, lane: Lane, source: int, to: int, sequence: TokenSequence) -> None:
        lane.move(source, to, sequence.done)
        self._of(lane).buffers.move(source, to)
        self._images.move(source, to)

    def _of(self, lane: Lane) -> OnDevice:
        if lane not in self._made:
            self._made[lane] = OnDevice(lane, self._images)
        return self._made[lane]

    def _launch(self, kernel: str, which: Round, *more: Rules | Cache) -> None:
        threads = THREADS[kernel]
        sizes = {"slots": which.slots, "rows": which.rows, "vocab": which.vocab, "levels": which.levels}
        cache = self._cache if self._cache in more else None
        self._kernels.launch(kernel, grid(kernel, sizes, threads, cache), threads, which, *more)
