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

from .base import Cause, Node
from .relaxed import Relaxed
from .residual import Residual


@dataclass(frozen=True)
class Cascade(Relaxed):
    """tau_pos and tau_seq in [0, 1], None (spelled "off") switches a relaxation off.

    peers: whose probability is lent, that of "siblings" or of the whole "depth". breadth: "aggregate" it before
    the test, or after it "swap" to the interchangeable child with the deepest subtree, or do both.
    """

    tau_pos: float | None = 0.9
    tau_seq: float | None = 0.9
    guard: float = 0.05
    cap: int = 2
    row_ends: bool = True
    peers: str = "siblings"
    breadth: str = "aggregate"

    kind: ClassVar[str] = "cascade"
    cause: ClassVar[Cause] = Cause.INTERCHANGEABLE

    def __post_init__(self) -> None:
        super().__post_init__()
        self.between("tau_pos", 0, 1)
        self.between("tau_seq", 0, 1)
        self.one_of("peers", ("siblings", "depth"))
        self.one_of("breadth", ("aggregate", "swap", "both"))

    def weigh(self, node: Node, law: Residual, index: int) -> tuple[float, float]:
        token = node.tokens[index]
        p, q = law.probability(token), law.proposal(token)
        if self.tau_pos is None or self.breadth == "swap":
            return p, q
        lenders = {int(node.drafted[y]) for y in self._alike(node, index)} - {token}
        return p + sum(law.probability(y) for y in lenders), q

    def _alike(self, node: Node, index: int) -> list[int]:
        """Nodes that are interchangeable with child `index`."""
        x = node.nodes[index]
        peers = node.nodes if self.peers == "siblings" else node.cousins()
        return [y for y in peers if y != x and node.similarity[x, y] >= (self.tau_pos or 0.0)]

    def settle(self, node: Node, supported: list[int], index: int) -> int:
        if self.tau_pos is None or self.breadth == "aggregate":
            return index
        alike = set(self._alike(node, index))
        choices = [index, *(i for i in supported if node.nodes[i] in alike)]
        return max(choices, key=lambda i: (node.tree.heights[node.nodes[i]], i == index))

    def last_chance(self, node: Node, supported: list[int], scores: np.ndarray) -> int | None:
        if self.tau_seq is None or not supported:
            return None
        best = max(supported, key=lambda i: scores[node.place(node.tokens[i])])
        return best if node.similarity[node.index, node.nodes[best]] >= self.tau_seq else None
