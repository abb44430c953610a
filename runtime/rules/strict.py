"""`strict`: recursive rejection, the law of plain decoding.

Children drafted without replacement from q are tried in the drafter's order: child x passes with probability
p(x) / q_j(x), q_j being q without the earlier siblings, renormalised; a failure leaves the residual
relu(p - q_j) as p. When all fail, the bonus token is drawn from the residual. Children that are the drafter's
plain top-k have q = 1, and the residual is p without the child. Sources: EAGLE (arXiv 2401.15077), recursive
rejection sampling (Jeon et al., arXiv 2402.14160; Yang et al., arXiv 2401.12202).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..noise import Stream
from .base import Decision, Draws, Node


@dataclass(frozen=True)
class Strict:
    """`noise` is Stream.DRAFT for sampled children, None for the drafter's plain top-k."""

    name: str = "strict"
    noise: Stream | None = Stream.DRAFT

    def decide(self, node: Node, draws: Draws) -> Decision:
        law = Residual(node, sampled=self.noise is not None)
        for token, child in zip(node.tokens, node.nodes, strict=True):
            if draws.uniform(Stream.ACCEPT, token) * law.proposal(token) < law.probability(token):
                return Decision(token, child)
            law.reject(token)
        return Decision(law.draw(draws), None)


class Residual:
    """The target's law at a node as children fail: p over the kept ids, and the matching q.

    Works in float64, so that the law survives many subtractions. All arrays are [k] over the node's ids.
    """

    def __init__(self, node: Node, sampled: bool) -> None:
        self.ids = node.ids
        self.p = node.p.astype(np.float64)
        self._log_q = node.log_q if sampled else None
        self._q = np.zeros(0)
        self._left = 1.0  # q's mass outside the siblings tried so far
        if self._log_q is not None:
            self._q = np.exp(self._log_q[self.ids].astype(np.float64))

    def _at(self, token: int) -> int | None:
        found = np.flatnonzero(self.ids == token)
        return int(found[0]) if len(found) else None

    def probability(self, token: int) -> float:
        """p(token) of the present residual; 0 outside the sampler's support."""
        at = self._at(token)
        return 0.0 if at is None else float(self.p[at])

    def proposal(self, token: int) -> float:
        """q_j(token): the probability with which the drafter proposed it after its earlier siblings."""
        if self._log_q is None:
            return 1.0
        return float(np.exp(np.float64(self._log_q[token]))) / max(self._left, 1e-300)

    def reject(self, token: int) -> None:
        """Takes the failed proposal out of p, and the token out of q."""
        at = self._at(token)
        if self._log_q is None:
            if at is not None:
                self.p[at] = 0.0
        else:
            self.p = np.maximum(self.p - self._q / max(self._left, 1e-300), 0.0)
            self._left -= float(np.exp(np.float64(self._log_q[token])))
            if at is not None:
                self._q[at] = 0.0
        total = self.p.sum()
        if total > 0:
            self.p /= total

    def draw(self, draws: Draws) -> int:
        """The bonus token, drawn from the residual."""
        if len(self.ids) == 1:
            return int(self.ids[0])
        with np.errstate(divide="ignore"):
            return int(self.ids[np.argmax(np.log(self.p) + draws.gumbel(Stream.RESIDUAL, self.ids))])
