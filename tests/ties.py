"""Token for token, but for ties: comparing `exact` with plain decoding."""

from __future__ import annotations

import numpy as np
import pytest

from cascade_trt.runtime import loop
from cascade_trt.runtime.lane import Lane
from cascade_trt.runtime.sampling import kept
from cascade_trt.runtime.slots import Accepted, Sequences, occupied


def watch_leads(patch: pytest.MonkeyPatch) -> dict[tuple[int, int], float]:
    """By how much the drawn token leads the second in plain decoding, relative to the largest logit (or 1, if that is
    larger), for each (seed, position).

    The graph draws; on the CPU its logits can be read although nobody fetched them. Position 0 is drawn by the call
    on the prefix, which is the same one for every rule.
    """
    leads: dict[tuple[int, int], float] = {}
    accept = loop.accept

    def watched(lane: Lane, sequences: Sequences) -> dict[int, Accepted | None]:
        for slot, sequence in occupied(sequences):
            count = kept(lane.logits[slot, 0], sequence.sampling)
            ids, logits = lane.kept_ids[slot, 0, :count], lane.logits[slot, 0, :count]
            scores = logits + lane.noise[slot, 0, ids]
            assert lane.drawn[slot, 0] == ids[scores.argmax()]  # these are the scores that the graph drew by
            second, first = np.sort(scores)[-2:]
            leads[sequence.seed, sequence.done] = float(first - second) / max(1.0, float(np.abs(logits).max()))
        return accept(lane, sequences)

    patch.setattr(loop, "accept", watched)
    return leads


def same_but_for_ties(codes: np.ndarray, expected: np.ndarray, seed: int, leads: dict[tuple[int, int], float]) -> None:
    """Equal tokens; where they part, the two likeliest were a tie in float32.

    A call with one node and a call with a tree add the same numbers in another order, which moves each score by up
    to 2.6e-6 of the largest, and so a lead by twice that. One draw in about 10,000 is closer than the limit.
    """
    apart = np.flatnonzero(codes != expected)
    if len(apart):
        assert leads[seed, int(apart[0])] < 1.5e-5, f"seed {seed} parts at position {apart[0]}"
