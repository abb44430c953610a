"""`cool`: COOL-SD (AAAI 2026): accepts more by depth in the tree alone, whichever the token is.

A rule that looks at tokens is worth its cost only if it does better than this one.

Child x passes with probability min(1, w_i p(x) / q(x)), w_i = delta * exp(-nu * i - mu) at depth i: relaxed early,
tight late. mu is chosen so that the weights of a tree's depths have the mean delta (the paper leaves it free).
A rejection leaves the strict residual.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ..errors import CascadeError
from .base import Node
from .relaxed import Relaxed
from .residual import Residual


@dataclass(frozen=True)
class Cool(Relaxed):
    """delta: mean weight over the depths of the tree; nu: how fast it falls with depth."""

    delta: float = 1.1
    nu: float = 0.7
    kind: ClassVar[str] = "cool"

    def __post_init__(self) -> None:
        super().__post_init__()
        for setting in ("delta", "nu"):
            if not 0 <= getattr(self, setting) < math.inf:
                raise CascadeError(f"cool: {setting} must be 0 or more, not {getattr(self, setting)}.")

    def weight(self, depth: int, levels: int) -> float:
        """w at a node of `depth` in a tree with `levels` levels below the root."""
        falling = [math.exp(-self.nu * i) for i in range(levels)]
        return self.delta * falling[depth] * levels / sum(falling)

    def weigh(self, node: Node, residual: Residual, index: int) -> tuple[float, float]:
        token = node.tokens[index]
        return self.weight(node.depth, node.tree.depth) * residual.probability(token), residual.proposal(token)
