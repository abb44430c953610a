"""From sequences that are drawn to finished images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from .decoder import Decoder
from .errors import CascadeError
from .job import Drawn, Job
from .rules.registry import PLAIN
from .slots import TokenSequence
from .stats import Stats


@dataclass(frozen=True)
class Decoding:
    """An image that is drawn; `image` waits for its pixels."""

    job: Job
    sequence: TokenSequence
    image: Callable[[], Image.Image]


class Finisher:
    """Decodes images whose slots are free again, and counts into `stats` what they cost. Where the decoder is late, the
    device decodes while the host begins the next round."""

    def __init__(self, decoder: Decoder, stats: Stats) -> None:
        self._decoder, self._stats = decoder, stats
        self.decoding: list[Decoding] = []

    def start(self, job: Job, sequence: TokenSequence) -> None:
        with self._stats.stage("decode"):
            self.decoding.append(Decoding(job, sequence, self._decoder.start(sequence.codes)))

    def hand_out(self) -> list[Job]:
        """Ends the jobs whose images are being decoded."""
        ended = []
        while self.decoding:
            done = self.decoding[0]
            try:
                outcome: Drawn | CascadeError = self._finished(done)
            except CascadeError as error:  # its pixels are not finite; the others go on
                outcome = error
            except Exception as error:  # no memory for them, say
                outcome = CascadeError(f"this image was drawn, but has no pixels ({error!r}): submit it again.")
            ended.append(done.job.end(outcome))
            self.decoding.pop(0)
            if isinstance(outcome, Drawn):  # last: after Ctrl-C in between it is handed out again, and counted once
                self._count(outcome, done.sequence)
        return ended

    def _finished(self, done: Decoding) -> Drawn:
        """The image, and what it cost."""
        job, sequence, made = done.job, done.sequence, self._stats
        codes, causes, origins = sequence.codes, sequence.code_causes, sequence.code_origins
        with made.stage("decode"):
            image = done.image()
        rule = PLAIN if sequence.rule is None else sequence.rule.name
        tree, why = (None, "plain decoding") if sequence.rule is None else (made.tree, made.why)
        stats = Stats(rule, tree, why, made.backend, made.backend_why)
        stats.images, stats.rounds, stats.target_calls = 1, sequence.rounds, sequence.rounds
        stats.tokens = sequence.plan.codes_of_rounds
        stats.total_seconds = job.progress.seconds
        stats.count(causes, origins, sequence.trees)
        return Drawn(image, codes, causes, origins, sequence.seed, stats, job.drawing.warnings)

    def _count(self, drawn: Drawn, sequence: TokenSequence) -> None:
        """Adds an image to what the batch has cost."""
        made = self._stats
        made.count(drawn.causes, drawn.origins, sequence.trees)
        made.images += 1
        made.rounds += drawn.stats.rounds
        made.tokens += drawn.stats.tokens
