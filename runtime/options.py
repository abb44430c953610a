"""How an image is drawn: one set of options for `generate`, `stream`, `submit` and the command line."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import wraps
from typing import Any, TypedDict

from .bundle import Manifest
from .errors import CascadeError
from .nearest import meant
from .rules import Rule
from .sampling import Sampling
from .schema import short

_LEAST_TEMPERATURE = 1e-3
_LARGEST_SCALE = 1000  # of guidance and temperature: float32 and half precisions hold logits that far
_MOST = 1 << 62
_LONGEST_NAME = 1000  # of rules, with their settings, and trees


class DrawSettings(TypedDict, total=False):
    """The fields of `DrawOptions` as keyword arguments."""

    guidance_scale: float | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    rule: str | Rule | None
    tree: str | None
    timeout: float | None


@dataclass(frozen=True)
class DrawOptions:
    """Settings of one image; None means the bundle's default.

    guidance_scale: at least 0, 1 switches guidance off. temperature: 0 is greedy. top_k 0 and top_p 1 switch the cuts
    off. rule: an acceptance rule by name ("cascade:tau_pos=0.9") or as an object, default `exact`. tree: one of the
    bundle's, or one of guesses ("jacobi_32"), or "auto" (default): with `exact` the fastest for the images that are
    being drawn, with other rules the bundle's first that fits. timeout: seconds from the request to the finished image.
    """

    guidance_scale: float | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    rule: str | Rule | None = None
    tree: str | None = None
    timeout: float | None = None

    def __post_init__(self) -> None:
        for name in ("guidance_scale", "temperature", "top_p", "timeout"):
            _check_number(name, getattr(self, name), numbers.Real, "a number")
        _check_number("top_k", self.top_k, numbers.Integral, "a whole number")
        if self.tree is not None and not _is_name(self.tree):
            raise CascadeError(f"tree must be the name of one of the bundle's trees, not {short(self.tree)}.")
        is_rule = hasattr(self.rule, "decide") and not isinstance(self.rule, type)
        if not (self.rule is None or is_rule or _is_name(self.rule)):
            raise CascadeError(f"rule must be a rule's name or a rule, not {short(self.rule)}.")
        if self.timeout is not None and not self.timeout > 0:
            raise CascadeError("timeout must be a number of seconds above 0.")

    def updated(self, settings: Mapping[str, Any]) -> DrawOptions:
        """With `settings` in place of the fields that they name. Raises CascadeError for a name that is no option."""
        _check_names(settings)
        return replace(self, **settings)

    def over(self, defaults: DrawOptions) -> DrawOptions:
        """These options, and those of `defaults` where these are None."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(defaults, **{name: value for name, value in given.items() if value is not None})


def _check_names(settings: Iterable[str]) -> None:
    """Raises CascadeError for a name that is no option, with the option that was meant."""
    known = [field.name for field in fields(DrawOptions)]
    for name in settings:
        if name not in known:
            near = meant(str(name), known)
            raise CascadeError(f"unknown option {short(name)}{near}: choose among {', '.join(known)}.")


_init = DrawOptions.__init__


@wraps(_init)
def _checked_init(self: DrawOptions, *values: Any, **settings: Any) -> None:
    _check_names(settings)
    _init(self, *values, **settings)


DrawOptions.__init__ = _checked_init  # Python's own TypeError names no other option


def as_options(options: DrawOptions | None, settings: Mapping[str, Any]) -> DrawOptions:
    """`settings` laid over `options`. Raises CascadeError for what are no options."""
    if options is not None and not isinstance(options, DrawOptions):
        raise CascadeError(f"options must be DrawOptions, not {short(options)}.")
    return (options or DrawOptions()).updated(settings)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST_NAME


def _check_number(name: str, value: Any, kind: type, what: str) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, kind):
        raise CascadeError(f"{name} must be {what}, not {short(value)}.")
    try:
        size = float(value)
    except OverflowError:  # whole numbers and fractions are of any size, and no float holds them
        size = math.inf
    if isinstance(value, numbers.Rational) and abs(size) > _MOST:
        raise CascadeError(f"{name} must be {what} of ordinary size.")


def check_sampling(manifest: Manifest, options: DrawOptions) -> Sampling:
    """The options' settings over the bundle's defaults. Raises CascadeError for what the bundle cannot serve."""
    defaults = manifest.sampling
    sampling = Sampling(
        float(_given(options.guidance_scale, defaults.guidance_scale)),
        float(_given(options.temperature, defaults.temperature)),
        int(_given(options.top_k, defaults.top_k)),
        float(_given(options.top_p, defaults.top_p)),
    )
    kept, most, vocab = manifest.target.top_k, manifest.target.max_top_k, manifest.model.vocab_size
    if not 0 <= sampling.guidance_scale <= _LARGEST_SCALE:
        raise CascadeError(f"guidance_scale must be a number from 0 to {_LARGEST_SCALE} (1 switches guidance off).")
    if sampling.temperature != 0 and not _LEAST_TEMPERATURE <= sampling.temperature <= _LARGEST_SCALE:
        raise CascadeError(f"temperature must be 0 (greedy) or a number from 0.001 to {_LARGEST_SCALE}.")
    if not 0 < sampling.top_p <= 1:
        raise CascadeError("top_p must lie above 0 and at most at 1 (1 switches it off).")
    if sampling.top_k < 0:
        raise CascadeError("top_k must be at least 0 (0 switches it off).")
    if sampling.top_k > most or (sampling.top_k == 0 and kept < vocab and not sampling.greedy):
        asked = "no top_k" if sampling.top_k == 0 else f"top_k {sampling.top_k}"
        raise CascadeError(
            f"{asked} asks for more logits than the {most} that this bundle was built for: "
            f"lower it, or build again with --max-top-k {sampling.top_k or vocab}."
        )
    return sampling


def _given(value: Any, default: Any) -> Any:
    return default if value is None else value
