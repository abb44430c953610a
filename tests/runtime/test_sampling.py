from __future__ import annotations

import numpy as np
import pytest

from cascade_trt.runtime.sampling import Sampling, kept, probabilities

LOGITS = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))


@pytest.mark.parametrize(
    ("top_k", "top_p", "count"),
    [
        (0, 1.0, 4),
        (2, 1.0, 2),
        (9, 1.0, 4),
        (0, 0.51, 2),
        (0, 0.49, 1),
        (0, 0.79, 2),
        (0, 0.81, 3),
        (0, 1e-9, 1),
        (2, 0.9, 2),
    ],
)
def test_kept(top_k: int, top_p: float, count: int) -> None:
    """top-p keeps a token when the mass before it is at most top_p: LlamaGen's shifted comparison."""
    assert kept(LOGITS, Sampling(1.0, 1.0, top_k, top_p)) == count


def test_greedy_keeps_one() -> None:
    sampling = Sampling(1.0, 0.0, 0, 1.0)
    assert kept(LOGITS, sampling) == 1
    assert sampling.engine_temperature == 1.0


def test_probabilities_of_large_logits() -> None:
    p = probabilities(np.array([500.0, 499.0], np.float32))
    np.testing.assert_allclose(p, [0.7310586, 0.26894143], rtol=1e-5)
