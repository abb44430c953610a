"""Which tree the images in slots are drawn with, round by round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from .auto import Auto, Choice
from .rules import Rule
from .rules.exact import Exact
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

    def choose(self, rules: Sequence[Rule | None], current: str) -> Choice:
        """The tree for images with these rules (None: plain decoding), the newest round's being `current`."""
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

    def choose(self, rules: Sequence[Rule | None], current: str) -> Choice:  # noqa: ARG002 - as the contract says
        return self._choice

    def observe(self, tree: str, tokens: int, rounds: int, busy: int, milliseconds: float | None) -> None:
        """Nothing follows from it."""


_EVERY, _LOOK = 48, 3  # rounds between two looks at a rival, and of a look; its first is not like the others


class AutoTree:
    """The fastest for images of `exact`, which do not depend on it; `home` while an image of another rule is drawn.

    Every few dozen rounds it looks at a rival for a moment: what is not drawn with, nobody sees the costs of.
    """

    def __init__(self, auto: Auto, home: str) -> None:
        self.asked, self.first = AUTO, home
        self._auto, self._home = auto, home
        self._standing: str | None = None
        self._rival: str | None = None
        self._rounds = 0  # that `auto` has chosen for

    def serves(self, rule: Rule, tree: str | None) -> bool:
        return tree == AUTO or (tree == self._home and not isinstance(rule, Exact))

    def choose(self, rules: Sequence[Rule | None], current: str) -> Choice:  # noqa: ARG002 - it may be a rival
        others = [rule for rule in rules if rule is not None and not isinstance(rule, Exact)]
        if others:
            name = others[0].name.partition(":")[0]
            return Choice(self._home, f"{self._home}: images of {name} depend on the tree, and this is the bundle's")
        plain = sum(rule is None for rule in rules)
        if plain == len(rules):
            return Choice(NO_TREE, "plain decoding was asked for")
        return self._choose(len(rules) - plain, plain)

    def _choose(self, exact: int, plain: int) -> Choice:
        choice = self._auto.choose(exact, plain, self._standing)
        self._standing, at = choice.tree, self._rounds % (_EVERY + _LOOK)
        if at == _EVERY:
            self._rival = self._auto.rival(exact, plain, choice.tree, self._rounds // (_EVERY + _LOOK))
        self._rounds += 1
        return Choice(self._rival, choice.why) if at >= _EVERY and self._rival is not None else choice

    def observe(self, tree: str, tokens: int, rounds: int, busy: int, milliseconds: float | None) -> None:
        self._auto.observe(tree, tokens, rounds, busy, milliseconds)
