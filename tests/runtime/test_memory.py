"""In place: rounds allocate nothing that grows with the cache, and memory stays flat."""

from __future__ import annotations

import tracemalloc

import numpy as np
import psutil
import pytest
from support import Golden, random_features

from cascade_trt.runtime.pipeline import Pipeline

MIB = 1 << 20


@pytest.mark.parametrize(("rule", "tree"), [("ar", None), ("exact", "small_12"), ("strict", "small_6")])
def test_no_large_allocation_in_a_round(tiny: Pipeline, golden: Golden, rule: str, tree: str | None) -> None:
    """Far less than a cache (6 MiB here) is allocated by Python or numpy between two rounds."""
    assert tiny._cache.nbytes > 5 * MIB
    peaks: list[int] = []

    def note(_done: int, _total: int) -> None:
        current, peak = tracemalloc.get_traced_memory()
        peaks.append(peak - start[0])
        tracemalloc.reset_peak()
        start[0] = current

    given = {name: x[:1] for name, x in golden.given.items()}
    tiny.generate(**given, rule=rule, tree=tree)  # binds this shape
    tracemalloc.start()
    try:
        start = [0]
        tiny.generate(**given, rule=rule, tree=tree, callback=note)
    finally:
        tracemalloc.stop()
    assert len(peaks) > 30
    assert max(peaks[1:]) < MIB  # the first one counts the prefix, once a picture


def test_the_engine_writes_into_the_cache(tiny: Pipeline) -> None:
    """ONNX Runtime filled our own memory, in the committed slots of the row in use and nowhere else."""
    tiny._cache._block.fill(0)
    tiny.generate(features=random_features(tiny, 1)["features"], rule="ar", guidance_scale=1.0)
    assert not tiny._cache._block[:, :, 1:].any()
    used = np.abs(tiny._cache._block[:, :, 0]).max(axis=(0, 1, 2, 4)) > 0  # [S]
    length = 120 + 64
    assert used[: length - 1].all()  # the last token is never read
    assert not used[length:].any()


@pytest.mark.slow
def test_resident_memory_is_flat(tiny: Pipeline, golden: Golden) -> None:
    """500 rounds of a tree, several pictures: no more memory at the end than after the first pictures."""
    process, rounds = psutil.Process(), 0

    def draw(seed: int) -> int:
        given = {name: x[:1] for name, x in golden.given.items()}
        return tiny.generate(**given, seed=seed, rule="exact", tree="chain").stats.rounds

    for seed in range(3):
        draw(seed)
    before = process.memory_info().rss
    while rounds < 500:
        rounds += draw(rounds)
    assert process.memory_info().rss - before < 2 * MIB
