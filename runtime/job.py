"""Jobs: images that were asked for, from the request to the finished image."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from .conditioner import Prefix
from .errors import CascadeError
from .request import Drawing
from .slots import TokenSequence
from .stats import Stats

if TYPE_CHECKING:
    from .batch import Batch

CANCELLED = "the image was cancelled."


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
    """A finished image: codes int32, causes int8 (rules.Cause) and origins int8 (drafting.Origin), [rows * columns]
    each, its seed, what it cost."""

    image: Image.Image
    codes: np.ndarray
    causes: np.ndarray
    origins: np.ndarray
    seed: int
    stats: Stats
    warnings: tuple[str, ...]


class Job:
    """One image that was asked for. Made by `Batch.submit`; any thread may ask it or cancel it."""

    def __init__(self, batch: Batch, drawing: Drawing) -> None:
        self.drawing = drawing
        self._batch = batch
        self._deadline = None if drawing.timeout is None else time.monotonic() + drawing.timeout
        self.prefix: Callable[[], Prefix] | None = None  # waits for it, where it was begun before there was a slot
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
        total = self._batch.length
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
            return CancelledError(CANCELLED)
        if self._deadline is not None and time.monotonic() > self._deadline:
            return TimedOutError(f"the image was not done within its timeout of {self.drawing.timeout:g} s.")
        return None

    def start(self, sequence: TokenSequence) -> None:
        self._sequence, self._started = sequence, time.perf_counter()

    def end(self, outcome: Drawn | CascadeError) -> Job:
        if self._outcome is None:
            self._outcome, self._ended = outcome, time.perf_counter()
        return self
