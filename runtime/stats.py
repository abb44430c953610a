"""What a generation cost."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from .drafting import Origin
from .rules import Cause

ROUND = ("draft", "verify", "accept", "commit", "emit")  # the stages of one decoding round
STAGES = ("condition", "prefill", "draft", "verify", "accept", "commit", "emit", "decode")
_TABLES = ("seconds", "causes", "origins", "trees")
_COUNTS = ("images", "tokens", "rounds", "target_calls", "total_seconds", "engine_seconds")


@dataclass
class Stats:
    """Counts and seconds of one generation.

    `tau` is tokens per target call, the bonus token included (1 for plain decoding; prefill and its token not
    counted), averaged over the prompts' rounds. `seconds` holds wall time per stage: condition, prefill, verify,
    draft and decode run engines, accept, commit and emit are host work. `engine_seconds` is the part of the
    decoding rounds that was spent inside engines; the rest of them is the host's. `causes` counts tokens by how
    they came (rules.Cause), `origins` by who said them first (drafting.Origin). `tree` is what was asked for: "auto"
    chooses anew for each round, so `trees` counts rounds of images by their trees ("none": plain decoding), and `why`
    is the reason for the newest choice. `backend` is what the engines ran on, `backend_why` the reason for it.
    """

    rule: str
    tree: str | None
    why: str = ""
    backend: str = ""
    backend_why: str = ""
    images: int = 0
    tokens: int = 0
    rounds: int = 0
    target_calls: int = 0
    total_seconds: float = 0.0
    engine_seconds: float = 0.0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    causes: dict[str, int] = field(default_factory=lambda: {cause.name.lower(): 0 for cause in Cause if cause >= 0})
    origins: dict[str, int] = field(default_factory=lambda: {origin.name.lower(): 0 for origin in Origin})
    trees: dict[str, int] = field(default_factory=dict)

    @property
    def tau(self) -> float:
        return self.tokens / self.rounds if self.rounds else 0.0

    @property
    def images_per_second(self) -> float:
        return self.images / self.total_seconds if self.total_seconds else 0.0

    def of(self, stages: Iterable[str]) -> float:
        """Seconds of these stages together."""
        return sum(self.seconds[stage] for stage in stages)

    @property
    def host_share(self) -> float:
        """Share of the decoding rounds that is not spent inside engines."""
        rounds = self.of(ROUND)
        return 1 - self.engine_seconds / rounds if rounds else 0.0

    @property
    def relaxed_share(self) -> float:
        """Share of the tokens that only a relaxation let pass."""
        relaxed = sum(self.causes[cause.name.lower()] for cause in Cause if cause.relaxed)
        return relaxed / max(1, sum(self.causes.values()))

    def count(self, causes: np.ndarray, origins: np.ndarray, trees: Mapping[str, int]) -> None:
        """Counts how the tokens of an image came, causes and origins int8 [rows * columns], and its rounds by tree."""
        for cause, count in enumerate(np.bincount(causes).tolist()):
            self.causes[Cause(cause).name.lower()] += count
        for origin, count in enumerate(np.bincount(origins).tolist()):
            self.origins[Origin(origin).name.lower()] += count
        _add(self.trees, trees)

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
        return replace(self, **{name: dict(getattr(self, name)) for name in _TABLES})

    def since(self, before: Stats) -> Stats:
        """The counts and seconds that were added to a copy `before`."""
        found = self.copy()
        for name in _COUNTS:
            setattr(found, name, getattr(self, name) - getattr(before, name))
        for name in _TABLES:
            earlier = getattr(before, name)
            setattr(found, name, {key: count - earlier.get(key, 0) for key, count in getattr(self, name).items()})
        return found

    def add(self, other: Stats) -> None:
        """Adds the counts and seconds of another generation with the same settings."""
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in _TABLES:
            _add(getattr(self, name), getattr(other, name))
        self.why = other.why or self.why


def _add(counts: dict[str, Any], more: Mapping[str, Any]) -> None:
    for name, count in more.items():
        counts[name] = counts.get(name, 0) + count
