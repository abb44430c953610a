"""Rules by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..errors import CascadeError
from .base import Rule
from .exact import Exact
from .strict import Strict

# `ar` is plain decoding, which has no tree and so no acceptance rule; the pipeline knows it by name.
PLAIN = "ar"
_RULES: Mapping[str, Callable[[], Rule]] = {
    "exact": Exact,
    "strict": Strict,
    "strict-topk": lambda: Strict("strict-topk", None),
}
RULE_NAMES: tuple[str, ...] = (PLAIN, *_RULES)


def get_rule(name: str) -> Rule:
    """The acceptance rule called `name`. Raises CascadeError when there is none."""
    if name not in _RULES:
        raise CascadeError(f"unknown rule {name!r}: choose one of {', '.join(RULE_NAMES)}.")
    return _RULES[name]()


