"""One `generate` or `stream` of a pipeline: its images through a batch, until all are done."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from .batch import Batch
from .errors import CascadeError
from .job import Drawn, Job
from .request import Drawing
from .schema import short
from .stats import Stats

Callback = Callable[[int, int], None]


class Run:
    """Draws `drawings` in the batch that `batch` makes, which counts into `stats`, while the pipeline is this run's
    alone: in `exclusive`. `goes_on` is called where the caller has come back for more. Raises CascadeError for a
    callback that does not take (done, total)."""

    def __init__(
        self, drawings: list[Drawing], callback: Callback | None, stats: Stats, batch: Callable[[], Batch],
        exclusive: Callable[[], AbstractContextManager[None]], goes_on: Callable[[], None],
    ) -> None:  # fmt: skip
        if callback is not None and not _takes_two(callback):
            raise CascadeError(f"callback must be a function of (done, total), not {short(callback)}.")
        self._drawings, self._callback, self.stats = drawings, callback, stats
        self._batch, self._exclusive, self._goes_on = batch, exclusive, goes_on
        self._jobs: dict[Job, int] = {}

    @property
    def started(self) -> bool:
        """Whether its images are in a batch."""
        return bool(self._jobs)

    def finished(self) -> dict[int, Drawn]:
        """All images that are done, by their places."""
        return {place: job.result() for job, place in self._jobs.items() if job.done and not job.failed}

    def rounds(self) -> Iterator[dict[int, Drawn]]:
        """Finished images by their places, as they are done: those of each round in which any was."""
        with self._exclusive():
            batch = self._batch()
            jobs = self._jobs = {batch.enqueue(drawing): place for place, drawing in enumerate(self._drawings)}
            handed: set[int] = set()
            tokens = 0  # of the jobs that have ended

            def fresh() -> dict[int, Drawn]:
                """Those that were not handed out yet."""
                return {place: drawn for place, drawn in self.finished().items() if place not in handed}

            try:
                while not batch.idle:
                    ended = batch.step()
                    tokens += sum(job.progress.tokens for job in ended)
                    if self._callback is not None:
                        self._callback(tokens + batch.tokens, len(jobs) * batch.length)
                    if ended and (images := fresh()):
                        yield images
                        self._goes_on()
                        handed.update(images)
            except KeyboardInterrupt:
                if images := fresh():  # done in the very round that was interrupted
                    yield images
                raise
            finally:
                batch.drain()
            failed = [(place, job) for job, place in jobs.items() if job.failed]
            if failed:
                numbers = ", ".join(str(place + 1) for place, _ in failed)
                raise CascadeError(f"{failed[0][1].reason} Not finished: {numbers} of {len(jobs)}.")


def _takes_two(callback: object) -> bool:
    """Whether it can be called with (done, total), as far as it says."""
    if not callable(callback):
        return False
    try:
        inspect.signature(callback).bind(0, 0)
    except TypeError:
        return False
    except ValueError:  # some functions written in C say nothing
        return True
    return True
