"""`lantern`: neighbours in the VQ codebook lend their probability to a token, at most `delta` in all.
`lantern++`: neighbours in the VQ codebook lend their probability to a token, at most (`lambda` - 1) times its own.

LANTERN (Jang et al., ICLR 2025): the k nearest codebook neighbours of x lend their probability, nearest first, as
long as they lend at most delta. LANTERN++ (2025): at most (lambda - 1) p(x). A rejection leaves the strict residual.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from ..errors import CascadeError
from .base import Node
from .relaxed import Relaxed
from .residual import Residual


@dataclass(frozen=True)
class Neighbours(Relaxed):
    """Shared by both: k neighbours from `table` int [V, K], the nearest first, that the bundle carries."""

    k: int = 1000
    table: np.ndarray | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.table is None:
            raise CascadeError(f"{self.kind} needs the bundle's neighbour table: build the bundle again.")
        if self.k < 1:
            raise CascadeError(f"{self.kind}: k must be at least 1, not {self.k}.")

    @property
    def _table(self) -> np.ndarray:
        assert self.table is not None  # checked when the rule was made
        return self.table

    def near(self, token: int, count: int) -> np.ndarray:
        """Up to `count` nearest neighbours of a token, nearest first."""
        return self._table[token, :count].astype(np.int64)

    def budget(self, p: float) -> float:
        """How much the neighbours of a token with probability p may lend."""
        raise NotImplementedError

    def weigh(self, node: Node, residual: Residual, index: int) -> tuple[float, float]:
        token = node.tokens[index]
        p = residual.probability(token)
        lent = np.cumsum(residual.dense(len(self._table))[self.near(token, self.k)])
        # A little above the budget, so that a sum that meets it exactly is not lost to rounding.
        count = int(np.searchsorted(lent, self.budget(p) * (1 + 1e-9), side="right"))
        return p + (float(lent[count - 1]) if count else 0.0), residual.proposal(token)


@dataclass(frozen=True)
class Lantern(Neighbours):
    """delta: most probability that neighbours may lend, an upper bound of the total variation."""

    delta: float = 0.1
    kind: ClassVar[str] = "lantern"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.between("delta", 0, 1)

    def budget(self, p: float) -> float:  # noqa: ARG002 - the other rule's depends on it
        return self.delta


@dataclass(frozen=True)
class LanternPlus(Neighbours):
    """lambda_: the neighbours' share may raise p(x) to lambda p(x) at most; spelled "lambda" in text."""

    k: int = 10
    lambda_: float = 5.0
    kind: ClassVar[str] = "lantern++"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lambda_ >= 1:
            raise CascadeError(f"lantern++: lambda must be at least 1, not {self.lambda_}.")

    def budget(self, p: float) -> float:
        return (self.lambda_ - 1) * p
