"""`cascade`: acceptance relaxed where the target's hidden states say that it does not matter.

Reconstruction of CASCADE (arXiv 2605.07230; only the abstract and the structure of its algorithm were at hand,
docs/rules.md lists what was open). All cosines are between the target's guided, final hidden states, which the
verification of the tree has computed anyway.

* Interchangeability (breadth): siblings y with cos(h_x, h_y) >= tau_pos lend their probability to x, since
  what follows them hardly differs.
* Convergence (depth): when every child has failed, the best one passes if cos(h_parent, h_x) >= tau_seq, since
  the state hardly moves whichever token comes.

The third signal is ours (docs/rules.md has the measurements). On the coupled tree the target's own draw t is known
even where it was not drafted, and what a child must be interchangeable with is t. The state behind t was not
computed, but what t mostly does to a state is known from other images: the row S[t] of the bundle's table of states.

* Interchangeability with the draw: a child's price is (1 - cos(S[x], S[t])) * lost(x) / 2, lost(x) being the nats by
  which t won the draw from it: a child is as good as t if it is like t, or if it was nearly drawn itself. It may
  pass if its price is at most (1 - tau_draw) * gain(x), and of those that may the one with most left passes. So
  tau_draw is the cosine that a child needs which lost by two nats and brings one token. The price is multiplied by
  (usage[x] / usage[t])^balance, usage being how common a token is: drafters prefer common tokens, and without this
  factor images lose their grain.
* Looking ahead: all nodes are verified, and all draws are known, so what a child brings need not be guessed. gain(x) is
  the number of tokens that the walk takes from x on, by this very rule, less what its further stand-ins cost, in
  tokens; `ahead` in [0, 1] discounts what lies further down.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from ..errors import CascadeError
from .base import SIMILARITY, Cause, Draws, Node
from .exact import race
from .relaxed import Relaxed
from .residual import Residual
from .states import StateTable

_NATS = 2.0  # a child that lost the draw by so much is judged by its likeness to the draw alone


@dataclass(frozen=True)
class Cascade(Relaxed):
    """tau_pos, tau_seq and tau_draw in [0, 1], None (spelled "off") switches a relaxation off.

    tau_draw, balance (0: usage plays no part) and ahead (0: neither does what follows a child) need the coupled tree
    and the bundle's `states`.

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
    tau_draw: float | None = None
    balance: float = 0.1
    ahead: float = 1.0
    states: StateTable | None = field(default=None, compare=False, repr=False)

    kind: ClassVar[str] = "cascade"
    cause: ClassVar[Cause] = Cause.INTERCHANGEABLE

    def __post_init__(self) -> None:
        super().__post_init__()
        self.between("tau_pos", 0, 1)
        self.between("tau_seq", 0, 1)
        self.between("tau_draw", 0, 1)
        self.between("balance", 0, 1)
        self.between("ahead", 0, 1)
        self.one_of("peers", ("siblings", "depth"))
        self.one_of("breadth", ("aggregate", "swap", "both"))
        if self.tau_draw is None:
            return
        if self.children != "coupled":
            raise CascadeError(
                "cascade: tau_draw compares children with the target's own draw, which only a coupled tree shares: "
                "add children=coupled, or set tau_draw=off."
            )
        if self.states is None:
            raise CascadeError(
                "cascade: tau_draw needs the bundle's table of states: run `cascade-trt calibrate states` on it first."
            )

    def stand_in(self, node: Node, supported: list[int], scores: np.ndarray) -> int | None:
        if self.tau_draw is None or not supported:
            return None
        left = self._left(node, supported, scores)
        best = int(np.argmax(left))
        return supported[best] if left[best] >= 0 else None

    def _left(self, node: Node, children: list[int], scores: np.ndarray) -> np.ndarray:
        """float64 [k]: what each child (index) brings, at a price of 1 - tau_draw a token, less what it costs."""
        assert self.tau_draw is not None
        gains = np.array([self._brings(node, child, relaxed=True) for child in children])
        return (1 - self.tau_draw) * gains - self.prices(node, children, scores)

    def _brings(self, node: Node, child: int, relaxed: bool) -> float:
        """How many tokens the walk gains with a child: the one drawn behind it (none where the image ends), and with
        `ahead` what follows."""
        if node.behind is None or not self.ahead:
            return 1.0
        seen = node.behind(child, relaxed)
        if seen is None:
            return 0.0
        behind, draws = seen
        if "brings" not in behind.notes:
            behind.notes["brings"] = 1 + self.ahead * self._goes_on(behind, draws)
        return behind.notes["brings"]

    def _goes_on(self, node: Node, draws: Draws) -> float:
        """What the walk brings beyond the token that is drawn at a node, less what it costs there."""
        scores = race(node.ids, node.logits, draws)
        drawn = node.ids[np.argmax(scores)]
        if drawn in node.tokens:
            return self._brings(node, list(node.tokens).index(drawn), relaxed=False)
        supported = self.supported(node)
        if not supported or self.tau_draw == 1:
            return 0.0
        assert self.tau_draw is not None
        return max(0.0, float(self._left(node, supported, scores).max()) / (1 - self.tau_draw))

    def prices(self, node: Node, children: list[int], scores: np.ndarray) -> np.ndarray:
        """float32 [k]: what it costs to take each of the children (indices) for the target's draw.

        scores [n], log p + g of the node's ids, decided that draw; the sampler keeps the tokens of all these children.
        """
        assert self.states is not None  # checked when the rule was made
        tokens, won = [node.tokens[i] for i in children], int(np.argmax(scores))
        drawn = int(node.ids[won])
        places = np.array([node.places[i] for i in children], np.int64)
        lost = scores[won] - scores[places]
        commoner = (self.states.usage[tokens] / self.states.usage[drawn]) ** self.balance
        return (1 - self.states.cosines(tokens, drawn)) * lost / _NATS * commoner

    @property
    def needs(self) -> frozenset[str]:
        compares = self.tau_pos is not None or self.tau_seq is not None
        return super().needs | (frozenset({SIMILARITY}) if compares else frozenset())

    @property
    def reweighs(self) -> bool:
        return self.tau_pos is not None and self.breadth != "swap"

    def weigh(self, node: Node, law: Residual, index: int) -> tuple[float, float]:
        token = node.tokens[index]
        p, q = law.probability(token), law.proposal(token)
        if not self.reweighs:
            return p, q
        lenders = {int(node.drafted[y]) for y in self._alike(node, index)} - {token}
        return p + sum(law.probability(y) for y in lenders), q

    def _alike(self, node: Node, index: int) -> list[int]:
        """Nodes that are interchangeable with child `index`."""
        x = node.nodes[index]
        peers = node.nodes if self.peers == "siblings" else node.cousins()
        return [y for y in peers if y != x and node.alike(x, y) >= (self.tau_pos or 0.0)]

    def settle(self, node: Node, supported: list[int], index: int) -> int:
        if self.tau_pos is None or self.breadth == "aggregate":
            return index
        alike = set(self._alike(node, index))
        choices = [index, *(i for i in supported if node.nodes[i] in alike)]
        return max(choices, key=lambda i: (node.tree.heights[node.nodes[i]], i == index))

    def last_chance(self, node: Node, supported: list[int], scores: np.ndarray) -> int | None:
        if self.tau_seq is None or not supported:
            return None
        best = max(supported, key=lambda i: scores[node.places[i]])
        return best if node.alike(node.index, node.nodes[best]) >= self.tau_seq else None
