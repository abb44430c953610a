"""What the relaxed rules share: where a child is tested, what guards it, what a rejection leaves, and looking ahead.

A relaxed rule replaces p(x) and q(x) in the test of a child by its own (`weigh`), and may give one last child a
second chance (`last_chance`). `children` chooses how the tree is drafted, and with it the test:

| children | drafted | child x passes when |
|---|---|---|
| sampled | from q, without replacement | u q(x) < p(x): recursive rejection, as `strict` |
| topk | the drafter's top-k | u < p(x) |
| coupled | top-k of log q + g, the target's own noise | it is the target's draw, as `exact`; else see below |

On the coupled tree the target's own draw t is known, and a child that is not t also passes when it would have won the
draw with its relaxed weight w(x): its price, the nats by which t won, is at most its allowance, log w(x) - log p(x). Of
those that may pass the one with most allowance left does.

**Looking ahead** (`lookahead`, coupled trees). All nodes are verified and all draws are known, so what a child brings
need not be guessed: gain(x) is the number of tokens that the walk takes from x on, by this very rule, less what its
further stand-ins cost, in tokens. The allowance is then one for each token: gain(x) times as large. So a child that is
followed by much may be worse, and one behind which the image ends never passes.

With the relaxation off every rule is `strict` (or `exact`) bit for bit.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np

from ..errors import CascadeError
from ..noise import Stream
from .base import LOG_Q, LOGITS, Cause, Decision, Draws, Node
from .exact import draw_token, race
from .residual import Residual

CHILDREN = {"sampled": Stream.DRAFT, "topk": None, "coupled": Stream.TOKEN}


@dataclass(frozen=True)
class Relaxed(ABC):
    """`guard`: a relaxed token needs p(x) >= guard * max p, and always p(x) > 0 under the sampler.

    `cap`: most relaxed tokens in a row on one path (0: no limit). A token that starts an image's row is never
    relaxed with `row_ends`: its neighbours in the sequence are not its neighbours in the image. `lookahead`: see above.
    """

    children: str = "sampled"
    guard: float = 0.0
    cap: int = 0
    row_ends: bool = False
    lookahead: bool = False

    kind: ClassVar[str]
    weighs_q: ClassVar[bool] = False  # whether `weigh` changes q, too: else it cancels out on a coupled tree
    cause: ClassVar[Cause] = Cause.RELAXED

    def __post_init__(self) -> None:
        self.one_of("children", CHILDREN)
        self.between("guard", 0, 1)
        if self.cap < 0:
            raise CascadeError(f"{self.kind}: cap must be 0 (no limit) or more, not {self.cap}.")
        if self.lookahead and self.children != "coupled":
            raise CascadeError(
                f"{self.kind}: lookahead follows the target's own draws, which only a coupled tree knows beforehand: "
                "add children=coupled, or set lookahead=off."
            )

    # what a rule says of itself ---------------------------------------------------------------------------
    @property
    def needs(self) -> frozenset[str]:
        reads_q = self.children == "sampled" or (self.children == "coupled" and self.weighs_q)
        return frozenset({LOGITS, LOG_Q} if reads_q else {LOGITS})

    @property
    def noise(self) -> Stream | None:
        return CHILDREN[self.children]

    @property
    def name(self) -> str:
        given = [
            f"{f.name.rstrip('_')}={self._spell(getattr(self, f.name))}"
            for f in fields(self) if f.compare and getattr(self, f.name) != f.default
        ]  # fmt: skip
        return f"{self.kind}:{','.join(given)}" if given else self.kind

    @staticmethod
    def _spell(value: object) -> str:
        return "off" if value is None or value is False else "on" if value is True else f"{value}"

    def one_of(self, setting: str, choices: object) -> None:
        """Raises CascadeError unless the setting is one of the choices."""
        names = [str(choice) for choice in choices]  # type: ignore[attr-defined]
        if getattr(self, setting) not in names:
            raise CascadeError(
                f"{self.kind}: {setting} must be one of {', '.join(names)}, not {getattr(self, setting)!r}."
            )

    def between(self, setting: str, low: float, high: float) -> None:
        """Raises CascadeError unless low <= setting <= high; None is "off" and fine."""
        value = getattr(self, setting)
        if value is not None and not low <= value <= high:
            raise CascadeError(f"{self.kind}: {setting} must lie between {low} and {high}, not {value}.")

    # what a rule is -----------------------------------------------------------------------------------------
    @abstractmethod
    def weigh(self, node: Node, residual: Residual, index: int) -> tuple[float, float]:
        """The relaxed p and q of child `index`."""

    @property
    def compares_siblings(self) -> bool:
        return False

    @property
    def reweighs(self) -> bool:
        """Whether `weigh` may answer anything but p and q."""
        return True

    def last_chance(self, node: Node, supported: list[int], scores: np.ndarray) -> int | None:  # noqa: ARG002
        """A child (its index) that passes although every test failed, or None.

        `supported` are the children that the guard lets through; scores [k] over the node's ids rank them.
        """
        return None

    def offers(self, node: Node, supported: list[int], scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coupled children: what each of `supported` (indices) may cost for each token that it brings, and what it
        costs, both float64 [k]; here nats. scores [n], log p + g of the node's ids, decided the draw."""
        residual = Residual(node, sampled=node.log_q is not None)
        places = np.array([node.places[i] for i in supported], np.int64)
        weights = [self._weight(node, residual, i) for i in supported]
        with np.errstate(divide="ignore"):
            allowances = np.log(weights)
        return allowances, float(scores.max()) - scores[places].astype(np.float64)

    def _weight(self, node: Node, residual: Residual, index: int) -> float:
        """How many times as likely the relaxation makes child `index`, against its proposal."""
        p, q = residual.probability(node.tokens[index]), residual.proposal(node.tokens[index])
        wide_p, wide_q = self.weigh(node, residual, index)
        return (wide_p * q) / (wide_q * p) if wide_q > 0 else math.inf

    # the test -----------------------------------------------------------------------------------------------
    def decide(self, node: Node, draws: Draws) -> Decision:
        return self._race(node, draws) if self.children == "coupled" else self._reject(node, draws)

    def supported(self, node: Node) -> list[int]:
        """Children that may pass by relaxation: never what only fills a place, or images would turn flat."""
        if (self.row_ends and node.row_start) or (self.cap and node.relaxed_run >= self.cap):
            return []
        # p(x) / max p from the logits: without children that may pass, p itself is never needed.
        least = float(node.logits[0]) + math.log(max(self.guard, 1e-30))
        return [
            i for i, at in enumerate(node.places) if at is not None and node.logits[at] >= least and i not in node.blind
        ]

    def _reject(self, node: Node, draws: Draws) -> Decision:
        """Recursive rejection with the relaxed weights."""
        supported = self.supported(node)
        residual = Residual(node, sampled=self.children == "sampled")
        for index, token in enumerate(node.tokens):
            u, p, q = draws.uniform(Stream.ACCEPT, token), residual.probability(token), residual.proposal(token)
            strict = u * q < p
            if index in supported:
                wide_p, wide_q = self.weigh(node, residual, index)
                passed = u * wide_q < wide_p
            else:
                passed = strict
            if passed:
                return Decision(int(token), node.nodes[index], Cause.STRICT if strict else self.cause)
            residual.reject(token)
        with np.errstate(divide="ignore"):
            last = self.last_chance(node, supported, np.log(node.p))
        if last is not None:
            return Decision(int(node.tokens[last]), node.nodes[last], Cause.CONVERGED)
        return Decision(residual.draw(draws), None)

    def _race(self, node: Node, draws: Draws) -> Decision:
        """The target's own draw first; then the children that the relaxed weights would have let win it."""
        token = draw_token(node.ids, node.logits, draws)
        if token in node.tokens:
            return Decision(token, node.nodes[list(node.tokens).index(token)], Cause.STRICT)
        index, cause, _ = self._stand_in(node, draws)
        return Decision(token, None) if index is None else Decision(int(node.tokens[index]), node.nodes[index], cause)

    def _stand_in(self, node: Node, draws: Draws) -> tuple[int | None, Cause, float]:
        """Coupled children: the one (its index) that stands for a draw which was not drafted, by which relaxation, and
        the tokens that it brings less what it costs. None, and no tokens, where there is none."""
        supported = self.supported(node)
        if not supported:
            return None, Cause.DRAWN, 0.0
        scores = race(node.ids, node.logits, draws)
        if self.reweighs:
            allowances, prices = self.offers(node, supported, scores)
            gains = np.array([self._brings(node, index, relaxed=True) for index in supported])
            left = np.where((gains > 0) & (allowances >= 0), allowances, -np.inf) * np.maximum(gains, 1e-9) - prices
            best = int(np.argmax(left))
            if left[best] >= 0:
                spent = prices[best] / allowances[best] if allowances[best] > 0 else 0.0  # in tokens
                return supported[best], self.cause, float(gains[best] - spent)
        last = self.last_chance(node, supported, scores)
        gain = 0.0 if last is None else self._brings(node, last, relaxed=True)
        return (last, Cause.CONVERGED, gain) if gain > 0 else (None, Cause.DRAWN, 0.0)

    def _brings(self, node: Node, child: int, relaxed: bool) -> float:
        """Tokens that the walk gains with a child: the one drawn behind it (none where the image ends) and, looking
        ahead, what follows."""
        if not self.lookahead or node.behind is None:
            return 1.0
        seen = node.behind(child, relaxed)
        if seen is None:
            return 0.0
        behind, draws = seen
        if "brings" not in behind.notes:
            behind.notes["brings"] = 1 + self._goes_on(behind, draws)
        return behind.notes["brings"]

    def _goes_on(self, node: Node, draws: Draws) -> float:
        """What the walk brings beyond the token that is drawn at a node, less what it costs there."""
        token = draw_token(node.ids, node.logits, draws)
        if token in node.tokens:
            return self._brings(node, list(node.tokens).index(token), relaxed=False)
        return self._stand_in(node, draws)[2]
