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
    """The first two tokens [N, 2] of a top-k sampler."""
    keep = np.argsort(-logits)[:, : given["top_k"][0]]
    race = np.take_along_axis(logits + given["noise"][0, given["depths"][0]], keep, axis=1)
    best = np.argsort(-race, axis=1)[:, [0, min(1, keep.shape[1] - 1)]]
    return np.take_along_axis(keep, best, axis=1)


@pytest.fixture
def logits() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(NODES, CODES)).astype(np.float32)


def test_equal_draws(logits: np.ndarray) -> None:
    given = inputs()
    found = judge_drawn(draws(logits, given), logits, given, 1e-3, MANIFEST)
    assert found == {"nodes": NODES, "equal": NODES, "ties": 0}


@pytest.mark.parametrize("place", [0, 1])
def test_a_token_that_rounding_could_draw_is_a_tie(logits: np.ndarray, place: int) -> None:
    """First or second, in the place of the one that PyTorch draws there."""
    given = inputs()
    drawn = draws(logits, given)
    race = logits[3] + given["noise"][0, given["depths"][0, 3]]
    other = next(token for token in np.argsort(-logits[3])[:10].tolist() if token not in drawn[3])
    lead = float(race[drawn[3, place]] - race[other])
    drawn[3, place] = other
    scale = float(np.abs(logits).max())
    assert judge_drawn(drawn, logits, given, lead / scale, MANIFEST)["ties"] == 1
    with pytest.raises(CascadeError, match="other tokens than PyTorch at 1 of 8"):
        judge_drawn(drawn, logits, given, lead / scale / 3, MANIFEST)


def test_first_and_second_may_change_places_where_they_tie(logits: np.ndarray) -> None:
    given = inputs()
    drawn = draws(logits, given)
    race = logits[3] + given["noise"][0, given["depths"][0, 3]]
    lead, scale = float(race[drawn[3, 0]] - race[drawn[3, 1]]), float(np.abs(logits).max())
    drawn[3] = drawn[3, ::-1].copy()
    assert judge_drawn(drawn, logits, given, lead / scale, MANIFEST)["ties"] == 1
    with pytest.raises(CascadeError, match="other tokens than PyTorch at 1 of 8"):
        judge_drawn(drawn, logits, given, lead / scale / 3, MANIFEST)


@pytest.mark.parametrize("before", [0.899, 0.901])
def test_rounding_may_decide_whether_top_p_keeps_a_second(before: float) -> None:
    """The likeliest token's probability lies at top_p: one is kept, or two are."""
    few = MANIFEST.target.top_k - 1
    p = np.concatenate([[before], np.full(few, (1 - before) / few), np.full(CODES - 1 - few, 1e-30)])
    logits = np.tile(np.log(p), (NODES, 1)).astype(np.float32)
    logits[:, 1] += 1e-3  # the second to be kept
    given = inputs(CODES, 0.9) | {"noise": np.zeros((1, 2, CODES), np.float32)}
    one, two = np.tile([0, 0], (NODES, 1)), np.tile([0, 1], (NODES, 1))
    same, other = (two, one) if before < 0.9 else (one, two)
    assert judge_drawn(same, logits, given, 1e-6, MANIFEST)["equal"] == NODES
    assert judge_drawn(other, logits, given, 1e-2, MANIFEST)["ties"] == NODES
    with pytest.raises(CascadeError, match="other tokens than PyTorch at 8 of 8"):
        judge_drawn(other, logits, given, 1e-6, MANIFEST)


@pytest.mark.parametrize(
    "wrong", ["least likely", "not finite", "no noise", "no top-k", "the same twice", "least likely second"]
)
def test_other_draws_are_refused(logits: np.ndarray, wrong: str) -> None:
    given = inputs(top_k=3)
    drawn = draws(logits, given)
    if wrong == "least likely":
        drawn[0, 0] = logits[0].argmin()
    elif wrong == "not finite":
        drawn[0] = -1
    elif wrong == "no noise":
        drawn = np.argsort(-logits)[:, :2]
    elif wrong == "no top-k":
        drawn = draws(logits, given | {"top_k": np.array([CODES])})
    elif wrong == "the same twice":
        drawn[0, 1] = drawn[0, 0]
    else:
        drawn[0, 1] = logits[0].argmin()
    with pytest.raises(CascadeError, match="other tokens than PyTorch"):
        judge_drawn(drawn, logits, given, 1e-3, MANIFEST)


def test_a_greedy_draw_comes_second_to_itself(logits: np.ndarray) -> None:
    given = inputs(top_k=1)
    drawn = draws(logits, given)
    assert (drawn[:, 0] == drawn[:, 1]).all()
    assert judge_drawn(drawn, logits, given, 1e-3, MANIFEST)["equal"] == NODES
    drawn[2, 1] = np.argsort(-logits[2])[5]
    with pytest.raises(CascadeError, match="other tokens than PyTorch at 1 of 8"):
        judge_drawn(drawn, logits, given, 1e-3, MANIFEST)
