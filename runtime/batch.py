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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from . import loop
from .conditioner import Conditioner
from .decoder import Decoder
from .errors import CascadeError
from .lane import Lane
from .options import DrawOptions
from .request import Drawing, Request
from .rules.registry import PLAIN
from .slots import TokenSequence
from .stats import Stats

_CANCELLED = "the image was cancelled."
_NOT_FINITE = (
    "this image left the range of the engines' numbers and was given up: check its features and settings, or build the "
    "bundle with --precision bf16 or fp32."
)


Failed = dict[int, CascadeError]  # slots whose images cannot go on, and why


class CancelledError(CascadeError):
    """The job was cancelled before its image was done."""


class TimedOutError(CascadeError):
    """The job's timeout passed before its image was done."""


@dataclass(frozen=True)
class Progress:
    """How far an image is: `tokens` of `total` in its sequence, `seconds` since it got its slot (0 while it waits).

    `remaining` is the seconds that are left at the pace so far; None before there is a pace.
    """

    tokens: int
    total: int
    seconds: float
    remaining: float | None


@dataclass(frozen=True)
class Drawn:
    """A finished image: codes int32 and causes int8 [rows * columns] (rules.Cause), its seed, what it cost."""

    image: Image.Image
    codes: np.ndarray
    causes: np.ndarray
    seed: int
    stats: Stats
    warnings: tuple[str, ...]


class Job:
    """One image that was asked for. Made by `Batch.submit`; any thread may ask it or cancel it."""

    def __init__(self, batch: Batch, drawing: Drawing) -> None:
        self.drawing = drawing
        self._batch = batch
        self._deadline = None if drawing.timeout is None else time.monotonic() + drawing.timeout
        self._sequence: TokenSequence | None = None
        self._started: float | None = None
        self._ended: float | None = None
        self._cancelled = False
        self._outcome: Drawn | CascadeError | None = None

    @property
    def done(self) -> bool:
        """Whether the image is finished, cancelled or given up."""
        return self._outcome is not None

    @property
    def failed(self) -> bool:
        """Whether it ended without an image; `result` raises the reason."""
        return self.reason is not None

    @property
    def reason(self) -> CascadeError | None:
        """Why it ended without an image."""
        return self._outcome if isinstance(self._outcome, CascadeError) else None

    @property
    def progress(self) -> Progress:
        total = self._batch.lane.plan.length
        if self._sequence is None or self._started is None:
            return Progress(0, total, 0.0, None)
        done = self._sequence.done
        seconds = (self._ended or time.perf_counter()) - self._started
        pace = seconds / done if done else None
        return Progress(done, total, seconds, None if pace is None else (total - done) * pace)

    def cancel(self) -> None:
        """Gives the image up; its slot is free from the next step on. Without effect once the job is done.

        A signal handler may call it, too; of a job's and a batch's methods only this one and `progress`.
        """
        self._cancelled = True
        self._batch.drop_queued(self)

    def preview(self) -> Image.Image:
        """The image from the codes so far; what is not drawn yet is grey."""
        if isinstance(self._outcome, Drawn):
            return self._outcome.image
        return self._batch.preview(self._sequence)

    def result(self) -> Drawn:
        """Steps the batch until the image is done, and returns it.

        Raises CancelledError, TimedOutError, or CascadeError when the image had to be given up.
        """
        while not self.done:
            if self._batch.idle:
                raise CascadeError("this job is no longer in its batch: submit it again.")
            self._batch.step()
        if self.reason is not None:
            raise self.reason
        assert isinstance(self._outcome, Drawn)
        return self._outcome

    # for the batch ------------------------------------------------------------------------------------------
    def due(self) -> CascadeError | None:
        """Why the job must end now, if it must."""
        if self._cancelled:
            return CancelledError(_CANCELLED)
        if self._deadline is not None and time.monotonic() > self._deadline:
            return TimedOutError(f"the image was not done within its timeout of {self.drawing.timeout:g} s.")
        return None

    def start(self, sequence: TokenSequence) -> None:
        self._sequence, self._started = sequence, time.perf_counter()

    def end(self, outcome: Drawn | CascadeError) -> Job:
        if self._outcome is None:
            self._outcome, self._ended = outcome, time.perf_counter()
        return self


@dataclass
class Entry:
    """A job in a slot; its sequence begins when the slot is filled."""

    job: Job
    sequence: TokenSequence | None = None


class Batch:
    """`slots` images at a time, any number of jobs; all share the lane's tree and guidance layout.

    `step` may be called by one thread at a time; `submit` and `Job.cancel` by any.
    """

    def __init__(
        self, lane: Lane, conditioner: Conditioner, decoder: Decoder, check: Callable[[Request], Drawing],
        defaults: DrawOptions,
    ) -> None:  # fmt: skip
        self.lane, self.defaults = lane, defaults
        self.stats = Stats("mixed", None if lane.tree is None else lane.tree.name)
        self._conditioner, self._decoder, self._check = conditioner, decoder, check
        self._queue: deque[Job] = deque()
        self._slots: list[Entry | None] = []
        self._turn = threading.Lock()  # held by the thread that steps
        self._queued = threading.Lock()  # held while the queue is looked at or changed

    @property
    def slots(self) -> int:
        """How many images are drawn at the same time at most."""
        return self.lane.memory.slots

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
        """Queues a checked drawing. Raises CascadeError when it needs another batch."""
        lane = self.lane
        tree = None if lane.tree is None else lane.tree.name
        if drawing.rule is not None and drawing.tree != tree:
            raise CascadeError(
                f"this batch draws {'without a tree' if tree is None else f'with the tree {tree}'}, the image needs "
                f"{drawing.tree}: make a batch for that tree."
            )
        if drawing.sampling.guidance_scale != 1 and lane.rows == 1:
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
                ended = self._drop_due()
                self._seat()
                if self._slots:
                    self._round(ended)
                return ended
            except BaseException as error:
                self._give_up(error)
                raise

    @contextmanager
    def _timed(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.stats.total_seconds += time.perf_counter() - started

    def _give_up(self, error: BaseException) -> None:
        """Ends the images in slots: a round that broke off leaves them in no state to go on from."""
        reason = CascadeError(f"the round broke off before this image was done ({error!r}): submit it again.")
        for entry in self._slots:
            if entry is not None:
                entry.job.end(reason)
        self._slots.clear()

    @property
    def idle(self) -> bool:
        """Whether nothing is left to do."""
        return not self._queue and not self.busy

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
            self._drop_due()

    def drop_queued(self, job: Job) -> None:
        """Takes a cancelled job out of the queue, if it is still there; where the queue is in use, the next step will.

        It does not wait: a signal handler would wait for the very thread that it has interrupted.
        """
        if not self._queued.acquire(blocking=False):
            return
        try:
            if job in self._queue:
                self._queue.remove(job)
                job.end(CancelledError(_CANCELLED))
        finally:
            self._queued.release()

    def preview(self, sequence: TokenSequence | None) -> Image.Image:
        """The image of a sequence so far."""
        codes = np.zeros(self.lane.plan.image_tokens, np.int32)
        with self._turn:
            if sequence is None:
                return self._decoder.preview(codes, 0)
            return self._decoder.preview(sequence.codes, sequence.drawn)

    # one step -----------------------------------------------------------------------------------------------
    def _drop_due(self) -> list[Job]:
        """Ends jobs that were cancelled or are out of time, in slots and in the queue."""
        with self._queued:
            ended = [job.end(reason) for job in self._queue if (reason := job.due()) is not None]
            for job in ended:
                self._queue.remove(job)
        for slot, entry in enumerate(self._slots):
            if entry is not None and (reason := entry.job.due()) is not None:
                ended.append(entry.job.end(reason))
                self._slots[slot] = None
        return ended

    def _seat(self) -> None:
        """Gives free slots to queued jobs; with an empty queue closes holes with the last slot's image."""
        slots = self._slots
        with self._queued:
            while self._queue and (None in slots or len(slots) < self.slots):
                entry = Entry(self._queue[0])  # it leaves the queue when it is seated: Ctrl-C in between loses no job
                if not entry.job.done:
                    if None in slots:
                        slots[slots.index(None)] = entry
                    else:
                        slots.append(entry)
                self._queue.popleft()
        while None in slots:
            hole, entry = slots.index(None), slots[-1]
            if entry is not None:
                if entry.sequence is not None:
                    self.lane.move(len(slots) - 1, hole, entry.sequence.done)
                slots[hole] = entry
            slots.pop()

    def _round(self, ended: list[Job]) -> None:
        """Draft, fill fresh slots, verify, accept, commit, emit; then images that are done leave."""
        lane, stats = self.lane, self.stats
        before = lane.engine_seconds
        drafted = self._sequences()
        while drafted and drafted[-1] is None:
            drafted.pop()
        if lane.tree is not None and drafted:
            with stats.stage("draft"):
                loop.draft(lane, drafted)
        self._end_failed(self._fill(), ended)
        sequences = [None if s is None or not s.room else s for s in self._sequences()]
        if any(s is not None for s in sequences):
            failed = self._plain(sequences) if lane.tree is None else self._speculative(sequences)
            self._end_failed(failed, ended)
            stats.target_calls += 1
        stats.engine_seconds += lane.engine_seconds - before
        for slot, entry in enumerate(self._slots):
            if entry is not None and entry.sequence is not None and not entry.sequence.room:
                ended.append(entry.job.end(self._finished(entry.job, entry.sequence)))
                self._slots[slot] = None

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
        failed: Failed = {}
        for slot, entry in enumerate(self._slots):
            if entry is None or entry.sequence is not None:
                continue
            drawing, lane = entry.job.drawing, self.lane
            try:
                with self.stats.stage("condition"):
                    prefix = self._conditioner.prefix(drawing.conditioning, lane.rows)
                entry.sequence = TokenSequence(drawing.seed, drawing.sampling, drawing.rule, lane.plan, prefix.first)
                entry.job.start(entry.sequence)
                with self.stats.stage("prefill"):
                    loop.prefill(lane, slot, entry.sequence, prefix)
            except loop.NotFiniteError:
                failed[slot] = CascadeError(_NOT_FINITE)
            except CascadeError as error:
                failed[slot] = error
        return failed

    def _plain(self, sequences: loop.Sequences) -> Failed:
        with self.stats.stage("verify"):
            loop.decode_one(self.lane, sequences)
        with self.stats.stage("accept"):
            return {slot: CascadeError(_NOT_FINITE) for slot in loop.take_drawn(self.lane, sequences)}

    def _speculative(self, sequences: loop.Sequences) -> Failed:
        lane, stats = self.lane, self.stats
        with stats.stage("verify"):
            loop.verify(lane, sequences)
        with stats.stage("accept"):
            accepted = loop.accept(lane, sequences)
        with stats.stage("commit"):
            loop.commit(lane, sequences, accepted)
        with stats.stage("emit"):
            loop.emit(lane, sequences, accepted)
        return {slot: CascadeError(_NOT_FINITE) for slot, walked in accepted.items() if walked is None}

    def _finished(self, job: Job, sequence: TokenSequence) -> Drawn:
        """The image, and what it cost."""
        codes, causes = sequence.codes, sequence.code_causes
        with self.stats.stage("decode"):
            image = self._decoder.image(codes)
        rule = PLAIN if sequence.rule is None else sequence.rule.name
        stats = Stats(rule, self.stats.tree if sequence.rule is not None else None)
        stats.images, stats.rounds, stats.target_calls = 1, sequence.rounds, sequence.rounds
        stats.tokens = sequence.plan.codes_of_rounds
        stats.total_seconds = job.progress.seconds
        stats.count_causes(causes)
        self.stats.images += 1
        self.stats.rounds += stats.rounds
        self.stats.tokens += stats.tokens
        self.stats.count_causes(causes)
        return Drawn(image, codes, causes, sequence.seed, stats, job.drawing.warnings)
