"""Token for token, but for ties: comparing `exact` with plain decoding."""

from __future__ import annotations

import numpy as np
import pytest

from cascade_trt.runtime import loop
from cascade_trt.runtime.noise import Stream
from cascade_trt.runtime.rules import Draws
from cascade_trt.runtime.rules.exact import draw_token


def watch_leads(patch: pytest.MonkeyPatch) -> dict[tuple[int, int], float]:
    """By how much the drawn token leads the second in plain decoding, for each (seed, position)."""
    leads: dict[tuple[int, int], float] = {}

    def watched(ids: np.ndarray, logits: np.ndarray, draws: Draws) -> int:
        second, first = np.sort(logits + draws.gumbel(Stream.TOKEN, ids))[-2:]
        leads[draws.seed, draws.position] = float(first - second)
        return draw_token(ids, logits, draws)

    patch.setattr(loop, "draw_token", watched)
    return leads


def same_but_for_ties(
    codes: np.ndarray, expected: np.ndarray, seed: int, leads: dict[tuple[int, int], float]
) -> None:
    """Equal tokens; where they part, the two likeliest were a tie in float32.

    A call with one node and a call with a tree add the same numbers in another order, which moves a score of 10
    by some 5e-6. One draw in about 200,000 is closer than that.
    """
    apart = np.flatnonzero(codes != expected)
    if len(apart):
        assert leads[seed, int(apart[0])] < 1e-5, f"seed {seed} parts at position {apart[0]}"
