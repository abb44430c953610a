"""Rules by name: `strict`, or with settings `cascade:tau_pos=0.9,tau_seq=off`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from ..errors import CascadeError
from ..nearest import meant
from .base import Rule
from .cascade import Cascade
from .cool import Cool
from .exact import Exact
from .gsd import Gsd
from .lantern import Lantern, LanternPlus, Neighbours
from .relaxed import Relaxed
from .states import StateTable
from .strict import Strict
from .swap import Swap

# `ar` is plain decoding, which has no tree and so no acceptance rule; the pipeline knows it by name.
PLAIN = "ar"
_FIXED: Mapping[str, Callable[[], Rule]] = {
    "exact": Exact,
    "strict": Strict,
    "strict-topk": lambda: Strict("strict-topk", None),
}
_RELAXED: Mapping[str, type[Relaxed]] = {rule.kind: rule for rule in (Cascade, Swap, Lantern, LanternPlus, Gsd, Cool)}
RULE_NAMES: tuple[str, ...] = (PLAIN, *_FIXED, *_RELAXED)


def get_rule(text: str, neighbours: np.ndarray | None = None, states: StateTable | None = None) -> Rule:
    """The acceptance rule that `text` spells.

    The bundle's tables: neighbours int [V, K] is for LANTERN, states for swap. Raises CascadeError
    for an unknown rule or setting, a value out of range, or a missing table.
    """
    kind, colon, settings = text.partition(":")
    if kind in _FIXED:
        if colon:
            raise CascadeError(f"rule {kind} has no settings: leave {settings!r} away.")
        return _FIXED[kind]()
    check_rule_name(kind)
    if kind == PLAIN:
        raise CascadeError(f"{PLAIN} is plain decoding, which has no acceptance rule and no settings: leave them away.")
    made = _RELAXED[kind]
    values = _parse(made, settings) if colon else {}
    if issubclass(made, Neighbours):
        values["table"] = neighbours
    elif made is Swap:
        values["states"] = states
    return made(**values)


def over(text: str, point: str | None) -> str:
    """The rule that `text` spells with its settings laid over those of an operating point, a rule of the same kind."""
    kind, colon, settings = text.partition(":")
    if point is None or point == kind:
        return text
    if not colon:
        return point
    given = {part.partition("=")[0].strip() for part in settings.split(",")}
    kept = [part for part in point.partition(":")[2].split(",") if part.partition("=")[0].strip() not in given]
    return f"{kind}:{','.join([*kept, settings])}"


def check_rule_name(text: str) -> None:
    """Raises CascadeError when `text` does not begin with the name of a rule."""
    kind = text.partition(":")[0]
    if kind not in RULE_NAMES:
        raise CascadeError(f"unknown rule {kind!r}{meant(kind, RULE_NAMES)}: choose one of {', '.join(RULE_NAMES)}.")


def _parse(made: type[Relaxed], settings: str) -> dict[str, Any]:
    """Keyword arguments from "tau_pos=0.9,tau_seq=off"."""
    known = {field.name.rstrip("_"): field for field in fields(made) if field.compare}
    values: dict[str, Any] = {}
    for part in settings.split(","):
        name, equals, word = (piece.strip() for piece in part.partition("="))
        if name not in known or not equals:
            near = meant(name, known) if name not in known else ""
            raise CascadeError(
                f"rule {made.kind} cannot read {part.strip()!r}{near}: write setting=value with one of "
                f"{', '.join(known)}."
            )
        if known[name].name in values:
            raise CascadeError(f"rule {made.kind} has {name} twice: give it once.")
        values[known[name].name] = _value(made.kind, name, word, known[name].default)
    return values


def _value(kind: str, name: str, word: str, default: Any) -> Any:
    """The word as the type that the setting's default has."""
    if isinstance(default, bool):
        if word not in ("on", "off"):
            raise CascadeError(f"rule {kind}: {name} must be on or off, not {word!r}.")
        return word == "on"
    if isinstance(default, str):
        return word
    if word == "off" and name.startswith("tau"):
        return None
    try:
        return int(word) if isinstance(default, int) else float(word)
    except ValueError:
        what = "a whole number" if isinstance(default, int) else "a number"
        raise CascadeError(f"rule {kind}: {name} must be {what}, not {word!r}.") from None
