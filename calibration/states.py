"""Learns the table of states (`runtime/rules/states.py`) from the target's own drawings."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil

import numpy as np

from ..runtime.errors import CascadeError
from ..runtime.rules import LOGITS, STATES, Decision, Draws, Node
from ..runtime.rules.states import StateTable
from .watch import Watching

_ENOUGH = 3  # a token seen less often stands for nothing: one state says more of its place than of its token
_COVERED = 0.8  # share of the target's draws that the tokens of a table make up at least
_MOST_IMAGES = 1 << 20


@dataclass
class StateSums:
    """`total` float64 [V, D] and `count` int64 [V] of the states behind each token; `used` int64 [V]: how often the
    target itself drew it."""

    total: np.ndarray
    count: np.ndarray
    used: np.ndarray

    @classmethod
    def empty(cls, vocab_size: int, dim: int) -> StateSums:
        return cls(np.zeros((vocab_size, dim)), *np.zeros((2, vocab_size), np.int64))

    def add(self, tokens: np.ndarray, states: np.ndarray) -> None:
        """tokens int64 [n], states [n, D]."""
        np.add.at(self.total, tokens, states)
        np.add.at(self.count, tokens, 1)

    def draw(self, tokens: np.ndarray) -> None:
        """Counts tokens int64 [n] as drawn by the target."""
        np.add.at(self.used, tokens, 1)

    def covered(self, times: float = 1.0) -> float:
        """Share of the target's draws whose token has a row in the table; expected, after `times` as many images.

        Shares of tokens are those of the table, which takes each token as drawn once more than it was.
        """
        if times == 1:
            rows = (self.count >= _ENOUGH).astype(float)
        else:  # places of a token taken as Poisson distributed
            mean = times * (self.count + 0.5)
            rows = 1 - np.exp(-mean) * (1 + mean + mean**2 / 2)
        return float(self._usage() @ rows)

    def images_needed(self, images: int) -> int:
        """Images that about make a table of which `check_covered` approves, where so many made this one."""
        times = 1.25
        while self.covered(times) < _COVERED and times * images < _MOST_IMAGES:
            times *= 1.25
        return ceil(times * images)

    def check_covered(self, images: int) -> None:
        """Raises CascadeError when the table would miss too much of what the target draws."""
        if (covered := self.covered()) < _COVERED:
            raise CascadeError(
                f"the states of {images} image{'s' * (images != 1)} are too few for a table: they cover "
                f"{covered:.0%} of what the target draws, not {_COVERED:.0%}; nothing was written, draw about "
                f"{self.images_needed(images)} images (--num-images)."
            )

    def _usage(self) -> np.ndarray:
        """Share of each token [V], as if each had been drawn once more: none is impossible."""
        return (self.used + 1) / (self.used + 1).sum()

    def table(self) -> StateTable:
        """Raises CascadeError when no token was seen often enough."""
        seen = self.count >= _ENOUGH
        if not seen.any():
            raise CascadeError("no token was seen often enough for a table of states: draw more images.")
        mean = self.total.sum(0) / self.count.sum()
        effect = np.where(seen[:, None], self.total / np.maximum(self.count, 1)[:, None] - mean, 0.0)
        rows = effect / np.maximum(np.linalg.norm(effect, axis=1, keepdims=True), 1e-12)
        return StateTable(rows.astype(np.float16), self._usage().astype(np.float32))


@dataclass(frozen=True)
class Reach:
    """What a table rests on: `tokens` that have a row, and the `draws` of the target that it counted."""

    tokens: int
    draws: int

    @classmethod
    def of(cls, table: StateTable) -> Reach:
        """As the table itself tells: shares of tokens are whole numbers, draws + 1, of the same sum, draws + V.

        Where no small number of draws explains the shares, the rarest token is taken as never drawn: at least so many.
        """
        shares = np.sort(table.usage.astype(np.float64))
        for least in range(1, 100):  # of the rarest token
            parts = shares[:64] * (least / shares[0])
            if np.abs(parts - parts.round()).max() < 0.01:
                break
        else:
            least = 1
        rows = int((table.rows != 0).any(axis=1).sum())
        return cls(rows, max(0, round(least / shares[0]) - len(shares)))


@dataclass(frozen=True)
class StateWatch(Watching):
    """`rule` (one that draws as the target does), with the states behind the children of every visited node summed up.

    All children count, not only accepted ones: their places are real, and the target has computed their states.
    """

    sums: StateSums = field(repr=False)

    @property
    def looks_at(self) -> frozenset[str]:
        return frozenset({LOGITS, STATES})

    def decide(self, node: Node, draws: Draws) -> Decision:
        if node.nodes:
            self.sums.add(np.asarray(node.tokens), node.states(node.nodes))
        decision = self.rule.decide(node, draws)
        self.sums.draw(np.array([decision.token]))
        return decision
