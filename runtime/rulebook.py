"""Which rule and which tree a request means: names, the bundle's operating points and its tables."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np

from .bundle import Manifest
from .errors import CascadeError
from .noise import Stream
from .rules import Rule, get_rule
from .rules.base import NEEDS
from .rules.cascade import Cascade
from .rules.registry import PLAIN
from .rules.states import StateTable
from .sampling import Sampling


class Rulebook:
    """The acceptance rules that a bundle can be drawn with. Tables are read when a rule first needs them."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder, self._manifest = folder, manifest

    def rule(self, name: str) -> Rule:
        """The rule `name` (not `ar`) with this bundle's settings and tables. Raises CascadeError."""
        spelt = self._manifest.rules.get(name, name)
        states = self._states if spelt.startswith(Cascade.kind) else None  # read whole: not for those who need none
        return get_rule(spelt, self._neighbours, states)

    def choose(
        self, rule: str | Rule | None, tree: str | None, sampling: Sampling
    ) -> tuple[Rule | None, str | None]:
        """The rule (None for plain decoding) and the tree's name. Raises CascadeError for pairs that do not fit."""
        manifest = self._manifest
        if rule is None:
            rule = "exact" if manifest.trees else PLAIN
        if rule == PLAIN:
            if tree is not None:
                manifest.tree(tree)  # a misspelt tree is told, even where it plays no part
            return None, None
        rule = self.rule(rule) if isinstance(rule, str) else _checked(rule)
        info = manifest.tree(tree)
        at_random = rule.noise not in (None, Stream.TOKEN) and not sampling.greedy
        if info.dynamic is not None and at_random:
            raise CascadeError(
                f"rule {rule.name} tests children that were drawn at random, and of those the dynamic tree "
                f"{info.name} keeps only the likeliest: use a static tree, rule exact or strict-topk, or children=topk."
            )
        return rule, info.name

    @cached_property
    def _neighbours(self) -> np.ndarray | None:
        """The table for LANTERN, int [V, K], mapped from the bundle's file."""
        name = self._manifest.neighbours
        return None if name is None else np.load(self._folder / name, mmap_mode="r")

    @cached_property
    def _states(self) -> StateTable | None:
        """The table for CASCADE's tau_draw."""
        name = self._manifest.states
        return None if name is None else StateTable.load(self._folder / name)


def _checked(rule: Rule) -> Rule:
    """A rule object of the caller's. Raises CascadeError when it is not one."""
    missing = [name for name in ("name", "noise", "needs", "decide") if not hasattr(rule, name)]
    if missing:
        raise CascadeError(f"the rule {rule!r} has no {', '.join(missing)}: see docs/adding-a-model.md.")
    if unknown := set(rule.needs) - NEEDS:
        raise CascadeError(f"rule {rule.name} needs {sorted(unknown)}: choose among {', '.join(sorted(NEEDS))}.")
    return rule
