"""Learns the table of states (`runtime/rules/states.py`) from the target's own drawings."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..runtime.errors import CascadeError
from ..runtime.rules import LOGITS, STATES, Decision, Draws, Node
from ..runtime.rules.states import StateTable
from .watch import Watching

_ENOUGH = 3  # a token seen less often stands for nothing: one state says more of its place than of its token


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

    def table(self) -> StateTable:
        """Raises CascadeError when no token was seen often enough."""
        seen = self.count >= _ENOUGH
        if not seen.any():
            raise CascadeError("no token was seen often enough for a table of states: draw more pictures.")
        mean = self.total.sum(0) / self.count.sum()
        effect = np.where(seen[:, None], self.total / np.maximum(self.count, 1)[:, None] - mean, 0.0)
        rows = effect / np.maximum(np.linalg.norm(effect, axis=1, keepdims=True), 1e-12)
        usage = (self.used + 1) / (self.used + 1).sum()  # as if each had been drawn once more: none is impossible
        return StateTable(rows.astype(np.float16), usage.astype(np.float32))


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
