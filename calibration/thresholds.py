"""Thresholds of `cascade` and `swap` from the similarities that a model really shows, and which are worth it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

import numpy as np

from ..runtime.errors import CascadeError
from .watch import Similarities

QUANTILES = (0.5, 0.7, 0.8, 0.9, 0.95)
_UP_TO, _EPS = 3, 1e-6
DRAW_QUANTILES = (0.1, 0.2, 0.3, 0.5, 0.7)  # of draws that were not drafted most have a cheap stand-in


@dataclass(frozen=True)
class Candidate:
    """A rule to try. `quantile` is the share of the recorded values below its thresholds (None: plain `base`); the
    thresholds themselves stay within 0 ... 1."""

    rule: str
    signals: str  # "none", "breadth", "depth", "both" or "draw"
    quantile: float | None


@dataclass(frozen=True)
class Point:
    """A candidate as measured: speed against plain decoding and quality, `lost` in accuracy with its 95 % interval,
    of so many `images`.

    The interval's upper end counts one more image that was lost, the lower one that was won: so few images that all
    agree are not taken for certainty.
    """

    rule: str
    signals: str
    quantile: float | None
    speed_up: float
    tau: float
    relaxed_share: float
    accuracy: float | None
    lost: float | None
    lost_low: float | None
    lost_high: float | None
    images: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def quantile(values: dict[int, list[float]], share: float) -> float | None:
    """The cosine that `share` of all recorded ones lie below, within 0 ... 1; None when nothing was recorded."""
    every = [value for depth in values.values() for value in depth]
    return None if not every else float(np.clip(np.quantile(every, share), 0.0, 1.0))


def cascade_candidates(
    seen: Similarities, children: str, quantiles: Sequence[float] = QUANTILES
) -> list[Candidate]:
    """Breadth alone, depth alone and both at each quantile; and the rule with both switched off.

    Thresholds by quantile carry from model to model, absolute cosines do not: hidden states point the same way to
    a different degree in each.
    """
    how = "" if children == "sampled" else f"children={children},"
    found = [Candidate(f"cascade:{how}tau_pos=off,tau_seq=off", "none", None)]
    for share in quantiles:
        pos, seq = quantile(seen.breadth, share), quantile(seen.depth, share)
        for signals, tau_pos, tau_seq in (("breadth", pos, None), ("depth", None, seq), ("both", pos, seq)):
            if (tau_pos is None) == (signals != "depth") or (tau_seq is None) == (signals != "breadth"):
                continue  # that signal was never seen: a chain has no siblings
            spelt = [f"tau_{name}={'off' if tau is None else f'{tau:.4f}'}"
                     for name, tau in (("pos", tau_pos), ("seq", tau_seq))]  # fmt: skip
            found.append(Candidate(f"cascade:{how}{','.join(spelt)}", signals, share))
    return found


def swap_candidates(seen: Similarities, quantiles: Sequence[float] = DRAW_QUANTILES) -> list[Candidate]:
    """The rule at each quantile of 1 less the cheapest child's price, and switched off."""
    found = [Candidate("swap:tau_draw=off", "none", None)]
    for share in quantiles:
        tau_draw = quantile(seen.draw, share)
        if tau_draw is None:
            continue
        rule = f"swap:tau_draw={tau_draw:.4f}"
        if all(candidate.rule != rule for candidate in found):  # several quantiles below 0 are all 0
            found.append(Candidate(rule, "draw", share))
    return found


def least_images(tolerance: float) -> int:
    """Images that can show a loss of at most `tolerance`, if none of them is lost. With one more that is lost, up to
    three of as many are with a probability of 97.5 %. Raises CascadeError for a tolerance of 0."""
    if tolerance <= 0:
        raise CascadeError("no number of images can show that nothing is lost: give a --tolerance above 0.")
    return max(2, ceil(round(_UP_TO / tolerance, 6)) - 1)


def operating_point(points: Sequence[Point], tolerance: float) -> Point:
    """The fastest point that is shown to lose at most `tolerance` of accuracy (0.02: two points in a hundred): the
    upper end of its interval says so, or it relaxes nothing (`signals` "none").

    Raises CascadeError when the points carry no accuracy, or more images could show one that is faster than all of
    those: it says how many.
    """
    judged = [point for point in points if point.lost is not None]
    if not judged:
        raise CascadeError("nothing was judged, so there is no operating point: give a --judge.")
    shown = [point for point in judged if point.signals == "none" or _high(point) <= tolerance + _EPS]
    best = max(shown, key=lambda point: point.speed_up, default=None)
    if best is not None and best.signals != "none":
        return best
    rest = [point for point in judged if point not in shown and (best is None or point.speed_up > best.speed_up)]
    unclear = [point for point in rest if (point.lost_low or 0.0) <= tolerance]
    if unclear:
        images = min(_images_needed(point, tolerance) for point in unclear)
        raise CascadeError(
            f"{unclear[0].images} image{'s' * (unclear[0].images != 1)} are too few to tell which thresholds lose at "
            f"most {tolerance:g} of accuracy: nothing was written, give --num-images {images} or a larger --tolerance."
        )
    if best is None:
        raise CascadeError(f"every candidate loses more than {tolerance:g} of accuracy: give a larger --tolerance.")
    return best


def _high(point: Point) -> float:
    return 1.0 if point.lost_high is None else point.lost_high


def _images_needed(point: Point, tolerance: float) -> int:
    """Images with which the interval, whose width goes with the root of their number, would end at the tolerance."""
    lost, low = point.lost or 0.0, point.lost_low or 0.0
    reach = _high(point) - lost if lost < tolerance else lost - low
    ratio = reach / max(abs(tolerance - lost), 1e-3)
    images = max(point.images * ratio**2, point.images + 1, least_images(tolerance) if tolerance > 0 else 1)
    step = 10 ** max(0, len(str(int(images))) - 2)  # two digits are as much as can be said
    return ceil(images / step) * step
