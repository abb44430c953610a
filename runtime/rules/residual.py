"""The target's distribution at a node while drafted children fail one after the other."""

from __future__ import annotations

import numpy as np

from ..noise import Stream
from .base import Draws, Node


class Residual:
    """p over the kept ids, and the matching q, as children are rejected.

    Works in float64, so that the distribution survives many subtractions. p and q are [k] over the node's ids.
    Sources: EAGLE (arXiv 2401.15077), recursive rejection sampling (Jeon et al., arXiv 2402.14160; Yang et al.,
    arXiv 2401.12202).
    """

    def __init__(self, node: Node, sampled: bool) -> None:
        self.ids = node.ids
        self.p = node.p.astype(np.float64)
        self._node = node
        self._log_q = node.log_q if sampled else None
        self._q = np.zeros(0)
        self._left = 1.0  # q's mass outside the siblings tried so far
        if self._log_q is not None:
            self._q = np.exp(self._log_q[self.ids].astype(np.float64))

    def probability(self, token: int) -> float:
        """p(token) of the present residual; 0 outside the sampler's support."""
        at = self._node.place(token)
        return 0.0 if at is None else float(self.p[at])

    def proposal(self, token: int) -> float:
        """q_j(token): the probability with which the drafter proposed it after its earlier siblings."""
        if self._log_q is None:
            return 1.0
        return float(np.exp(np.float64(self._log_q[token]))) / max(self._left, 1e-300)

    def proposals(self) -> np.ndarray:
        """q_j of all kept ids, [k]; only for sampled children."""
        return self._q / max(self._left, 1e-300)

    def dense(self, vocab_size: int) -> np.ndarray:
        """p over the whole vocabulary, [V]."""
        everywhere = np.zeros(vocab_size)
        everywhere[self.ids] = self.p
        return everywhere

    def reject(self, token: int) -> None:
        """Takes the failed proposal out of p, and the token out of q."""
        at = self._node.place(token)
        if self._log_q is None:
            if at is not None:
                self.p[at] = 0.0
        else:
            self.p = np.maximum(self.p - self.proposals(), 0.0)
            self._left -= float(np.exp(np.float64(self._log_q[token])))
            if at is not None:
                self._q[at] = 0.0
        self._normalise()

    def _normalise(self) -> None:
        total = self.p.sum()
        if total > 0:
            self.p /= total

    def draw(self, draws: Draws) -> int:
        """The bonus token, drawn from the residual. Where nothing is left of p, from all kept ids alike."""
        if len(self.ids) == 1:
            return int(self.ids[0])
        with np.errstate(divide="ignore"):
            log_p = np.log(self.p) if self.p.any() else np.zeros(len(self.ids))
        return int(self.ids[np.argmax(log_p + draws.gumbel(Stream.RESIDUAL, self.ids))])
