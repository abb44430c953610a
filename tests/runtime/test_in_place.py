"""Nothing of the cache's size is copied or allocated in a step."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from support import build, random_features, save_checkpoints

from cascade_trt.runtime.options import DrawOptions
from cascade_trt.runtime.pipeline import Pipeline
from cascade_trt.runtime.request import Request


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Caches of 12 MiB: a copy of one layer's keys (1.5 MiB) in a step would be seen."""
    folder: Path = tmp_path_factory.mktemp("wide")
    arguments = save_checkpoints(folder / "checkpoints", vocab=16, grid=24, dim=256, layers=2, heads=4, prefix_len=120)
    build(*arguments, "--tree", "small_6", "--tree", "chain_1", "--out", folder / "bundle")
    return Pipeline.load(folder / "bundle", threads=1)


HOW = [("ar", None), ("exact", "small_6"), ("strict", "small_6"), ("exact", "jacobi_16"), ("exact", "mixed_12x4")]


@pytest.mark.parametrize(("rule", "tree"), HOW)
def test_no_allocation_above_a_mebibyte_in_a_step(wide: Pipeline, rule: str, tree: str | None) -> None:
    """Python and numpy allocations between two progress calls, at their peak."""
    given = random_features(wide, 1)
    wide.generate(**given, rule=rule, tree=tree)
    peaks: list[int] = []

    def step(_done: int, _total: int) -> None:
        peaks.append(tracemalloc.get_traced_memory()[1] - tracemalloc.get_traced_memory()[0])
        tracemalloc.reset_peak()

    tracemalloc.start()
    try:
        wide.generate(**given, rule=rule, tree=tree, callback=step)
    finally:
        tracemalloc.stop()
    assert len(peaks) > 50
    assert max(peaks[2:]) < 1 << 20  # the first two hold the prefill


def flat(stretch: Callable[[], None]) -> None:
    """Resident memory grows by less than 4 MiB in one of three stretches.

    A leak shows in every stretch. An allocator that takes a new arena once, in a process that has run other tests,
    shows in one.
    """
    process, grown = psutil.Process(), []
    for _ in range(3):
        before = process.memory_info().rss
        stretch()
        grown.append(process.memory_info().rss - before)
        if grown[-1] < 4 << 20:
            return
    pytest.fail(f"each stretch left memory behind: {grown} bytes")


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "tree"), [how for how in HOW if how[0] != "strict"])
def test_resident_memory_is_flat_over_500_rounds(wide: Pipeline, rule: str, tree: str | None) -> None:
    given, seeds = random_features(wide, 1), itertools.count()

    def stretch() -> None:
        rounds = 0
        while rounds < 500:
            rounds += wide.generate(**given, rule=rule, tree=tree, seed=next(seeds)).stats.rounds

    wide.generate(**given, rule=rule, tree=tree, seed=99)
    flat(stretch)


@pytest.mark.slow
@pytest.mark.parametrize(("tree", "other"), [("small_9", "strict"), ("mixed_6x6", "strict-topk")])
def test_resident_memory_is_flat_over_500_jobs_through_one_batch(
    small_vocabulary: Pipeline, tree: str, other: str
) -> None:
    """Jobs of all kinds of settings; some are cancelled, and their results are thrown away."""
    batch, numbers = small_vocabulary.batch(3, tree=tree), itertools.count()
    given = random_features(small_vocabulary, 5)
    kinds = [DrawOptions(), DrawOptions(rule="ar", top_k=4), DrawOptions(rule=other), DrawOptions(top_p=0.9)]

    def stretch(jobs: int = 450) -> None:
        for number in itertools.islice(numbers, jobs):
            features, mask = (given[name][number % 5] for name in ("features", "features_mask"))
            options = kinds[number % 4]
            job = batch.submit(Request(features=features, features_mask=mask, seed=number, options=options))
            if number % 7 == 3:
                job.cancel()
            while batch.waiting > 2:
                batch.step()

    stretch(50)
    flat(stretch)
    batch.drain()
    assert batch.stats.images > 400


@pytest.mark.parametrize(("rule", "tree"), HOW)
def test_no_allocation_above_a_mebibyte_in_a_round_of_a_batch(wide: Pipeline, rule: str, tree: str | None) -> None:
    """Also where a job joins and leaves while another is drawn; the round that fills a slot is left out."""
    batch, given = wide.batch(2, rule=rule, tree=tree), random_features(wide, 1)
    request = Request(features=given["features"][0], features_mask=given["features_mask"][0])
    jobs = [batch.submit(request) for _ in range(2)]
    for _ in range(3):
        batch.step()
    tracemalloc.start()
    try:
        peaks = []
        while not any(job.done for job in jobs):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            batch.step()
            peaks.append(tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()
    assert len(peaks) > 50
    assert max(peaks[:-1]) < 1 << 20  # the last one decodes the image


def test_caches_are_updated_in_place(wide: Pipeline) -> None:
    """The engine writes the committed slots of the very memory that was bound, and keeps what it had written."""
    given = random_features(wide, 1)
    inputs, _ = wide.lane(None).memory.target.bindings(0, 2)
    keys = inputs["past_key.0"].host
    keys.fill(0)
    snapshots: list[np.ndarray] = []
    wide.generate(**given, rule="ar", callback=lambda *_: snapshots.append(keys.copy()))
    model = wide.manifest.model
    last, early, prefix = snapshots[-1], snapshots[10], model.condition.length
    used = prefix + model.plan.length - 1
    assert (np.abs(last[:, :, prefix:used]).sum(axis=(1, 3)) > 0).all()
    np.testing.assert_array_equal(last[:, :, used:], 0)
    np.testing.assert_array_equal(early[:, :, : prefix + 10], last[:, :, : prefix + 10])
