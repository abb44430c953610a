"""Whole images: `strict` draws them with the distribution of plain decoding."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from support import build, random_features, save_checkpoints

from cascade_trt.runtime.pipeline import Pipeline

VOCAB, IMAGES, BATCH = 4, 1500, 50
GUESSED = ("jacobi_3", "jacobi_2x2", "mixed_3x2")


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Images of 2 x 2 tokens out of 4, so that all 256 can be counted."""
    folder = tmp_path_factory.mktemp("distribution")
    arguments = save_checkpoints(folder / "checkpoints", vocab=VOCAB, grid=2, scale=1.5)
    trees = ("small_6", "chain_3", "chain_1")
    build(*arguments, "--batch", BATCH, *(part for name in trees for part in ("--tree", name)), "--out",
          folder / "bundle")  # fmt: skip
    return Pipeline.load(folder / "bundle", threads=1)


def draw(pipe: Pipeline, first_seed: int, **settings: object) -> tuple[np.ndarray, float]:
    """How often each image of one prompt was drawn [256], and tau."""
    one = random_features(pipe, 1)
    given = {name: np.repeat(x, BATCH, axis=0) for name, x in one.items()}
    counts, tau = np.zeros(VOCAB**4), []
    for seed in range(first_seed, first_seed + IMAGES, BATCH):
        output = pipe.generate(**given, seed=seed, **settings)  # type: ignore[arg-type]
        np.add.at(counts, output.codes @ VOCAB ** np.arange(4), 1)
        tau.append(output.stats.tau)
    return counts, float(np.mean(tau))


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"top_k": 3, "temperature": 0.8}])
def test_strict_images_have_the_distribution_of_plain_ones(pipe: Pipeline, settings: dict[str, float]) -> None:
    plain, _ = draw(pipe, 0, rule="ar", **settings)
    drawn = [("strict", "small_6"), ("strict", "chain_3"), ("strict-topk", "small_6")]
    drawn += [("strict-topk", tree) for tree in GUESSED]
    for number, (rule, tree) in enumerate(drawn, start=1):
        counts, tau = draw(pipe, number * 10**6, rule=rule, tree=tree, **settings)
        assert tau > (1.1 if tree in GUESSED else 1.2)  # otherwise only bonus tokens were counted
        often = plain + counts >= 10
        table = np.stack([np.append(x[often], x[~often].sum()) for x in (plain, counts)])
        assert often.sum() > 20
        assert stats.chi2_contingency(table[:, table.sum(0) > 0]).pvalue > 1e-3
