"""What a generation cost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from .rules import Cause

ROUND = ("draft", "verify", "accept", "commit", "emit")  # the stages of one decoding round
STAGES = ("condition", "prefill", "draft", "verify", "accept", "commit", "emit", "decode")
_COUNTS = ("images", "tokens", "rounds", "target_calls", "total_seconds", "engine_seconds")


@dataclass
class Stats:
    """Counts and seconds of one generation.

    `tau` is tokens per target call, the bonus token included (1 for plain decoding; prefill and its token not
    counted), averaged over the prompts' rounds. `seconds` holds wall time per stage: condition, prefill, verify,
    draft and decode run engines, accept, commit and emit are host work. `engine_seconds` is the part of the
    decoding rounds that was spent inside engines; the rest of them is the host's. `causes` counts tokens by how
    they came (rules.Cause).
    """

    rule: str
    tree: str | None
    images: int = 0
    tokens: int = 0
    rounds: int = 0
    target_calls: int = 0
    total_seconds: float = 0.0
    engine_seconds: float = 0.0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    causes: dict[str, int] = field(default_factory=lambda: {cause.name.lower(): 0 for cause in Cause if cause >= 0})

    @property
    def tau(self) -> float:
        return self.tokens / self.rounds if self.rounds else 0.0

    @property
    def images_per_second(self) -> float:
        return self.images / self.total_seconds if self.total_seconds else 0.0

    @property
    def host_share(self) -> float:
        """Share of the decoding rounds that is not spent inside engines."""
        rounds = sum(self.seconds[stage] for stage in ROUND)
        return 1 - self.engine_seconds / rounds if rounds else 0.0

    @property
    def relaxed_share(self) -> float:
        """Share of the tokens that only a relaxation let pass."""
        relaxed = sum(self.causes[cause.name.lower()] for cause in Cause if cause.relaxed)
        return relaxed / max(1, sum(self.causes.values()))

    def count_causes(self, causes: np.ndarray) -> None:
        """Counts how tokens came, causes int8 [P, rows * columns]."""
        for cause, count in enumerate(np.bincount(causes.ravel()).tolist()):
            self.causes[Cause(cause).name.lower()] += count

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {
            "tau": self.tau,
            "images_per_second": self.images_per_second,
            "host_share": self.host_share,
            "relaxed_share": self.relaxed_share,
        }

    def copy(self) -> Stats:
        return replace(self, seconds=dict(self.seconds), causes=dict(self.causes))

    def since(self, before: Stats) -> Stats:
        """The counts and seconds that were added to a copy `before`."""
        found = self.copy()
        for name in _COUNTS:
            setattr(found, name, getattr(self, name) - getattr(before, name))
        found.seconds = {name: seconds - before.seconds[name] for name, seconds in self.seconds.items()}
        found.causes = {name: count - before.causes[name] for name, count in self.causes.items()}
        return found

    def add(self, other: Stats) -> None:
        """Adds the counts and seconds of another generation with the same settings."""
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name, seconds in other.seconds.items():
            self.seconds[name] += seconds
        for name, count in other.causes.items():
            self.causes[name] += count
