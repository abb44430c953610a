"""Token for token, but for ties: comparing `exact` with plain decoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from cascade_trt.runtime import loop
from cascade_trt.runtime.lane import Lane
from cascade_trt.runtime.pipeline import Output, Pipeline
from cascade_trt.runtime.sampling import kept
from cascade_trt.runtime.slots import Accepted, Sequences, occupied


def watch_leads(patch: pytest.MonkeyPatch) -> dict[tuple[int, int], float]:
    """By how much the drawn token leads the second in plain decoding, relative to the largest logit (or 1, if that is
    larger), for each (seed, position) that is not forced.

    The graph draws; on the CPU its logits can be read although nobody fetched them. Position 0 is drawn by the call
    on the prefix, which is the same one for every rule.
    """
    leads: dict[tuple[int, int], float] = {}
    accept = loop.accept

    def watched(lane: Lane, sequences: Sequences) -> dict[int, Accepted | None]:
        for slot, sequence in occupied(sequences):
            if sequence.plan.forced[sequence.done] >= 0:
                continue
            greedy = sequence.sampling.greedy
            count = 2 if greedy else kept(lane.logits[slot, 0], sequence.sampling)
            ids, logits = lane.kept_ids[slot, 0, :count], lane.logits[slot, 0, :count]
            scores = logits + lane.noise[slot, 0, ids]
            assert lane.drawn[slot, 0] == ids[scores.argmax()]  # these are the scores that the graph drew by
            second, first = np.sort(scores)[-2:] if count > 1 else (-np.inf, 0.0)
            leads[sequence.seed, sequence.done] = float(first - second) / max(1.0, float(np.abs(logits).max()))
        return accept(lane, sequences)

    patch.setattr(loop, "accept", watched)
    return leads


def same_but_for_ties(
    codes: np.ndarray, expected: np.ndarray, seed: int, leads: dict[tuple[int, int], float],
    positions: np.ndarray | None = None,
) -> None:  # fmt: skip
    """Equal tokens; where they part, the two likeliest were a tie in float32.

    `positions` int [n] are the codes' places in the sequence; None: 0 ... n - 1, nothing is forced.

    A call with one node and a call with a tree add the same numbers in another order, which moves each score by up
    to 2.6e-6 of the largest, and so a lead by twice that. One draw in about 10,000 is closer than the limit.
    """
    apart = np.flatnonzero(codes != expected)
    if len(apart):
        position = int(apart[0] if positions is None else positions[apart[0]])
        assert leads[seed, position] < 1.5e-5, f"seed {seed} parts at position {position}"


class PlainImages:
    """The images of plain decoding for seeds 0, 1, ...: that of seed s is drawn from row s of the features."""

    def __init__(self, pipe: Pipeline, features: dict[str, np.ndarray], **settings: Any) -> None:
        self.pipe, self.features, self.settings = pipe, features, settings
        with pytest.MonkeyPatch.context() as patch:
            self._leads = watch_leads(patch)
            seeds = range(len(features["features"]))
            self.codes = pipe.generate(**features, seed=seeds, rule="ar", **settings).codes

    def draw(self, seeds: Sequence[int], tree: str, rule: str = "exact") -> Output:
        """The same images in another way; they are compared."""
        given = {name: rows[list(seeds)] for name, rows in self.features.items()}
        output = self.pipe.generate(**given, seed=list(seeds), rule=rule, tree=tree, **self.settings)
        self.check(output)
        return output

    def check(self, output: Output) -> None:
        """Compares an output's images with those of their seeds."""
        for codes, seed in zip(output.codes, output.seeds, strict=True):
            positions = self.pipe.manifest.model.plan.code_positions
            same_but_for_ties(codes, self.codes[seed], seed, self._leads, positions)

    def sequence(self, seed: int) -> np.ndarray:
        """int64 [length]: the tokens of an image with those that are forced."""
        plan = self.pipe.manifest.model.plan
        tokens = plan.forced.copy()
        tokens[plan.code_positions] = self.codes[seed]
        return tokens
