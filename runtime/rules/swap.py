"""`swap`: a child stands in for the target's own draw where both lead to similar states. Ours, not the paper's.

On the coupled tree the target's own draw t is known even where it was not drafted, and what a child must be
interchangeable with is t. The state behind t was not computed, but what t mostly does to a state is known from other
images: the row S[t] of the bundle's table of states (`calibrate states`).

A child x may pass if its price (1 - cos(S[x], S[t])) * lost(x) / 2 is at most 1 - tau_draw for each token that it
brings, lost(x) being the nats by which t won the draw from it: a child is as good as t if it is like t, or if it was
nearly drawn itself. So tau_draw is the cosine that a child needs which lost by two nats and brings one token. The price
is multiplied by (usage[x] / usage[t])^balance, usage being how common a token is: drafters prefer common tokens, and
without this factor images lose their grain.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from ..errors import CascadeError
from .base import Cause, Node
from .relaxed import Relaxed
from .residual import Residual
from .states import StateTable

_NATS = 2.0  # a child that lost the draw by so much is judged by its likeness to the draw alone


@dataclass(frozen=True)
class Swap(Relaxed):
    """tau_draw in [0, 1], None (spelled "off") switches it off; balance in [0, 1] (0: usage plays no part)."""

    children: str = "coupled"
    lookahead: bool = True
    tau_draw: float | None = 0.7
    balance: float = 0.1
    states: StateTable | None = field(default=None, compare=False, repr=False)

    kind: ClassVar[str] = "swap"
    cause: ClassVar[Cause] = Cause.SWAPPED

    def __post_init__(self) -> None:
        if self.children != "coupled":
            raise CascadeError(
                f"swap: children must be coupled, not {self.children}: they are compared with the target's own draw, "
                "which only a coupled tree shares."
            )
        super().__post_init__()
        self.between("tau_draw", 0, 1)
        self.between("balance", 0, 1)
        if self.states is None:
            raise CascadeError(
                "swap needs the bundle's table of states: run `cascade-trt calibrate states` on it first."
            )

    @property
    def reweighs(self) -> bool:
        return self.tau_draw is not None

    def weigh(self, node: Node, residual: Residual, index: int) -> tuple[float, float]:
        token = node.tokens[index]
        return residual.probability(token), residual.proposal(token)  # `offers` says what a child may cost

    def offers(self, node: Node, supported: list[int], scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert self.tau_draw is not None  # it reweighs
        return np.full(len(supported), 1 - self.tau_draw), self.prices(node, supported, scores).astype(np.float64)

    def prices(self, node: Node, children: list[int], scores: np.ndarray) -> np.ndarray:
        """float32 [k]: what it costs to take each of the children (indices) for the target's draw.

        scores [n], log p + g of the node's ids, decided that draw; the sampler keeps the tokens of all these children.
        """
        assert self.states is not None  # checked when the rule was made
        tokens, won = [node.tokens[i] for i in children], int(np.argmax(scores))
        drawn = int(node.ids[won])
        lost = scores[won] - scores[np.array([node.places[i] for i in children], np.int64)]
        commoner = (self.states.usage[tokens] / self.states.usage[drawn]) ** self.balance
        return (1 - self.states.cosines(tokens, drawn)) * lost / _NATS * commoner
