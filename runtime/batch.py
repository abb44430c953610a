"""Slots in continuous use: images join when a slot is free, and leave when they are done.

| thing | owner | rule |
|---|---|---|
| queue | `Batch` | first come, first served; a queued job costs nothing |
| slot | one job at a time | jobs lie at the front: a hole is refilled, or closed by the last slot's image |
| image | its request and seed | never its neighbours, the batch's size or the order of arrival |

One `step` is one round for all images in slots: drop what was cancelled, fill free slots, draft, verify, accept.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from PIL import Image

from . import loop
from .chooser import Chooser
from .conditioner import Conditioner, Prefix
from .decoder import Decoder
from .errors import CascadeError
from .finisher import Finisher
from .job import CANCELLED, CancelledError, Job
from .lane import Lane
from .options import DrawOptions
from .request import Drawing, Request
from .rounds import Rounds, Walked
from .rules.exact import Exact
from .slots import TokenSequence
from .stats import ROUND, Stats
from .workspace import Workspace

_NOT_FINITE = (
    "this image left the range of the engines' numbers and was given up: check its features and settings, or build the "
    "bundle with --precision bf16 or fp32."
)


_SETTLED = 3  # rounds of a tree after which the processor's caches hold what it needs

Failed = dict[int, CascadeError]  # slots whose images cannot go on, and why


@dataclass
class Entry:
    """A job in a slot; its sequence begins when the slot is filled."""

    job: Job
    sequence: TokenSequence | None = None


class Batch:
    """`slots` images at a time, any number of jobs; all are drawn with one tree, which `chooser` may change between
    rounds, and with one guidance layout. An image that is bound to another tree than those in slots waits for them, and
    so does one that needs other `rounds`: the first of them that serve an image's rule draw it.

    `step` may be called by one thread at a time; `submit` and `Job.cancel` by any.
    """

    def __init__(
        self, rounds: Sequence[Rounds], chooser: Chooser, conditioner: Conditioner, decoder: Decoder,
        check: Callable[[Request], Drawing], defaults: DrawOptions, stats: Stats,
    ) -> None:  # fmt: skip
        self.defaults, self.stats = defaults, stats
        self._kinds, self._rounds, self._chooser = rounds, rounds[0], chooser
        self.lane = self._rounds.lanes[chooser.first]  # of the newest target call
        self._conditioner, self._decoder, self._check = conditioner, decoder, check
        self._finisher = Finisher(decoder, stats)
        self._queue: deque[Job] = deque()
        self._slots: list[Entry | None] = []
        self._alike = 0  # rounds in a row before this one that had its tree
        self._turn = threading.Lock()  # held by the thread that steps
        self._queued = threading.Lock()  # held while the queue is looked at or changed

    @property
    def _workspace(self) -> Workspace:
        return self._rounds.lanes.workspace

    @property
    def slots(self) -> int:
        """How many images are drawn at the same time at most."""
        return self._workspace.memory.slots

    @property
    def length(self) -> int:
        """Tokens in the sequence of an image."""
        return self._workspace.plan.length

    @property
    def busy(self) -> int:
        """Images in slots."""
        return sum(slot is not None for slot in self._slots)

    @property
    def tokens(self) -> int:
        """Tokens so far of the images in slots."""
        return sum(entry.sequence.done for entry in self._slots if entry is not None and entry.sequence is not None)

    @property
    def waiting(self) -> int:
        """Jobs that wait for a slot."""
        return len(self._queue)

    def submit(self, request: Request | str) -> Job:
        """Queues one image, a text being its prompt; options that the request leaves open are the batch's.

        Raises CascadeError for a request that the bundle or this batch cannot serve.
        """
        request = Request(request) if isinstance(request, str) else request
        if not isinstance(request, Request) or not isinstance(request.options, DrawOptions):
            raise CascadeError("submit takes a text or a Request, whose options are DrawOptions.")
        return self.enqueue(self._check(replace(request, options=request.options.over(self.defaults))))

    def enqueue(self, drawing: Drawing) -> Job:
        """Queues a checked drawing. Raises CascadeError when it needs another batch, or the pipeline is closed."""
        self._workspace.engines.check_open()
        if drawing.rule is not None and not self._chooser.serves(drawing.rule, drawing.tree):
            asked = self._chooser.asked
            raise CascadeError(
                f"this batch draws {'without a tree' if asked is None else f'with the tree {asked}'}, the image needs "
                f"{drawing.tree}: make a batch for that tree."
            )
        if drawing.sampling.guidance_scale != 1 and self._workspace.rows == 1:
            raise CascadeError("this batch was made without guidance: set guidance_scale=1, or make another batch.")
        job = Job(self, drawing)
        with self._queued:
            self._queue.append(job)
        return job

    def step(self) -> list[Job]:
        """One round for every image in a slot; returns the jobs that ended in it, in the order of their slots.

        An exception inside a round (Ctrl-C above all) gives up the images in slots; the queue stays.
        """
        with self._turn, self._timed():
            try:
                ended: list[Job] = []
                self._drop_due(ended)
                self._seat()
                if self._slots:
                    before = self.lane
                    self._choose()
                    self._alike = self._alike + 1 if before is self.lane else 0
                    self._round(before, ended)
                if not self.busy:
                    ended += self._finisher.hand_out()
                return ended
            except BaseException as error:
                self._give_up(error)
                raise

    @contextmanager
    def _timed(self) -> Iterator[None]:
        started, engines = time.perf_counter(), self._engine_seconds
        try:
            yield
        finally:
            self.stats.total_seconds += time.perf_counter() - started
            self.stats.engine_seconds += self._engine_seconds - engines

    @property
    def _engine_seconds(self) -> float:
        return sum(rounds.lanes.workspace.engine_seconds for rounds in self._kinds)

    def _give_up(self, error: BaseException) -> None:
        """Ends the images in slots: a round that broke off leaves them in no state to go on from. What is drawn, and
        only waits for its pixels, is handed out."""
        reason = CascadeError(f"the round broke off before this image was done ({error!r}): submit it again.")
        broken = [entry for entry in self._slots if entry is not None]
        self._slots.clear()
        self._rounds.forget()
        decoded = {decoding.job for decoding in self._finisher.decoding}
        for entry in broken:
            if entry.job not in decoded:
                entry.job.end(reason)
        self._finisher.hand_out()

    @property
    def idle(self) -> bool:
        """Whether nothing is left to do."""
        return not self._queue and not self.busy and not self._finisher.decoding

    def drain(self) -> None:
        """Cancels everything; the slots are free afterwards."""
        with self._queued:
            waiting = list(self._queue)
        for job in waiting:
            job.cancel()
        with self._turn:
            for entry in self._slots:
                if entry is not None:
                    entry.job.cancel()
            self._drop_due([])
            self._finisher.hand_out()

    def drop_queued(self, job: Job) -> None:
        """Takes a cancelled job out of the queue, if it is still there; where the queue is in use, the next step will.

        It does not wait: a signal handler would wait for the very thread that it has interrupted.
        """
        if not self._queued.acquire(blocking=False):
            return
        try:
            if job in self._queue:
                self._queue.remove(job)
                job.end(CancelledError(CANCELLED))
        finally:
            self._queued.release()

    def preview(self, sequence: TokenSequence | None) -> Image.Image:
        """The image of a sequence so far."""
        codes = np.zeros(self._workspace.plan.image_tokens, np.int32)
        with self._turn:
            if sequence is None:
                return self._decoder.preview(codes, 0)
            return self._decoder.preview(sequence.codes, sequence.drawn)

    # one step -----------------------------------------------------------------------------------------------
    def _drop_due(self, ended: list[Job]) -> None:
        """Ends jobs that were cancelled or are out of time, in slots and in the queue. Where images may change slots,
        first reads what is known of the rounds that are under way: so who is due is asked once."""
        with self._queued:
            gone = [job.end(reason) for job in self._queue if (reason := job.due()) is not None]
            for job in gone:
                self._queue.remove(job)
        ended += gone
        due = {slot: (entry, reason) for slot, entry in enumerate(self._slots)
               if entry is not None and (reason := entry.job.due()) is not None}  # fmt: skip
        if due or None in self._slots or (self._queue and len(self._slots) < self.slots):
            self._take(self._rounds.settle(self.stats), None, ended)
            self._finish(ended)
        for slot, (entry, reason) in due.items():
            if self._slots[slot] is entry:  # it was not finished just now
                ended.append(entry.job.end(reason))
                self._slots[slot] = None

    def _seat(self) -> None:
        """Gives free slots to queued jobs; with an empty queue closes holes with the last slot's image."""
        slots = self._slots
        with self._queued:
            while self._queue and (None in slots or len(slots) < self.slots):
                entry = Entry(self._queue[0])  # it leaves the queue when it is seated: Ctrl-C in between loses no job
                if not entry.job.done:
                    if not self._suits(entry.job.drawing):
                        break  # it waits for its turn, and those behind it with it
                    self._rounds = self._rounds_for(entry.job.drawing)
                    if None in slots:
                        slots[slots.index(None)] = entry
                    else:
                        slots.append(entry)
                self._queue.popleft()
        while None in slots:
            hole, entry = slots.index(None), slots[-1]
            if entry is not None:
                if entry.sequence is not None:
                    self._rounds.move(self.lane, len(slots) - 1, hole, entry.sequence)
                slots[hole] = entry
            slots.pop()

    def _suits(self, drawing: Drawing) -> bool:
        """Whether an image can be drawn beside those in slots: a round has one tree, and is of one kind."""
        others = [entry.job.drawing for entry in self._slots if entry is not None]
        if others and self._rounds_for(drawing) is not self._rounds:
            return False
        return drawing.bound is None or {other.bound for other in others} <= {None, drawing.bound}

    def _rounds_for(self, drawing: Drawing) -> Rounds:
        return next(rounds for rounds in self._kinds if rounds.serves(drawing.rule))

    def _choose(self) -> None:
        """Takes the tree that suits the images in slots."""
        drawings = [entry.job.drawing for entry in self._slots if entry is not None]
        choice = self._chooser.choose(drawings, self.lane.tree.name)
        self.lane, self.stats.why = self._rounds.lanes[choice.tree], choice.why

    def _round(self, before: Lane, ended: list[Job]) -> None:
        """Draft, fill fresh slots, verify, accept, commit, emit; then images that are done leave.

        `before` is the lane of the newest target call, which may have verified another tree.
        """
        stats = self.stats
        steady, started = self._alike >= _SETTLED and None not in self._sequences(), stats.of(ROUND)
        drafted = self._sequences()
        while drafted and drafted[-1] is None:
            drafted.pop()
        if drafted:
            with stats.stage("draft"):
                self._rounds.draft(self.lane, drafted, before)
        self._end_failed(self._fill(), ended)
        sequences = [None if s is None or not s.room else s for s in self._sequences()]
        if any(s is not None for s in sequences):
            known = self._rounds.verify(self.lane, sequences, stats)
            self._take(known, 1e3 * (stats.of(ROUND) - started) if steady and len(known) == 1 else None, ended)
        ended += self._finisher.hand_out()  # of the round before: the device has the next one to do meanwhile
        self._finish(ended)
        self._look_ahead()

    def _take(self, known: Sequence[Walked], milliseconds: float | None, ended: list[Job]) -> None:
        """What is known of rounds: images that are not finite leave, the chooser hears of the others."""
        for walked in known:
            self.stats.target_calls += 1
            self._observe(walked, milliseconds)
            failed = {slot: CascadeError(_NOT_FINITE) for slot, found in walked.accepted.items() if found is None}
            self._end_failed(failed, ended)

    def _finish(self, ended: list[Job]) -> None:
        """Images that are done leave their slots, and are decoded."""
        for slot, entry in enumerate(self._slots):
            if entry is not None and entry.sequence is not None and not entry.sequence.room:
                self._finisher.start(entry.job, entry.sequence)
                self._slots[slot] = None
                if not self._decoder.is_late:
                    ended += self._finisher.hand_out()

    def _look_ahead(self) -> None:
        """Begins to condition the next image while the device has a round to do: no slot will wait for that. One in
        each step, for as many images as could get slots at once."""
        with self._queued:
            ahead = islice(self._queue if self._rounds.under_way else (), self.slots)
            job = next((job for job in ahead if job.prefix is None), None)
        if job is not None:
            job.prefix = self._begin(job.drawing)

    def _begin(self, drawing: Drawing) -> Callable[[], Prefix]:
        """Begins with a prefix; what is returned waits for it, and raises CascadeError where there is none."""
        try:
            with self.stats.stage("condition"):
                return self._conditioner.start(drawing.conditioning, self._workspace.rows)
        except CascadeError as error:
            reason = error  # it belongs to the image, which will be told when it gets its slot

        def fail() -> Prefix:
            raise reason

        return fail

    def _observe(self, walked: Walked, milliseconds: float | None) -> None:
        """Tells the chooser what `exact` has accepted, and what the round took, where it was like the next one; walks
        that the sequence's end has cut say too little."""
        sequences, accepted = walked.sequences, walked.accepted
        counts = [
            len(found.tokens) for slot, found in accepted.items()
            if found is not None and (s := sequences[slot]) is not None and isinstance(s.rule, Exact) and s.room
        ]  # fmt: skip
        if counts:
            steady = milliseconds if len(accepted) == len(sequences) else None
            self._chooser.observe(walked.tree, sum(counts), len(counts), len(accepted), steady)

    def _end_failed(self, failed: Failed, ended: list[Job]) -> None:
        """Takes images that cannot go on out of their slots."""
        for slot, error in failed.items():
            entry = self._slots[slot]
            assert entry is not None  # it was drawn in this round
            ended.append(entry.job.end(error))
            self._slots[slot] = None

    def _sequences(self) -> list[TokenSequence | None]:
        return [None if entry is None else entry.sequence for entry in self._slots]

    def _fill(self) -> Failed:
        """Prefills the slots of fresh jobs; returns those that could not be."""
        fresh = {slot: entry for slot, entry in enumerate(self._slots) if entry is not None and entry.sequence is None}
        failed: Failed = {}
        if self._conditioner.is_late:  # all of them first: while one is prefilled, the device conditions the next
            for entry in fresh.values():
                entry.job.prefix = entry.job.prefix or self._begin(entry.job.drawing)
        for slot, entry in fresh.items():
            drawing, plan = entry.job.drawing, self._workspace.plan
            begun, entry.job.prefix = entry.job.prefix or self._begin(drawing), None
            try:
                with self.stats.stage("condition"):
                    prefix = begun()
                entry.sequence = TokenSequence(drawing.seed, drawing.sampling, drawing.rule, plan, prefix.first)
                entry.job.start(entry.sequence)
                with self.stats.stage("prefill"):
                    self._rounds.fill(self.lane, slot, entry.sequence, prefix)
            except loop.NotFiniteError:
                failed[slot] = CascadeError(_NOT_FINITE)
            except CascadeError as error:
                failed[slot] = error
        return failed
