"""Token for token, but for ties: comparing `exact` with plain decoding."""

from __future__ import annotations

import numpy as np
import pytest

from cascade_trt.runtime import loop
from cascade_trt.runtime.noise import Stream
from cascade_trt.runtime.rules import Draws
from cascade_trt.runtime.rules.exact import draw_token


def watch_leads(patch: pytest.MonkeyPatch) -> dict[tuple[int, int], float]:
    """By how much the drawn token leads the second in plain decoding, relative to the largest logit (or 1, if that is
    larger), for each (seed, position)."""
    leads: dict[tuple[int, int], float] = {}

    def watched(ids: np.ndarray, logits: np.ndarray, draws: Draws) -> int:
        second, first = np.sort(logits + draws.gumbel(Stream.TOKEN, ids))[-2:]
        leads[draws.seed, draws.position] = float(first - second) / max(1.0, float(np.abs(logits).max()))
        return draw_token(ids, logits, draws)

    patch.setattr(loop, "draw_token", watched)
    return leads


def same_but_for_ties(codes: np.ndarray, expected: np.ndarray, seed: int, leads: dict[tuple[int, int], float]) -> None:
    """Equal tokens; where they part, the two likeliest were a tie in float32.

    A call with one node and a call with a tree add the same numbers in another order, which moves each score by up
    to 2.6e-6 of the largest, and so a lead by twice that. One draw in about 10,000 is closer than the limit.
    """
    apart = np.flatnonzero(codes != expected)
    if len(apart):
        assert leads[seed, int(apart[0])] < 1.5e-5, f"seed {seed} parts at position {apart[0]}"
