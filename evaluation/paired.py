"""Two sets drawn from the same prompts and seeds: is one better, and how sure is that?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from ..runtime.errors import CascadeError

_RESAMPLES = 9999


@dataclass(frozen=True)
class Difference:
    """Mean of second - first over pairs, with the bounds of its bootstrap interval."""

    mean: float
    low: float
    high: float
    pairs: int


def compare(first: np.ndarray, second: np.ndarray, confidence: float = 0.95, seed: int = 0) -> Difference | None:
    """Paired difference second - first of scores [n]; pairs with a NaN on either side are left out.

    Percentile bootstrap over pairs (Efron 1979, scipy.stats.bootstrap): a pair is resampled whole, so what a prompt
    or a seed makes hard for both sides cancels. None when no pair is left. Raises CascadeError for unequal lengths.
    """
    if first.shape != second.shape:
        raise CascadeError(f"{len(first)} and {len(second)} images cannot be paired: draw both from equal prompts.")
    change = second - first
    change = change[~np.isnan(change)]
    if not len(change):
        return None
    mean = float(change.mean())
    return Difference(mean, *interval(change, np.mean, confidence, seed), len(change))


def interval(
    values: np.ndarray, statistic: Callable[..., Any], confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Bounds of the percentile bootstrap interval of a statistic (np.mean, np.median) of values [n]."""
    if np.ptp(values) == 0:  # every resample is the same
        return float(values[0]), float(values[0])
    bounds = bootstrap(
        (values,), statistic, n_resamples=_RESAMPLES, confidence_level=confidence, method="percentile", batch=1000,
        rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return float(bounds.low), float(bounds.high)
