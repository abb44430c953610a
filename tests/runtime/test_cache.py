from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cascade_trt.runtime.cache import KVCache

LAYERS, ROWS, HEADS, SLOTS, DIM = 2, 4, 2, 12, 3


@given(st.sets(st.integers(1, 7), max_size=5), st.integers(0, 4), st.sampled_from([[0], [0, 2], [1, 3]]))
def test_commit_equals_gather_then_write(nodes: set[int], start: int, rows: list[int]) -> None:
    cache = KVCache(LAYERS, ROWS, HEADS, SLOTS, DIM, np.dtype(np.float32))
    inputs, _ = cache.bindings(ROWS)
    rng = np.random.default_rng(0)
    for array in inputs.values():
        array[:] = rng.normal(size=array.shape)
    path = [0, *sorted(nodes)]
    wanted = {name: array.copy() for name, array in inputs.items()}
    for array in wanted.values():
        for row in rows:
            array[row, :, start : start + len(path)] = array[row][:, [start + node for node in path]].copy()
    cache.commit(rows, start, path)
    for name, array in inputs.items():
        np.testing.assert_array_equal(array, wanted[name])


def test_bindings_are_the_same_memory() -> None:
    cache = KVCache(LAYERS, ROWS, HEADS, SLOTS, DIM, np.dtype(np.float16))
    inputs, outputs = cache.bindings(2)
    assert set(inputs) == {f"past_{kind}.{layer}" for kind in ("key", "value") for layer in range(LAYERS)}
    for name, array in inputs.items():
        assert array is outputs[name.replace("past", "present")]
        assert array.shape == (2, HEADS, SLOTS, DIM)
        assert array.flags.c_contiguous
    stepwise, _ = cache.bindings(2, steps=3)
    assert [stepwise[f"past_key.{index}"].ctypes.data for index in range(6)] == [
        inputs[f"past_key.{layer}"].ctypes.data for layer in (0, 0, 0, 1, 1, 1)
    ]
    all_rows, _ = cache.bindings(ROWS)
    assert np.shares_memory(all_rows["past_key.0"], inputs["past_key.0"])
