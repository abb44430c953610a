"""Parity of draws: equal tokens count, near ties pass and are counted, anything else is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cascade_trt.export.parity import judge_drawn
from cascade_trt.runtime.errors import CascadeError

CODES, NODES = 30, 8
MANIFEST: Any = SimpleNamespace(target=SimpleNamespace(top_k=20))


def inputs(top_k: int = 10, top_p: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "top_k": np.array([top_k]), "top_p": np.array([top_p], np.float32),
        "noise": rng.gumbel(size=(1, 2, CODES)).astype(np.float32), "depths": rng.integers(0, 2, (1, NODES)),
    }  # fmt: skip


def draws(logits: np.ndarray, given: dict[str, np.ndarray]) -> np.ndarray:
    """Tokens of a top-k sampler."""
    keep = np.argsort(-logits)[:, : given["top_k"][0]]
    race = np.take_along_axis(logits + given["noise"][0, given["depths"][0]], keep, axis=1)
    return np.take_along_axis(keep, race.argmax(1)[:, None], axis=1)[:, 0]


@pytest.fixture
def logits() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(NODES, CODES)).astype(np.float32)


def test_equal_draws(logits: np.ndarray) -> None:
    given = inputs()
    found = judge_drawn(draws(logits, given), logits, given, 1e-3, MANIFEST)
    assert found == {"nodes": NODES, "equal": NODES, "ties": 0}


def test_a_token_that_rounding_could_draw_is_a_tie(logits: np.ndarray) -> None:
    given = inputs()
    drawn = draws(logits, given)
    other = int(np.setdiff1d(np.argsort(-logits[3])[:10], drawn[3])[0])
    noise = given["noise"][0, given["depths"][0, 3]]
    lead = logits[3, drawn[3]] + noise[drawn[3]] - logits[3, other] - noise[other]
    drawn[3] = other
    scale = float(np.abs(logits).max())
    assert judge_drawn(drawn, logits, given, lead / scale, MANIFEST)["ties"] == 1
    with pytest.raises(CascadeError, match="other tokens than PyTorch at 1 of 8"):
        judge_drawn(drawn, logits, given, lead / scale / 3, MANIFEST)


@pytest.mark.parametrize("wrong", ["least likely", "not finite", "no noise", "no top-k"])
def test_other_draws_are_refused(logits: np.ndarray, wrong: str) -> None:
    given = inputs(top_k=3)
    drawn = draws(logits, given)
    if wrong == "least likely":
        drawn[0] = logits[0].argmin()
    elif wrong == "not finite":
        drawn[0] = -1
    elif wrong == "no noise":
        drawn = logits.argmax(1)
    else:
        drawn = draws(logits, given | {"top_k": np.array([CODES])})
    with pytest.raises(CascadeError, match="other tokens than PyTorch"):
        judge_drawn(drawn, logits, given, 1e-3, MANIFEST)
