from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cascade_trt.runtime.noise import NoiseWindow, Stream, gumbel, uniform_of_token, uniforms


def test_known_values() -> None:
    """The numbers are part of the product: a seed's image must not change between versions."""
    np.testing.assert_allclose(
        uniforms(0, 0, Stream.TOKEN, 4), [0.03474190831, 0.01154676080, 0.61195027828, 0.24154922366], rtol=1e-6
    )
    assert uniform_of_token(1, 2, Stream.ACCEPT, 3) == uniform_of_token(1, 2, Stream.ACCEPT, 3)


def test_laws() -> None:
    noise = np.concatenate([gumbel(7, position, Stream.TOKEN, 4096) for position in range(20)])
    assert np.isfinite(noise).all()
    assert stats.kstest(noise, stats.gumbel_r.cdf).pvalue > 0.01
    draws = [uniform_of_token(7, position, Stream.ACCEPT, token) for position in range(40) for token in range(50)]
    assert stats.kstest(draws, "uniform").pvalue > 0.01


def test_streams_positions_and_seeds_are_independent() -> None:
    keys = [(seed, position, stream) for seed in (0, 1) for position in (0, 1) for stream in Stream]
    rows = np.stack([gumbel(*key, 4096) for key in keys])
    correlation = np.corrcoef(rows) - np.eye(len(rows))
    assert np.abs(correlation).max() < 0.08


@given(st.integers(0, 2**63 - 1), st.integers(0, 5000), st.integers(1, 300), st.integers(0, 300))
def test_a_longer_vocabulary_keeps_the_numbers(seed: int, position: int, count: int, more: int) -> None:
    shorter = uniforms(seed, position, Stream.TOKEN, count)
    np.testing.assert_array_equal(shorter, uniforms(seed, position, Stream.TOKEN, count + more)[:count])


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5), st.sampled_from([None, *Stream])), max_size=12))
def test_a_moving_window_equals_fresh_noise(moves: list[tuple[int, int, Stream | None]]) -> None:
    noise = np.full((1, 4, 16), np.nan, np.float32)
    window = NoiseWindow(noise)
    start, end = 0, 24
    for seed, advance, stream in moves:
        start = min(start + advance, end - 1)
        window.fill(0, seed, stream, start, end)
        for row in range(min(4, end - start)):
            wanted = np.zeros(16) if stream is None else gumbel(seed, start + row, stream, 16)
            np.testing.assert_array_equal(noise[0, row], wanted)


def test_a_window_that_is_being_moved_holds_nothing() -> None:
    """Ctrl-C may come when the noise is in its new slot, and what the window says of it is not."""
    noise = np.zeros((2, 4, 16), np.float32)
    window = NoiseWindow(noise)
    window.fill(0, 7, Stream.TOKEN, 0, 24)
    window.fill(1, 8, Stream.TOKEN, 0, 24)
    window.clear(0)
    noise[0] = noise[1]  # and no `move`
    window.fill(0, 7, Stream.TOKEN, 1, 24)
    for row in range(4):
        np.testing.assert_array_equal(noise[0, row], gumbel(7, 1 + row, Stream.TOKEN, 16))
