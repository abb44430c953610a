"""Whether other draws than those that are expected come of rounding, or of a mistake."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..runtime.sampling import Sampling, kept


def may_draw(
    tokens: Sequence[int], ids: np.ndarray, logits: np.ndarray, race: np.ndarray, top_k: int, sampling: Sampling,
    slack: float,
) -> bool:  # fmt: skip
    """Whether `tokens`, the first of a draw or the first and the second, come out where differences of logits are wrong
    by up to `slack`.

    ids int [n] are tokens, the likeliest first, `logits` float [n] theirs, `race` with the noise added; the engine
    keeps the first `top_k` of them, and `sampling` says how many of those the sampler keeps. That number lies between
    two, since the odds of a sum of probabilities change by a factor of at most exp(slack).
    """

    def count(change: float) -> int:
        if sampling.top_p == 1:
            return kept(logits[:top_k], sampling)
        odds = sampling.top_p / (1 - sampling.top_p) * np.exp(change)
        return kept(logits[:top_k], replace(sampling, top_p=float(odds / (1 + odds))))

    fewest, most = count(-slack), count(slack)
    places = [int(np.flatnonzero(ids == token)[0]) if token in ids else -1 for token in tokens]
    best: list[int] = []  # places of the tokens so far
    for at in places:
        rest = [place for place in range(fewest) if place not in best]
        if best and at == best[0]:  # the first comes second where it is kept alone
            return not rest
        is_kept = at >= 0 and (at < most or logits[at] >= logits[most - 1] - slack)
        if not is_kept or (rest and race[at] < race[rest].max() - slack):
            return False
        best.append(at)
    return True
