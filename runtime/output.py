"""What a drawing gives back, whole or broken off."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from .errors import CascadeError
from .job import Drawn
from .stats import Stats


@dataclass
class Output:
    """What `generate` returns.

    `images` are PIL images in the order of the prompts, `codes` int32 [P, rows * columns] their tokens, `seeds` the
    seed of each, `warnings` sentences such as a prompt that was cut, `causes` int8 [P, rows * columns] how each token
    came (rules.Cause), `origins` int8 [P, rows * columns] who said it first (drafting.Origin), `rounds` int64 [P] the
    target calls that each took (prefill not counted). `places` says which of the requested images these are.
    """

    images: list[Image.Image]
    codes: np.ndarray
    causes: np.ndarray
    origins: np.ndarray
    rounds: np.ndarray
    stats: Stats
    seeds: list[int]
    places: list[int]
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, drawn: Mapping[int, Drawn], stats: Stats, image_tokens: int) -> Output:
        """The finished images by their places, in that order."""
        places = sorted(drawn)
        images = [drawn[place] for place in places]
        shape = (len(images), image_tokens)
        return cls(
            [one.image for one in images],
            np.array([one.codes for one in images], np.int32).reshape(shape),
            np.array([one.causes for one in images], np.int8).reshape(shape),
            np.array([one.origins for one in images], np.int8).reshape(shape),
            np.array([one.stats.rounds for one in images], np.int64),
            stats,
            [one.seed for one in images],
            places,
            [warning for one in images for warning in one.warnings],
        )


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while `generate` drew. `output` holds the images that were finished."""

    def __init__(self, output: Output) -> None:
        super().__init__("interrupted")
        self.output = output


class UnfinishedError(CascadeError):
    """An image had to be given up (its timeout, or numbers out of range). `output` holds those that were finished."""

    def __init__(self, reason: str, output: Output) -> None:
        super().__init__(reason)
        self.output = output
