"""`strict`: tests guesses that were sampled from the drafter; the distribution is that of plain decoding.
`strict-topk`: tests the drafter's likeliest tokens; the distribution is that of plain decoding.

Recursive rejection. Children drafted without replacement from q are tried in the drafter's order: child x passes with
probability p(x) / q_j(x), q_j being q without the earlier siblings, renormalised; a failure leaves the residual
relu(p - q_j) as p. When all fail, the bonus token is drawn from the residual. Children that are the drafter's
plain top-k have q = 1, and the residual is p without the child. Sources: residual.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..noise import Stream
from .base import LOG_Q, LOGITS, Cause, Decision, Draws, Node
from .residual import Residual


@dataclass(frozen=True)
class Strict:
    """`noise` is Stream.DRAFT for sampled children, None for the drafter's plain top-k."""

    name: str = "strict"
    noise: Stream | None = Stream.DRAFT

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({LOGITS} if self.noise is None else {LOGITS, LOG_Q})

    @property
    def compares_siblings(self) -> bool:
        return False

    def decide(self, node: Node, draws: Draws) -> Decision:
        residual = Residual(node, sampled=self.noise is not None)
        for token, child in zip(node.tokens, node.nodes, strict=True):
            if draws.uniform(Stream.ACCEPT, token) * residual.proposal(token) < residual.probability(token):
                return Decision(token, child, Cause.STRICT)
            residual.reject(token)
        return Decision(residual.draw(draws), None)
