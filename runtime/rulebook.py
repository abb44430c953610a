"""Which rule and which tree a request means: names, the bundle's operating points and its tables."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from .bundle import Manifest, TreeInfo
from .errors import CascadeError
from .noise import Stream
from .rules import LOG_Q, Rule, get_rule
from .rules.base import NEEDS
from .rules.exact import Exact
from .rules.registry import PLAIN, over
from .rules.states import StateTable
from .rules.swap import Swap
from .sampling import Sampling
from .tables import open_neighbours, open_states
from .tree import AUTO, JACOBI


@dataclass(frozen=True)
class Chosen:
    """A rule (None: plain decoding), what to draw with (a tree's name or file, `auto`, None), and why."""

    rule: Rule | None
    tree: str | None
    why: str


class Rulebook:
    """The acceptance rules that a bundle can be drawn with. Tables are read when a rule first needs them."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder, self._manifest = folder, manifest

    def rule(self, name: str) -> Rule:
        """The rule `name` (not `ar`) with this bundle's tables. Settings in the name are laid over the bundle's
        operating point, which is laid over the rule's defaults. Raises CascadeError."""
        kind = name.partition(":")[0]
        states = self._states if kind == Swap.kind else None  # read whole: not for those who need none
        return get_rule(over(name, self._manifest.rules.get(kind)), self._neighbours, states)

    def choose(self, rule: str | Rule | None, tree: str | None, sampling: Sampling) -> Chosen:
        """What a caller's rule and tree mean. Raises CascadeError for pairs that do not fit.

        Without a tree, or with `auto`, the images of `exact` get `auto`: they do not depend on the tree, so it may be
        chosen anew for every round. Those of other rules depend on it: they get the first of the bundle's trees that
        fits the rule; for a rule that compares siblings trees that have some come first, and of those the ones that the
        drafter drafts whole.
        """
        manifest = self._manifest
        named = None if tree == AUTO else tree
        if rule is None:
            rule = "exact"
        if rule == PLAIN:
            if named is not None:
                manifest.tree(named)  # a misspelt tree is told, even where it plays no part
            return Chosen(None, None, "plain decoding was asked for")
        rule = self.rule(rule) if isinstance(rule, str) else _checked(rule)
        if named is None:
            if isinstance(rule, Exact):
                return Chosen(rule, AUTO, "")
            first = self._first_for(rule, sampling)
            return Chosen(rule, first, f"{first}: the bundle's first tree for {rule.name.partition(':')[0]}")
        if (reason := self._unfit(rule, manifest.tree(named), sampling)) is not None:
            raise CascadeError(reason)
        return Chosen(rule, named, f"{named}: it was asked for")

    def _first_for(self, rule: Rule, sampling: Sampling) -> str:
        """The first tree that fits a rule; where none does, the first one's reason is raised."""

        def rank(info: TreeInfo) -> tuple[bool, bool]:
            return rule.compares_siblings and not info.tree().has_siblings, JACOBI in info.sources

        trees = sorted(self._manifest.trees or [self._manifest.tree(None)], key=rank)
        reasons = [self._unfit(rule, info, sampling) for info in trees]
        if None not in reasons:
            raise CascadeError(str(reasons[0]))
        return trees[reasons.index(None)].name

    def _unfit(self, rule: Rule, info: TreeInfo, sampling: Sampling) -> str | None:
        """Why a rule cannot be used on a tree, if so."""
        if LOG_Q in rule.needs and JACOBI in info.sources:
            whole = [other.name for other in self._manifest.trees if JACOBI not in other.sources]
            use = "build the bundle with --drafter and --tree chain_7"
            if whole:
                use = f"use a tree that is drafted whole ({', '.join(whole)})"
            coupled = ", children=coupled" if getattr(rule, "children", "coupled") != "coupled" else ""
            return (
                f"rule {rule.name} tests nodes against the drafter's distribution, which the guesses of the tree "
                f"{info.name} do not have: {use}{coupled}, or rule exact."
            )
        at_random = rule.noise not in (None, Stream.TOKEN) and not sampling.greedy
        if info.dynamic is not None and at_random:
            return (
                f"rule {rule.name} tests children that were drawn at random, and of those the dynamic tree "
                f"{info.name} keeps only the likeliest: use a static tree, rule exact or strict-topk, or children=topk."
            )
        return None

    @cached_property
    def _neighbours(self) -> np.ndarray | None:
        """The table for LANTERN, int [V, K], mapped from the bundle's file."""
        return open_neighbours(self._folder, self._manifest)

    @cached_property
    def _states(self) -> StateTable | None:
        """The table for swap."""
        return open_states(self._folder, self._manifest)


def _checked(rule: Rule) -> Rule:
    """A rule object of the caller's. Raises CascadeError when it is not one."""
    missing = [name for name in ("name", "noise", "needs", "compares_siblings", "decide") if not hasattr(rule, name)]
    if missing:
        raise CascadeError(f"the rule {rule!r} has no {', '.join(missing)}: see docs/adding-a-model.md.")
    if unknown := set(rule.needs) - NEEDS:
        raise CascadeError(f"rule {rule.name} needs {sorted(unknown)}: choose among {', '.join(sorted(NEEDS))}.")
    return rule
