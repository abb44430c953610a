"""Which tree the images in slots are drawn with, round by round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from .auto import Auto, Choice
from .request import Drawing
from .rules import Rule
from .tree import AUTO, NO_TREE


class Chooser(Protocol):
    """What a batch asks before each round."""

    @property
    def asked(self) -> str | None:
        """What the batch was made for: a tree, `auto`, or None (plain decoding)."""
        ...

    def serves(self, rule: Rule, tree: str | None) -> bool:
        """Whether a job of this rule that asks for `tree` may join."""
        ...

    @property
    def first(self) -> str:
        """A tree to begin with."""
        ...

    def choose(self, drawings: Sequence[Drawing], current: str) -> Choice:
        """The tree for these images, the newest round's being `current`; no two of them are bound to different ones."""
        ...

    def observe(self, tree: str, tokens: int, rounds: int, busy: int, milliseconds: float | None) -> None:
        """What images of `exact` have accepted in a round: tokens in all, of so many images; and how long the round of
        all `busy` images took, where it was like the one before: the same tree, and the same images."""
        ...


class FixedTree:
    """The same for all rounds; None is plain decoding."""

    def __init__(self, tree: str | None, why: str) -> None:
        self.asked = tree
        self.first = NO_TREE if tree is None else tree
        self._choice = Choice(self.first, why)

    def serves(self, rule: Rule, tree: str | None) -> bool:  # noqa: ARG002 - as the contract says
        return self.asked is not None and tree in (self.asked, AUTO)

    def choose(self, drawings: Sequence[Drawing], current: str) -> Choice:  # noqa: ARG002 - as the contract says
        return self._choice

    def observe(self, tree: str, tokens: int, rounds: int, busy: int, milliseconds: float | None) -> None:
        """Nothing follows from it."""


# Rounds between two looks at a rival, more where plain decoding is drawn with, whose rounds are short; and rounds of a
# look, of which the first few are not like the others (`Batch`).
_EVERY, _EVERY_PLAIN = 48, 240
_LOOK, _LOOK_PLAIN = 6, 12


class AutoTree:
    """The fastest for images of `exact`, which do not depend on it, or the one that an image is bound to.

    Every few dozen rounds it looks at a rival for a moment: what is not drawn with, nobody sees the costs of.
    """

    def __init__(self, auto: Auto, first: str) -> None:
        self.asked, self.first = AUTO, first
        self._auto = auto
        self._standing: str | None = None
        self._rounds, self._looks = 0, 0  # since the last look, and looks so far
        self._rivals: list[str] = []  # the trees of the rounds that are left of this look

    def serves(self, rule: Rule, tree: str | None) -> bool:  # noqa: ARG002 - as the contract says
        return True

    def choose(self, drawings: Sequence[Drawing], current: str) -> Choice:  # noqa: ARG002 - it may be a rival
        bound = next((drawing for drawing in drawings if drawing.bound is not None), None)
        if bound is not None and bound.bound is not None:
            return Choice(bound.bound, bound.why)
        plain = sum(drawing.rule is None for drawing in drawings)
        if plain == len(drawings):
            return Choice(NO_TREE, "plain decoding was asked for")
        return self._choose(len(drawings) - plain, plain)

    def _choose(self, exact: int, plain: int) -> Choice:
        choice = self._auto.choose(exact, plain, self._standing)
        self._standing = choice.tree
        if not self._rivals:
            self._rounds += 1
            if self._rounds > (_EVERY_PLAIN if choice.tree == NO_TREE else _EVERY):
                rival = self._auto.rival(exact, plain, choice.tree, self._looks)
                self._rounds, self._looks = 0, self._looks + 1
                self._rivals = [] if rival is None else [rival] * (_LOOK_PLAIN if rival == NO_TREE else _LOOK)
        return Choice(self._rivals.pop(), choice.why) if self._rivals else choice

    def observe(self, tree: str, tokens: int, rounds: int, busy: int, milliseconds: float | None) -> None:
        self._auto.observe(tree, tokens, rounds, busy, milliseconds)
