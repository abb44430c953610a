"""Distances against cases worked by hand, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from cascade_trt.evaluation.metrics import accuracy, frechet, precision_recall
from cascade_trt.evaluation.paired import compare
from cascade_trt.runtime.errors import CascadeError


def test_frechet_of_known_gaussians() -> None:
    """Four points at (+-1, +-1) and the same times (2, 3), moved by (3, 4): the covariances are diagonal.

    Unbiased variances are 4/3 of the squared scales: 25 + 4/3 ((2 - 1)^2 + (3 - 1)^2).
    """
    square = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], float)
    assert frechet(square, square * (2, 3) + (3, 4)) == pytest.approx(25 + 4 / 3 * 5)
    assert frechet(square, square) == pytest.approx(0, abs=1e-9)


def test_frechet_turns_with_the_features_and_takes_singular_sets() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(50, 8)), rng.normal(size=(60, 8)) * 2 + 1
    turn, _ = np.linalg.qr(rng.normal(size=(8, 8)))
    assert frechet(first @ turn, second @ turn) == pytest.approx(frechet(first, second))
    assert frechet(first, second) == pytest.approx(frechet(second, first))
    few = first[:3]  # fewer images than features: a singular covariance
    assert frechet(few, few) == pytest.approx(0, abs=1e-6)
    assert frechet(few, few + 1) == pytest.approx(8)


def test_precision_and_recall_of_equal_and_of_disjoint_sets() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(100, 4))
    assert precision_recall(points, points) == (1, 1)
    assert precision_recall(points, points + 100) == (0, 0)
    assert precision_recall(np.zeros((9, 4)), np.zeros((9, 4))) == (1, 1)  # balls of radius 0


def test_precision_and_recall_tell_narrow_from_strange() -> None:
    """On a line: images of one half of the real ones are all good, and miss the other half."""
    real = np.arange(100, dtype=float)[:, None]
    half = real[:50]
    assert precision_recall(real, half, k=1) == (1.0, 0.51)  # 50 reaches 49's neighbour's ball
    assert precision_recall(half, real, k=1) == (0.51, 1.0)


def test_accuracy_leaves_out_what_was_not_asked() -> None:
    assert accuracy(np.array([1, 0, np.nan, 1])) == pytest.approx(2 / 3)
    assert accuracy(np.array([np.nan])) is None


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (np.zeros((5, 2)), np.zeros((5, 3)), "cannot be compared"),
        (np.zeros((1, 2)), np.zeros((5, 2)), "too few"),
        (np.full((5, 2), np.nan), np.zeros((5, 2)), "NaN"),
    ],
)
def test_sets_that_cannot_be_compared(first: np.ndarray, second: np.ndarray, said: str) -> None:
    with pytest.raises(CascadeError, match=said):
        frechet(first, second)


def test_paired_difference() -> None:
    first, second = np.array([1, 0, 0, np.nan, 1]), np.array([1, 1, 0, 1, np.nan])
    found = compare(first, second)
    assert found is not None
    assert (found.mean, found.pairs) == (pytest.approx(1 / 3), 3)
    assert found.low <= found.mean <= found.high
    same = compare(first, first)
    assert same is not None and (same.mean, same.low, same.high) == (0, 0, 0)
    assert compare(np.array([np.nan]), np.array([1.0])) is None
    with pytest.raises(CascadeError, match="cannot be paired"):
        compare(first, second[:3])


def test_intervals_cover_the_truth() -> None:
    """150 experiments with a true difference of 0.1: the 95 % interval holds it in 90 to 99 % of them."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(150):
        hard = rng.random(200)  # what both sides find hard
        first, second = (hard < 0.5).astype(float), (hard + 0.05 * rng.normal(size=200) < 0.6).astype(float)
        found = compare(first, second)
        assert found is not None
        hits += found.low <= 0.1 <= found.high
    assert 0.90 <= hits / 150 <= 0.99


def test_pairing_narrows_the_interval() -> None:
    rng = np.random.default_rng(1)
    first = (rng.random(500) < 0.5).astype(float)
    second = np.where(rng.random(500) < 0.05, 1 - first, first)
    near, far = compare(first, second), compare(first, rng.permutation(second))
    assert near is not None and far is not None
    assert near.high - near.low < 0.5 * (far.high - far.low)
