"""The Python API: threads, callbacks, interruption, statistics."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support import random_features

from cascade_trt.runtime.errors import CascadeError
from cascade_trt.runtime.pipeline import Output, Pipeline
from cascade_trt.runtime.stats import STAGES


def test_one_pipeline_in_several_threads(small_vocabulary: Pipeline) -> None:
    """Calls wait for each other: every thread gets the pictures of its own seed and settings."""
    given = random_features(small_vocabulary, 2)
    settings = [("exact", "small_9"), ("ar", None), ("exact", "chain"), ("strict", "naive_extend_57")]

    def draw(seed: int) -> np.ndarray:
        rule, tree = settings[seed % len(settings)]
        return small_vocabulary.generate(**given, seed=seed, rule=rule, tree=tree).codes

    alone = [draw(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(2):
            for codes, wanted in zip(pool.map(draw, range(8)), alone, strict=True):
                np.testing.assert_array_equal(codes, wanted)


def test_several_pipelines_side_by_side(small_vocabulary: Pipeline) -> None:
    pipes = [Pipeline.load(small_vocabulary.folder, threads=1) for _ in range(3)]
    given = random_features(small_vocabulary, 2)
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(pipe.generate, **given, seed=i) for i, pipe in enumerate(pipes)]
        outputs: list[Output] = [future.result() for future in futures]
    for seed, output in enumerate(outputs):
        np.testing.assert_array_equal(output.codes, small_vocabulary.generate(**given, seed=seed).codes)


def test_an_error_in_the_callback_leaves_the_pipeline_usable(small_vocabulary: Pipeline) -> None:
    given = random_features(small_vocabulary, 3)
    wanted = small_vocabulary.generate(**given, seed=4).codes

    def fail(done: int, _total: int) -> None:
        if done > 50:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        small_vocabulary.generate(**given, seed=1, callback=fail)
    np.testing.assert_array_equal(small_vocabulary.generate(**given, seed=4).codes, wanted)


def test_a_callback_that_draws_is_refused(small_vocabulary: Pipeline) -> None:
    """It would wait for itself; the pipeline stays usable."""
    given = random_features(small_vocabulary, 1)
    with pytest.raises(CascadeError, match="a callback cannot draw"):
        small_vocabulary.generate(**given, callback=lambda *_: small_vocabulary.generate(**given))
    assert len(small_vocabulary.generate(**given).images) == 1


def test_ctrl_c_returns_the_finished_batches(small_vocabulary: Pipeline) -> None:
    given = random_features(small_vocabulary, 6)
    wanted = small_vocabulary.generate(**given).codes[:3]

    def interrupt(done: int, _total: int) -> None:
        if done > 3 * 36 + 10:
            raise KeyboardInterrupt

    output = small_vocabulary.generate(**given, callback=interrupt)
    assert output.interrupted
    assert len(output.images) == len(output.seeds) == output.stats.images == 3
    np.testing.assert_array_equal(output.codes, wanted)


@pytest.mark.parametrize("rule", ["ar", "exact"])
def test_statistics(small_vocabulary: Pipeline, rule: str) -> None:
    seen: list[tuple[int, int]] = []
    given = random_features(small_vocabulary, 2)
    output = small_vocabulary.generate(**given, rule=rule, callback=lambda done, total: seen.append((done, total)))
    stats = output.stats
    assert {total for _, total in seen} == {2 * 36}
    assert seen[0][0] == 2 and seen[-1][0] == 2 * 36
    assert len(seen) == stats.target_calls + 1
    assert stats.tokens == 2 * 35
    assert stats.tau == stats.tokens / stats.rounds
    assert (stats.tau == 1) == (rule == "ar")
    assert set(stats.seconds) == set(STAGES)
    assert 0 < sum(stats.seconds.values()) <= stats.total_seconds
    assert 0 <= stats.host_share < 1
    assert stats.to_dict()["images_per_second"] == stats.images_per_second > 0


def test_an_earlier_call_of_another_shape_leaves_no_trace(small_vocabulary: Pipeline) -> None:
    """One cache serves every layout, tree and rule."""
    three, one = random_features(small_vocabulary, 3), random_features(small_vocabulary, 1, seed=8)
    wanted = small_vocabulary.generate(**one, seed=2).codes
    fresh = Pipeline.load(small_vocabulary.folder, threads=1, warm=False)
    np.testing.assert_array_equal(fresh.generate(**one, seed=2).codes, wanted)
    for rule, scale in (("ar", 2.0), ("strict", 1.0), ("exact", 5.0)):
        fresh.generate(**three, rule=rule, guidance_scale=scale, seed=11)
        np.testing.assert_array_equal(fresh.generate(**one, seed=2).codes, wanted)
