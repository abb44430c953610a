"""Thresholds of `cascade` from the similarities that a model really shows, and which of them are worth it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..runtime.errors import CascadeError
from .watch import Similarities

QUANTILES = (0.5, 0.7, 0.8, 0.9, 0.95)
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
    """A candidate as measured: speed against plain decoding and quality, `lost` in accuracy with its 95 % interval."""

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

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def quantile(values: dict[int, list[float]], share: float) -> float | None:
    """The cosine that `share` of all recorded ones lie below, within 0 ... 1; None when nothing was recorded."""
    every = [value for depth in values.values() for value in depth]
    return None if not every else float(np.clip(np.quantile(every, share), 0.0, 1.0))


def candidates(
    seen: Similarities, children: str, quantiles: Sequence[float] = QUANTILES,
    draw_quantiles: Sequence[float] = DRAW_QUANTILES,
) -> list[Candidate]:  # fmt: skip
    """Breadth alone, depth alone and both at each quantile, the draw at each of its own where it was recorded; and the
    rule with all of them switched off.

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
    for share in draw_quantiles:
        tau_draw = quantile(seen.draw, share)
        if tau_draw is None:
            continue
        # Its prices need no further guard or cap.
        rule = f"cascade:{how}tau_pos=off,tau_seq=off,tau_draw={tau_draw:.4f},cap=0,guard=0"
        if all(candidate.rule != rule for candidate in found):  # several quantiles below 0 are all 0
            found.append(Candidate(rule, "draw", share))
    return found


def operating_point(points: Sequence[Point], tolerance: float) -> Point:
    """The fastest point whose accuracy is not shown to lose more than `tolerance` (0.02: two points in a hundred).

    Judged by the mean loss; a point whose interval reaches far beyond it needs more pictures. Raises CascadeError
    when the points carry no accuracy.
    """
    judged = [point for point in points if point.lost is not None]
    if not judged:
        raise CascadeError("nothing was judged, so there is no operating point: give a --judge.")
    good = [point for point in judged if (point.lost or 0.0) <= tolerance or point.signals == "none"]
    return max(good, key=lambda point: point.speed_up)
