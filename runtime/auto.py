"""`tree="auto"`: before each round the tree that draws most tokens a second, or none.

`exact` draws the same image with every tree, so the choice is of speed alone. It rests on what rounds cost here
(`costs.py`) and on how many tokens a round of each tree brings: measured with this model, or assumed, and corrected
by what the rounds so far have brought and taken.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from .bundle import Manifest, TreeInfo
from .costs import Costs
from .drift import Drift
from .errors import CascadeError
from .tree import NO_TREE, ROOT, AnyTree

KINDS = DRAFTED, JACOBI, MIXED = "drafted", "jacobi", "mixed"

# Tokens a round that are assumed of a tree which nobody has measured: those of the demo model (docs/drafting.md), by
# the longest chain of guesses, and for drafted trees by the nodes behind the root.
_ASSUMED: dict[str, tuple[tuple[int, ...], tuple[float, ...]]] = {
    DRAFTED: ((0, 7, 16, 59), (1, 3.5, 3.65, 4.0)),
    JACOBI: ((0, 8, 16, 32, 56), (1, 2.85, 4.10, 5.17, 5.72)),
    MIXED: ((0, 8, 16, 24, 32, 48), (1, 3.34, 4.79, 5.48, 6.09, 6.54)),
}
_SPECS = (*(f"jacobi_{n}" for n in (8, 16, 32, 48)), *(f"mixed_{n}" for n in (8, 16, 24, 32, 48)))

_GAIN = 1.05  # how much faster than the current tree another one must be
_HELD = 4  # rounds of a tree that a choice holds for: a choice takes time, and one round says little
_PATIENCE = 16  # rounds of plain decoding between two looks at the trees, of which they tell nothing

# What an expectation may be wrong by, the same for all trees of a kind: it brings so many times the tokens beyond the
# first. A measured one holds as it is with probability _TRUST, an assumed one is likelier the nearer to 1.
_FACTORS = np.array([0.01, 0.05, 0.15, 0.3, 0.5, 0.75, 1, 1.4, 2])
_TRUST = 0.75
_ALIKE = 0.5  # what a round counts for: neighbouring rounds are alike, so they tell less than as many independent ones
_HEARSAY = 0.1  # what a round of another kind counts for, of that
_OWN = {True: 400.0, False: 8.0}  # rounds that an expectation weighs against a tree's own: measured, and assumed ones
_MEMORY = 500.0  # rounds, whatever their number of images, in which what was seen loses most of its weight

_DOUBT = {True: 50.0, False: 10.0}  # rounds that a tree's cost weighs against those seen: measured whole, or by calls
_RIVAL = 0.75  # of the speed of what is drawn with, for what is worth a look


@dataclass(frozen=True)
class Choice:
    """A tree's name (`NO_TREE`: plain decoding), and why in one sentence."""

    tree: str
    why: str


@dataclass(frozen=True)
class Round:
    """What a round of `exact` images of that rule and `plain` ones of plain decoding is expected to be.

    `tokens` float64 [T] are what it brings an image with each tree, `times` float64 [1 + T] its milliseconds and
    `speeds` float64 [1 + T] tokens a millisecond, plain decoding first.
    """

    exact: int
    plain: int
    tokens: np.ndarray
    times: np.ndarray
    speeds: np.ndarray

    def is_of(self, exact: int, plain: int) -> bool:
        return (self.exact, self.plain) == (exact, plain)


def kind_of(tree: AnyTree) -> str:
    """Where the tree's tokens come from: the draft engine, the round before, or both."""
    if not tree.guessed:
        return DRAFTED
    return JACOBI if tree.drafted is None else MIXED


def assumed(tree: AnyTree) -> float:
    """Tokens a round of `exact` to start from where nothing was measured."""
    kind = kind_of(tree)
    return float(np.interp(tree.size - 1 if kind == DRAFTED else tree.depth, *_ASSUMED[kind]))


def candidates_of(manifest: Manifest) -> dict[str, TreeInfo]:
    """The trees to choose among: the bundle's own, and chains of guesses as far as the bundle serves them."""
    found = {info.name: info for info in manifest.trees}
    for name in _SPECS:
        with suppress(CascadeError):  # longer than a target call takes, or no engine drafts its first token
            found.setdefault(name, manifest.tree(name))
    return found


class Outlook:
    """Tokens a round that trees are expected to bring: `accepted` where they were measured, corrected by rounds seen.

    Trees of a kind share one factor on what they bring beyond the first token, so that a disappointment with one of
    them is one with all. It is the mean of `_FACTORS` weighted by how likely each makes the tokens seen, which are
    taken to be geometrically distributed. Around it each tree goes by its own rounds.
    """

    def __init__(self, trees: Mapping[str, AnyTree], accepted: Mapping[str, float]) -> None:
        self.names = list(trees)
        kinds = [kind_of(tree) for tree in trees.values()]
        known = [name in accepted for name in trees]
        excess = np.array([accepted.get(name, assumed(tree)) - 1 for name, tree in trees.items()])
        for kind in KINDS:  # what is assumed goes along with what was measured of its kind
            here = [i for i, k in enumerate(kinds) if k == kind and known[i]]
            ratio = np.mean([excess[i] / (assumed(trees[self.names[i]]) - 1) for i in here]) if here else 1.0
            for i, k in enumerate(kinds):
                excess[i] *= ratio if k == kind and not known[i] else 1.0
        self._excess = np.clip(excess, 1e-3, [tree.depth for tree in trees.values()])
        self._own = np.array([_OWN[one] for one in known])
        self._kind = np.array([KINDS.index(kind) for kind in kinds], np.int64)
        self._rounds, self._more = np.zeros(len(trees)), np.zeros(len(trees))  # seen: rounds, tokens beyond the first
        measured = [any(one for one, k in zip(known, kinds, strict=True) if k == kind) for kind in KINDS]
        self._prior = np.array([_prior(one) for one in measured])  # [kinds, factors]
        self._evidence = np.zeros_like(self._prior)  # log-likelihood of what was seen
        most = _FACTORS[:, None] * self._excess
        self._passed, self._stopped = np.log(most / (1 + most)), -np.log1p(most)  # [factors, trees]

    def see(self, tree: str, tokens: int, images: int) -> None:
        """Learns that a round of a tree brought so many images so many tokens in all."""
        self.forget(1)
        at, more = self.names.index(tree), max(tokens - images, 0)
        self._rounds[at] += images
        self._more[at] += more
        self._evidence[self._kind[at]] += more * self._passed[:, at] + images * self._stopped[:, at]

    def forget(self, rounds: int) -> None:
        """Lets so many rounds pass."""
        kept = math.exp(-rounds / _MEMORY)
        self._rounds *= kept
        self._more *= kept
        self._evidence *= kept

    def tokens(self) -> np.ndarray:
        """float64, in the order of `names`: tokens that a round of an image is expected to bring."""
        shared = (1 - _HEARSAY) * self._evidence + _HEARSAY * self._evidence.sum(0)
        likely = self._prior * np.exp(_ALIKE * (shared - shared.max(1, keepdims=True)))
        # An expectation is one of the mean: nothing seen must leave it as it is.
        factor = likely @ _FACTORS / likely.sum(1) / (self._prior @ _FACTORS)
        return 1 + (self._own * factor[self._kind] * self._excess + self._more) / (self._own + self._rounds)


def _prior(measured: bool) -> np.ndarray:
    """How likely each of `_FACTORS` is before anything was seen."""
    if not measured:
        weights = np.sqrt(np.minimum(_FACTORS, 1 / _FACTORS))
        return weights / weights.sum()
    others = (1 - _TRUST) / (len(_FACTORS) - 1)
    return np.where(_FACTORS == 1, _TRUST, others)


class Auto:
    """Chooses among trees and plain decoding; what it has seen serves all that ask it, on any thread.

    `candidates` are trees by name, `accepted` the tokens a round that were measured with this model by tree name.
    Trees whose draft engine's cost is not known are left out.
    """

    def __init__(self, costs: Costs, candidates: Mapping[str, TreeInfo], accepted: Mapping[str, float]) -> None:
        known = {name: (info.tree(), info.engine) for name, info in candidates.items() if costs.knows(info.engine)}
        self._costs, self._trees = costs, list(known.values())
        self._outlook = Outlook({name: tree for name, (tree, _) in known.items()}, accepted)
        self._names = [NO_TREE, *known]
        whole = np.array([name in costs.info.rounds for name in self._names])
        self._token = np.where(whole, 0.0, costs.info.token)  # a whole round has the cost of its tokens in it
        self._drift = Drift([_DOUBT[bool(one)] for one in whole])
        self._milliseconds: dict[int, np.ndarray] = {}  # by busy slots
        # The newest choice, the tree that was current then, and what was expected; None once enough was seen since.
        self._last: tuple[str | None, Round, Choice] | None = None
        self._unheeded = 0  # rounds seen since the newest choice
        self._plain_rounds = 0
        self._lock = threading.Lock()

    def choose(self, exact: int, plain: int, current: str | None) -> Choice:
        """The tree for a round of `exact` images of that rule and `plain` images of plain decoding, which gain one
        token a round whatever the tree. It stays with `current` unless another is 5 % faster or plain decoding is
        faster at all."""
        with self._lock:
            if not exact or not self._trees:
                return Choice(NO_TREE, "no image is drawn with exact" if self._trees else "no tree's cost is known")
            if self._last is not None and self._last[0] == current and self._last[1].is_of(exact, plain):
                return self._last[2]
            coming = self._expect(exact, plain)
            choice = self._choose(coming, current)
            self._last, self._unheeded = (current, coming, choice), 0
            return choice

    def rival(self, exact: int, plain: int, current: str, turn: int) -> str | None:
        """What else to look at for such images, so that it is known what it takes now: in even turns plain decoding, in
        odd ones the best other tree; while plain decoding is the current choice, always the best tree. None where it
        would cost too much."""
        with self._lock:
            if not exact or not self._trees:
                return None
            coming = None if self._last is None else self._last[1]  # what the choice beside it went by
            if coming is None or not coming.is_of(exact, plain):
                coming = self._expect(exact, plain)
            speeds = coming.speeds
            at = self._names.index(current) if current in self._names else 0
            others = speeds.copy()
            others[[0, at]] = 0
            other = 0 if at and turn % 2 == 0 else int(np.argmax(others))
            return self._names[other] if speeds[other] > _RIVAL * speeds[at] and other != at else None

    def observe(self, tree: str, tokens: int, rounds: int, busy: int = 0, milliseconds: float | None = None) -> None:
        """Learns what images of `exact` have accepted in a round: `tokens` in all, of so many images; and that the
        round of all `busy` images took so long, where that is like the next one's time."""
        with self._lock:
            if milliseconds is not None and tree in self._names:
                at = self._names.index(tree)
                expected = self._times(busy)[at] + self._token[at] * (tokens + busy - rounds)
                self._drift.see(at, milliseconds / expected)
            if tree in self._outlook.names:
                self._outlook.see(tree, tokens, rounds)
                self._unheeded += 1
            else:
                self._plain_rounds += 1
                if self._plain_rounds < _PATIENCE:
                    return
                self._outlook.forget(self._plain_rounds)
                self._plain_rounds, self._unheeded = 0, _HELD
            if self._unheeded >= _HELD:
                self._last = None

    def expected(self) -> dict[str, float]:
        """Tokens that a round of an image is expected to bring now, by tree."""
        with self._lock:
            return dict(zip(self._outlook.names, self._outlook.tokens().tolist(), strict=True))

    def speeds(self, busy: int) -> dict[str, float]:
        """How fast each tree is expected to draw so many images of `exact`, in speeds of plain decoding."""
        with self._lock:
            speeds = self._expect(busy, 0).speeds
            return dict(zip(self._names[1:], (speeds[1:] / speeds[0]).tolist(), strict=True))

    def _choose(self, coming: Round, current: str | None) -> Choice:
        names, busy, tokens = self._names, coming.exact + coming.plain, coming.tokens
        times, speeds = coming.times, coming.speeds
        at, best = names.index(current) if current in names else 0, int(np.argmax(speeds))
        if speeds[0] > speeds[at]:
            at = 0  # plain decoding is the one to fall back on, without further gain
        chosen = best if speeds[best] > _GAIN * speeds[at] else at
        shown = chosen or 1 + int(np.argmax(speeds[1:]))  # plain decoding is compared with the best tree
        tree = f"about {tokens[shown - 1]:.1f} tokens in {times[shown]:.3g} ms"
        of = "" if busy == 1 else f" for each of {busy} images"
        now = "" if self._costs.info.images else " just now"  # by no `calibrate costs`, which draws images
        measured = f"{of}; costs measured{now} on {self._costs.info.machine}"
        if chosen:
            return Choice(names[chosen], f"{names[chosen]}: {tree}, plain decoding 1 in {times[0]:.3g} ms{measured}")
        why = f"plain decoding: 1 token in {times[0]:.3g} ms, the best tree, {names[shown]}, {tree}{measured}"
        return Choice(NO_TREE, why)

    def _expect(self, exact: int, plain: int) -> Round:
        tokens = self._outlook.tokens()
        gained = exact * np.concatenate([[1.0], tokens]) + plain
        times = (self._times(exact + plain) + self._token * gained) * self._drift.factors()
        return Round(exact, plain, tokens, times, gained / times)

    def _times(self, busy: int) -> np.ndarray:
        """Milliseconds that a round is expected to take, by choice; what each token costs comes on top."""
        if busy not in self._milliseconds:
            calls = [(ROOT, None), *self._trees]
            self._milliseconds[busy] = np.array([
                self._costs.of(tree, engine, busy) if (whole := self._costs.whole(name, busy)) is None else whole
                for name, (tree, engine) in zip(self._names, calls, strict=True)
            ])  # fmt: skip
        return self._milliseconds[busy]
