"""How much longer rounds take than their costs say: because of the machine just now, or of what is drawn with."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_NOW = 1 / 16  # what a round says of the machine just now: other work comes and goes
_FAR = math.log(2)  # a round of more surprise than this was hit by something of its own
_MOST = 200  # rounds of a choice that are remembered


class Drift:
    """Logarithms of (milliseconds that a round took / milliseconds that were expected), choice by choice.

    Each is a sum: what the machine does to all choices just now, which may change within a second, and what is the
    choice's own, which changes slowly. Only rounds of different choices side by side tell one from the other.
    """

    def __init__(self, doubts: Sequence[float]) -> None:
        """`doubts`: how many rounds each expectation weighs against those seen."""
        self._doubts = np.array(doubts)
        self._own, self._seen, self._now = np.zeros(len(doubts)), np.zeros(len(doubts)), 0.0

    def see(self, choice: int, ratio: float) -> None:
        """Learns that a round of a choice took `ratio` times what was expected."""
        surprise = min(max(math.log(ratio) - self._now - self._own[choice], -_FAR), _FAR)
        self._seen[choice] = min(self._seen[choice] + 1, _MOST)
        self._now += _NOW * surprise
        self._own[choice] += surprise / (self._doubts[choice] + self._seen[choice])

    def factors(self) -> np.ndarray:
        """float64, in the order of the choices: what to multiply expectations by."""
        return np.exp(self._now + self._own)
