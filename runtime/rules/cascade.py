"""`cascade`: acceptance relaxed where the target's hidden states say that it does not matter.

Reconstruction of CASCADE (arXiv 2605.07230; only the abstract and the structure of its algorithm were at hand,
docs/rules.md lists what was open). All cosines are between the target's guided, final hidden states, which the
verification of the tree has computed anyway.

* Interchangeability (breadth): siblings y with cos(h_x, h_y) >= tau_pos lend their probability to x, since
  what follows them hardly differs.
* Convergence (depth): when every child has failed, the best one passes if cos(h_parent, h_x) >= tau_seq, since
  the state hardly moves whichever token comes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .base import SIMILARITY, Cause, Node
from .relaxed import Relaxed
from .residual import Residual


@dataclass(frozen=True)
class Cascade(Relaxed):
    """tau_pos and tau_seq in [0, 1], None (spelled "off") switches a relaxation off.

    The paper leaves open what keeps many relaxed tokens in a row apart from the target: here a token needs `guard`
    times the probability of the likeliest one, at most `cap` follow each other, and none starts a row.
    """

    tau_pos: float | None = 0.9
    tau_seq: float | None = 0.9
    guard: float = 0.05
    cap: int = 2
    row_ends: bool = True

    kind: ClassVar[str] = "cascade"
    cause: ClassVar[Cause] = Cause.INTERCHANGEABLE

    def __post_init__(self) -> None:
        super().__post_init__()
        self.between("tau_pos", 0, 1)
        self.between("tau_seq", 0, 1)

    @property
    def needs(self) -> frozenset[str]:
        compares = self.tau_pos is not None or self.tau_seq is not None
        return super().needs | (frozenset({SIMILARITY}) if compares else frozenset())

    @property
    def reweighs(self) -> bool:
        return self.tau_pos is not None

    @property
    def compares_siblings(self) -> bool:
        return self.tau_pos is not None

    def weigh(self, node: Node, residual: Residual, index: int) -> tuple[float, float]:
        token, x = node.tokens[index], node.nodes[index]
        p, q = residual.probability(token), residual.proposal(token)
        if self.tau_pos is None:
            return p, q
        lenders = {int(node.drafted[y]) for y in node.nodes if y != x and node.alike(x, y) >= self.tau_pos} - {token}
        return p + sum(residual.probability(y) for y in lenders), q

    def last_chance(self, node: Node, supported: list[int], scores: np.ndarray) -> int | None:
        if self.tau_seq is None or not supported:
            return None
        best = max(supported, key=lambda i: scores[node.places[i]])
        return best if node.alike(node.index, node.nodes[best]) >= self.tau_seq else None
