"""What is not finite in one slot is told by -1 there, and changes no bit of any other slot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from graph_calls import PAIRS, Draft, Target, prefill, session
from support import Golden

from cascade_trt.runtime.tree import DynamicTree, get_tree

PREFIX, DIM, VOCAB = 120, 128, 512
NODES, AT = 6, 2  # of the call; the node whose embedding is spoilt
SPOILT = 1  # the slot, with rows 1 and 3
VALUES = [np.nan, np.inf, 3e38]


@pytest.fixture(scope="module")
def target(tiny_bundle: Path, golden: Golden) -> Target:
    """Behind the prefix of two captions."""
    features, mask = np.tile(golden.values["caption_features"], (2, 1, 1)), golden.values["caption_mask"].astype(bool)
    mask = np.tile(mask, (2, 1))
    uncond = np.array([False, False, True, True])
    embeds = session(tiny_bundle, "condition").run(None, {"features": features, "uncond": uncond})[0]
    target = Target(tiny_bundle, mask, PAIRS, (3.0, -2.0))
    prefill(target, embeds, mask, PREFIX)
    return target


def call(target: Target, embeds: np.ndarray, cache: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Six causal nodes behind the prefix; the target's own cache stays as it is. Outputs and caches by name."""
    before = target.cache
    target.cache = cache
    got = target(embeds, PREFIX)
    got |= target.cache
    target.cache = before
    return got


def same_in_the_other_slot(got: dict[str, np.ndarray], clean: dict[str, np.ndarray]) -> None:
    for name, array in got.items():
        places = slice(0, None, 2) if len(array) == 4 else slice(0, 1)  # rows 0 and 2, or slot 0
        np.testing.assert_array_equal(array[places], clean[name][places], name)


@pytest.mark.parametrize("row", [1, 3], ids=["conditional", "unconditional"])
@pytest.mark.parametrize("value", VALUES)
def test_in_an_embedding(target: Target, value: float, row: int) -> None:
    embeds = target.embed(np.random.default_rng(0).integers(0, VOCAB, (4, NODES)))
    clean = call(target, embeds, target.cache)
    assert (clean["drawn"] >= 0).all()
    embeds[row, AT, 5] = value
    got = call(target, embeds, target.cache)
    same_in_the_other_slot(got, clean)
    assert got["drawn"][SPOILT, AT] == -1
    if np.isfinite(value):  # its own norm hides it from the other nodes, and from the state that the head reads
        np.testing.assert_array_equal(got["drawn"][SPOILT, :AT], clean["drawn"][SPOILT, :AT])
    else:  # a key that a node may not see is still NaN times zero
        assert (got["drawn"][SPOILT] == -1).all()
    for name in ("logits", "states", "similarity"):
        assert np.isfinite(got[name]).all()


@pytest.mark.parametrize("row", [1, 3], ids=["conditional", "unconditional"])
@pytest.mark.parametrize(("kind", "value"), [("value", value) for value in VALUES] + [("key", np.nan)])
def test_in_the_cache(target: Target, kind: str, value: float, row: int) -> None:
    embeds = target.embed(np.random.default_rng(0).integers(0, VOCAB, (4, NODES)))
    clean = call(target, embeds, target.cache)
    cache = {name: array.copy() for name, array in target.cache.items()}
    cache[f"{kind}.1"][row, 0, PREFIX - 1] = value
    got = call(target, embeds, cache)
    same_in_the_other_slot(got, clean)
    assert (got["drawn"][SPOILT] == -1).all()


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("name", ["small_9", "eagle2_60"])
def test_in_the_states_that_the_drafter_reads(tiny_bundle: Path, name: str, value: float) -> None:
    """Its tokens are still tokens, so that the target can be called, which then tells."""
    tree, rng = get_tree(name), np.random.default_rng(2)
    guidance = np.array([[3, 0, -2, 0], [0, 3, 0, -2]], np.float32)  # rows 0 and 2 are slot 0
    draft = Draft(tiny_bundle, tree, 4, guidance)
    hidden = rng.normal(size=(4, 5, DIM)).astype(np.float32)
    given = draft.inputs(hidden, np.tile(np.arange(5), (2, 1)), rng.integers(0, VOCAB, (2, 5)), np.array([5, 5]), 0)
    clean = draft.run(dict(given))
    hidden = hidden.copy()
    hidden[3, 1, 4] = value
    got = draft.run(given | {"hidden": hidden})
    same_in_the_other_slot(got, clean)
    assert ((got["tree_tokens"] >= 0) & (got["tree_tokens"] < VOCAB)).all()
    if isinstance(tree, DynamicTree):
        assert ((got["parents"] < np.arange(tree.size)) & (got["parents"] >= -1)).all()
