"""What the relaxed rules share: where a child is tested, what guards it, and what a rejection leaves.

A relaxed rule replaces p(x) and q(x) in the test of a child by its own (`weigh`), and may give one last child a
second chance (`last_chance`). `children` chooses how the tree is drafted, and with it the test:

| children | drafted | child x passes when |
|---|---|---|
| sampled | from q, without replacement | u q(x) < p(x): recursive rejection, as `strict` |
| topk | the drafter's top-k | u < p(x) |
| coupled | top-k of log q + g, the target's own noise | it is the target's draw, as `exact`; else see below |

On the coupled tree a child also passes when it would have won the target's draw with its relaxed weight: when
log w(x) + g(x) reaches log p + g of the token that was drawn.

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
    relaxed with `row_ends`: its neighbours in the sequence are not its neighbours in the image.
    """

    children: str = "sampled"
    guard: float = 0.0
    cap: int = 0
    row_ends: bool = False

    kind: ClassVar[str]
    weighs_q: ClassVar[bool] = False  # whether `weigh` changes q, too: else it cancels out on a coupled tree
    cause: ClassVar[Cause] = Cause.RELAXED

    def __post_init__(self) -> None:
        self.one_of("children", CHILDREN)
        self.between("guard", 0, 1)
        if self.cap < 0:
            raise CascadeError(f"{self.kind}: cap must be 0 (no limit) or more, not {self.cap}.")

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
    def weigh(self, node: Node, law: Residual, index: int) -> tuple[float, float]:
        """The relaxed p and q of child `index`."""

    @property
    def reweighs(self) -> bool:
        """Whether `weigh` may answer anything but p and q."""
        return True

    def last_chance(self, node: Node, supported: list[int], scores: np.ndarray) -> int | None:  # noqa: ARG002
        """A child (its index) that passes although every test failed, or None.

        `supported` are the children that the guard lets through; scores [k] over the node's ids rank them.
        """
        return None

    def stand_in(self, node: Node, supported: list[int], scores: np.ndarray) -> int | None:  # noqa: ARG002
        """Coupled children: one (its index) that may stand for the target's own draw, or None.

        Asked before anything else, of draws that were not drafted; scores [k] over the node's ids decided the draw.
        """
        return None

    def settle(self, node: Node, supported: list[int], index: int) -> int:  # noqa: ARG002
        """The child to go on with once child `index` has passed: itself, or one as good with more below it."""
        return index

    def after_rejection(self, law: Residual, token: int) -> None:
        """Takes a rejected child out of the law."""
        law.reject(token)

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
        law = Residual(node, sampled=self.children == "sampled")
        for index, token in enumerate(node.tokens):
            u, p, q = draws.uniform(Stream.ACCEPT, token), law.probability(token), law.proposal(token)
            strict = u * q < p
            if index in supported:
                wide_p, wide_q = self.weigh(node, law, index)
                passed = u * wide_q < wide_p
            else:
                passed = strict
            if passed:
                return self._accept(node, supported, index, Cause.STRICT if strict else self.cause)
            self.after_rejection(law, token)
        with np.errstate(divide="ignore"):
            last = self.last_chance(node, supported, np.log(node.p))
        if last is not None:
            return Decision(int(node.tokens[last]), node.nodes[last], Cause.CONVERGED)
        return Decision(law.draw(draws), None)

    def _accept(self, node: Node, supported: list[int], index: int, cause: Cause) -> Decision:
        chosen = self.settle(node, supported, index) if index in supported else index
        cause = cause if chosen == index else self.cause
        return Decision(int(node.tokens[chosen]), node.nodes[chosen], cause)

    def _race(self, node: Node, draws: Draws) -> Decision:
        """The target's own draw first; then the children that the relaxed weights would have let win it."""
        token = draw_token(node.ids, node.logits, draws)
        if token in node.tokens:
            return Decision(token, node.nodes[list(node.tokens).index(token)], Cause.STRICT)
        supported = self.supported(node)
        if not supported:
            return Decision(token, None)
        scores = race(node.ids, node.logits, draws)
        stand_in = self.stand_in(node, supported, scores)
        if stand_in is not None:
            return self._accept(node, supported, stand_in, self.cause)
        winner = self._winner(node, supported, scores, float(scores.max())) if self.reweighs else None
        if winner is not None:
            return self._accept(node, supported, winner, self.cause)
        last = self.last_chance(node, supported, scores)
        if last is not None:
            return Decision(int(node.tokens[last]), node.nodes[last], Cause.CONVERGED)
        return Decision(token, None)

    def _winner(self, node: Node, supported: list[int], scores: np.ndarray, least: float) -> int | None:
        """The child (its index) that its relaxed weight lifts highest, at least to `least`; scores [k] over `ids`."""
        law = Residual(node, sampled=node.log_q is not None)
        best: tuple[float, int] | None = None
        for index in supported:
            at = node.places[index]
            assert at is not None  # supported
            wide_p, wide_q = self.weigh(node, law, index)
            p, q = law.probability(node.tokens[index]), law.proposal(node.tokens[index])
            weight = (wide_p * q) / (wide_q * p) if wide_q > 0 else np.inf
            score = float(scores[at] + np.log(weight)) if weight > 0 else -np.inf
            if score >= least and (best is None or score > best[0]):
                best = score, index
        return None if best is None else best[1]
