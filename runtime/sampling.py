"""The sampler's distribution: what temperature, top-k and top-p leave of the target's logits.

Order as in LlamaGen: guidance, temperature, top-k, top-p. Guidance and temperature happen inside the target's
graph; here the K largest logits are cut down to the kept ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sampling:
    """Settings of the sampler. temperature 0 is greedy; top_k 0 and top_p 1 switch the cuts off.

    `top_k` must not exceed the bundle's K; 0 means all K, which is the whole vocabulary only if K is.
    """

    guidance_scale: float
    temperature: float
    top_k: int
    top_p: float

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def rows(self) -> int:
        """Rows of an image: the conditional one, and under guidance the unconditional one."""
        return 1 if self.guidance_scale == 1 else 2

    @property
    def engine_temperature(self) -> float:
        """What the engines divide by: 1 when greedy, since an argmax does not depend on it."""
        return self.temperature or 1.0


def kept(logits: np.ndarray, sampling: Sampling) -> int:
    """How many of the logits [K] (largest first) the sampler keeps; at least one.

    top-p keeps a token when the probability before it is at most top_p, so the one that crosses stays.
    """
    if sampling.greedy:
        return 1
    count = min(sampling.top_k or len(logits), len(logits))
    if sampling.top_p < 1:
        p = probabilities(logits[:count])
        before = np.cumsum(p) - p
        count = max(1, int(np.searchsorted(before, sampling.top_p, side="right")))
    return count


def probabilities(logits: np.ndarray) -> np.ndarray:
    """float32 softmax of logits [k] (largest first)."""
    p = np.exp(logits - logits[0])
    return p / p.sum()
