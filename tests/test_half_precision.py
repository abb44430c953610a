"""What `exact` promises in fp16: the image of plain decoding in calls of the same shape."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support import build, save_checkpoints

from cascade_trt.benchmarks.rounding import agreement, compared, drawn
from cascade_trt.runtime.pipeline import Pipeline

TREES = "chain_7", "small_6", "mixed_8", "jacobi_16", "mixed_32"


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Sixty-four tokens, so that many guesses are accepted; wide enough for sums that depend on their order."""
    folder: Path = tmp_path_factory.mktemp("half")
    arguments = save_checkpoints(folder / "checkpoints", vocab=64, grid=8, dim=256, layers=3, heads=4)
    trees = (part for name in TREES for part in ("--tree", name))
    build(*arguments, *trees, "--precision", "fp16", "--batch", 4, "--out", folder / "bundle")
    return Pipeline.load(folder / "bundle", threads=1)


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("slots", [1, 3])
def test_exact_is_ar_within_one_shape_of_calls(half: Pipeline, tree: str, slots: int) -> None:
    """`ar` in a batch that has the tree verifies its nodes, too, and takes the root's token."""
    batch = half.batch(slots, rule="exact", tree=tree)
    plain, rounds = drawn(half, batch, "ar", 6), batch.stats.target_calls
    exact = drawn(half, batch, "exact", 6)
    np.testing.assert_array_equal(exact, plain)
    assert batch.stats.target_calls - rounds < 0.9 * rounds  # guesses were accepted


def test_what_is_compared_is_what_is_said(half: Pipeline) -> None:
    found = compared(half, 2, ("mixed_8", "jacobi_16"))
    assert [(row["tree"], row["nodes"]) for row in found["trees"]] == [("mixed_8", 9), ("jacobi_16", 17)]
    assert all(row["within"] == {"images": 1.0, "tokens": 1.0} for row in found["trees"])
    one, other = np.arange(4), np.array([0, 1, 2, 9])
    assert agreement([one, one], [one, other]) == {"images": 0.5, "tokens": 0.875}
