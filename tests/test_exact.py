"""`exact` draws the image of plain decoding; the tree, the batch and earlier calls leave no trace."""

from __future__ import annotations

import numpy as np
import pytest
from support import Golden, random_features
from ties import same_but_for_ties, watch_leads

from cascade_trt.runtime.pipeline import Pipeline

TREES = ("chain", "mc_sim_7b_63", "naive_extend_57")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_exact_is_ar_on_the_fixture(
    tiny: Pipeline, golden: Golden, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {name: np.concatenate([x, x[:1]]) for name, x in golden.given.items()}
    first = {name: x[:1] for name, x in given.items()}
    with monkeypatch.context() as patch:
        leads = watch_leads(patch)
        plain = tiny.generate(**given, seed=seed, rule="ar")
    for tree in TREES:
        batch = tiny.generate(**given, seed=seed, rule="exact", tree=tree)
        single = tiny.generate(**first, seed=seed, rule="exact", tree=tree)
        for output in (batch, single):
            for codes, expected, own_seed in zip(output.codes, plain.codes, output.seeds, strict=False):
                same_but_for_ties(codes, expected, own_seed, leads)


@pytest.mark.parametrize("settings", [{}, {"guidance_scale": 1.0}, {"top_k": 3}, {"top_p": 0.7, "temperature": 0.8}])
def test_exact_is_ar_where_long_paths_are_accepted(small_vocabulary: Pipeline, settings: dict[str, float]) -> None:
    pipe = small_vocabulary
    given = random_features(pipe, 3)
    for seed in range(5):
        plain = pipe.generate(**given, seed=seed, rule="ar", **settings)
        for tree in ("chain", "small_9", "naive_extend_57"):
            output = pipe.generate(**given, seed=seed, rule="exact", tree=tree, **settings)
            np.testing.assert_array_equal(output.codes, plain.codes)
            if tree == "naive_extend_57":
                assert output.stats.tau > 1.8  # otherwise commits were hardly exercised


def test_image_i_depends_on_its_own_seed_only(small_vocabulary: Pipeline) -> None:
    given = random_features(small_vocabulary, 3)
    together = small_vocabulary.generate(**given, seed=5)
    for i in range(3):
        alone = small_vocabulary.generate(**{name: x[i : i + 1] for name, x in given.items()}, seed=5 + i)
        np.testing.assert_array_equal(alone.codes[0], together.codes[i])
    assert together.seeds == [5, 6, 7]
    assert not np.array_equal(together.codes[0], small_vocabulary.generate(**given, seed=99).codes[0])


def test_more_prompts_than_the_batch(small_vocabulary: Pipeline) -> None:
    """Seven prompts share three slots: each of the last four joins when a slot is free."""
    given = random_features(small_vocabulary, 7)
    seen: list[tuple[int, int]] = []
    output = small_vocabulary.generate(**given, seed=0, callback=lambda done, total: seen.append((done, total)))
    plain = small_vocabulary.generate(**given, seed=0, rule="ar")
    np.testing.assert_array_equal(output.codes, plain.codes)
    assert len(output.images) == 7
    assert seen[-1] == (7 * 36, 7 * 36)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize("rule", ["strict", "strict-topk", "exact"])
def test_greedy_is_one_image(small_vocabulary: Pipeline, rule: str) -> None:
    given = random_features(small_vocabulary, 2)
    plain = small_vocabulary.generate(**given, temperature=0, rule="ar")
    for tree in ("chain", "small_9", "naive_extend_57"):
        output = small_vocabulary.generate(**given, temperature=0, rule=rule, tree=tree)
        np.testing.assert_array_equal(output.codes, plain.codes)
