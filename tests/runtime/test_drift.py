"""Rounds that take longer than their costs say: whose doing is it?"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_trt.runtime.drift import Drift


def relative(drift: Drift) -> np.ndarray:
    return drift.factors() / drift.factors()[0]


def test_nothing_seen_changes_nothing() -> None:
    assert (Drift([50.0, 10.0]).factors() == 1).all()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0.7, 1.6), min_size=3, max_size=3), st.floats(0.5, 2), st.integers(0, 99))
def test_choices_side_by_side_are_told_apart(own: list[float], busy: float, seed: int) -> None:
    """Stretches of rounds in turn, with noise, on a machine whose speed wanders: what is a choice's own is found."""
    drift, rng, now = Drift([20.0] * 3), np.random.default_rng(seed), 0.0
    for number in range(4000):
        now = 0.995 * now + 0.02 * rng.normal()
        drift.see(number // 5 % 3, busy * np.exp(now + 0.05 * rng.normal()) * own[number // 5 % 3])
    np.testing.assert_allclose(relative(drift), np.array(own) / own[0], rtol=0.12)


def test_a_busy_machine_is_mostly_not_the_choices_doing() -> None:
    drift = Drift([50.0, 50.0])
    for _ in range(100):
        drift.see(1, 1.3)
    first, own = drift.factors()
    assert own == pytest.approx(1.3, abs=0.03)
    assert first > 1.15


def test_an_expectation_that_is_doubted_gives_way() -> None:
    factors = []
    for doubt in (5.0, 500.0):
        drift = Drift([doubt, doubt])
        for _ in range(100):
            drift.see(1, 1.5)
        factors.append(relative(drift)[1])
    assert factors[0] > 1.2 > 1.05 > factors[1]


def test_one_long_round_tells_little() -> None:
    drift = Drift([50.0, 50.0])
    drift.see(1, 1e9)
    assert drift.factors().max() < 1.1
