"""Distances between sets of features. Rows are images, columns are features; all figures are float64.

Fréchet distance: Heusel et al., arXiv 1706.08500. Precision and recall: Kynkäänniemi et al., arXiv 1904.06991.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
from sklearn.metrics import pairwise_distances_chunked
from sklearn.neighbors import NearestNeighbors

from ..runtime.errors import CascadeError

NEIGHBOURS = 3  # k of the paper


def frechet(first: np.ndarray, second: np.ndarray) -> float:
    """Fréchet distance between the Gaussians fitted to two sets [n, F] and [m, F]; 0 for equal sets.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)). The estimate is biased upwards for small sets: compare figures of
    equally many images only. Raises CascadeError for fewer than two images or different widths.
    """
    first, second = _check(first, second, least=2)
    mean = np.square(first.mean(0) - second.mean(0)).sum()
    a, b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (first, second))
    root = _root(a)
    # The eigenvalues of C1 C2 are those of the symmetric C1^(1/2) C2 C1^(1/2), which are computed stably.
    cross = np.sqrt(scipy.linalg.eigvalsh(root @ b @ root).clip(min=0)).sum()
    return float(max(0.0, mean + np.trace(a) + np.trace(b) - 2 * cross))


def _root(matrix: np.ndarray) -> np.ndarray:
    """The symmetric square root of a symmetric positive semi-definite matrix."""
    values, vectors = scipy.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T


def precision_recall(real: np.ndarray, made: np.ndarray, k: int = NEIGHBOURS) -> tuple[float, float]:
    """Precision (share of made images inside the real manifold) and recall (the reverse), each in 0 ... 1.

    A set's manifold is the union of balls around its images that reach to their k-th nearest neighbour in the
    set. Raises CascadeError for at most k images or different widths.
    """
    real, made = _check(real, made, least=k + 1)
    return _inside(real, made, k), _inside(made, real, k)


def _inside(manifold: np.ndarray, points: np.ndarray, k: int) -> float:
    distances, _ = NearestNeighbors(n_neighbors=k + 1).fit(manifold).kneighbors(manifold)
    radii = distances[:, -1] * (1 + 1e-6)  # an image at its own neighbour's very place counts as inside

    def hit(block: np.ndarray, _start: int) -> np.ndarray:
        return (block <= radii).any(axis=1)

    return float(np.concatenate(list(pairwise_distances_chunked(points, manifold, reduce_func=hit))).mean())


def accuracy(right: np.ndarray) -> float | None:
    """Mean of 0, 1 and NaN (an image that the question does not concern); None when it concerns none."""
    asked = right[~np.isnan(right)]
    return float(asked.mean()) if len(asked) else None


def _check(first: np.ndarray, second: np.ndarray, least: int) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise CascadeError(
            f"feature sets of shapes {list(first.shape)} and {list(second.shape)} cannot be compared: "
            "make both with the same features."
        )
    if min(len(first), len(second)) < least:
        raise CascadeError(
            f"{min(len(first), len(second))} image(s) are too few for this metric: give at least {least}."
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise CascadeError("the features hold NaN or infinite values: check the module that makes them.")
    return first, second
