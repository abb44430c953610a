"""noise.cu against runtime/noise.py: integers bit for bit, logarithms to a few units in the last place."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from kernels.worlds import World, random_plan

from cascade_trt.runtime import loop
from cascade_trt.runtime.noise import NoiseWindow, Stream, gumbel, uniforms
from cascade_trt.runtime.tree import Tree

LARGEST = np.float32(1 - 2.0**-24)
# Two logarithms, each off by up to two units in the last place on either side (CUDA's logf by one, numpy's by two):
# Gumbel noise reaches 17.4, where a unit is 1.9e-6.
LOG_ERROR = 6e-6


@contextmanager
def without_logarithms(library: ctypes.CDLL) -> Iterator[None]:
    """log x is x, so -log(-log u) is u, and the rows are the uniform numbers."""
    library.use_logarithms(0)
    try:
        yield
    finally:
        library.use_logarithms(1)


def make_world(library: ctypes.CDLL, rng: np.random.Generator, vocab: int | None = None) -> World:
    vocab = vocab or int(rng.choice([2, 7, 8, 9, 31, 64, 100]))
    slots, tree = int(rng.integers(1, 17)), Tree("chain", tuple(range(-1, int(rng.integers(0, 6)))))
    world = World(library, rng, random_plan(rng, vocab), [tree] * slots, 1, vocab, same_tree=True)
    for slot in range(slots):
        sequence = world.fill(slot, greedy=rng.random() < 0.1)
        sequence.done = int(rng.integers(1, world.plan.length + 1))
        world.device.done[slot] = sequence.done
    return world


def test_the_bits_are_those_of_numpy(library: ctypes.CDLL) -> None:
    rng, rows = np.random.default_rng(0), 0
    with without_logarithms(library):
        while rows < 8000:
            world = make_world(library, rng)
            d = world.device
            d.stream[:] = rng.integers(0, 4, len(d.stream))
            d.seed[:] = rng.integers(0, 2**63, len(d.seed)) >> rng.integers(0, 63, len(d.seed))
            d.noise[:] = 7
            d.run("noise", int(rng.choice([1, 5, 64])))
            for p, sequence in enumerate(world.sequences):
                for level, row in enumerate(d.noise[p]):
                    position = sequence.done + level
                    if position >= world.plan.length:
                        assert (row == 7).all()
                        continue
                    wanted = uniforms(int(d.seed[p]), position, Stream(d.stream[p]), len(row))
                    assert row.tobytes() == np.minimum(wanted, LARGEST).tobytes()
                    rows += 1


def test_the_largest_uniform_is_below_one(library: ctypes.CDLL) -> None:
    library.uniform_of_half.argtypes, library.uniform_of_half.restype = (ctypes.c_uint64, ctypes.c_int), ctypes.c_float
    for half in range(2):
        assert library.uniform_of_half(0xFFFFFFFF << 32 * half, half) == LARGEST
        assert library.uniform_of_half(0xFF << 32 * half, half) == np.float32(2.0**-25)


def test_logarithms_differ_in_the_last_places(library: ctypes.CDLL) -> None:
    rng, most = np.random.default_rng(1), 0.0
    for _ in range(10):
        world = make_world(library, rng, vocab=16384)
        d = world.device
        d.stream[:] = 0
        d.run("noise")
        for p, sequence in enumerate(world.sequences):
            if sequence.room:
                wanted = gumbel(sequence.seed, sequence.done, Stream.TOKEN, 16384)
                most = max(most, float(np.abs(d.noise[p, 0] - wanted).max()))
                assert np.argmax(d.noise[p, 0]) == np.argmax(wanted)
    assert most < LOG_ERROR


@pytest.mark.parametrize("seed", range(4))
def test_rounds_get_what_the_loop_gives(library: ctypes.CDLL, seed: int) -> None:
    """Rows and forced tokens, while positions advance: with windows that shift on the one side, anew on the other."""
    rng = np.random.default_rng(seed)
    for _ in range(20):
        world = make_world(library, rng)
        d = world.device
        forced = d.forced.copy() if world.plan.has_forced else None
        lane = SimpleNamespace(window=NoiseWindow(d.noise.copy()), forced=forced)
        while any(sequence.room for sequence in world.sequences):
            for p, sequence in enumerate(world.sequences):
                if sequence.room:
                    loop.fill_noise(lane, p, sequence)
            d.run("noise")
            for p, sequence in enumerate(world.sequences):  # an image that is drawn gets nothing anew
                inside = min(d.noise.shape[1], sequence.room)
                shared = slice(0, d.noise.shape[1] if sequence.sampling.greedy else inside)
                assert np.abs(d.noise[p, shared] - lane.window.noise[p, shared]).max(initial=0) < LOG_ERROR
                if sequence.room:
                    sequence.done = min(sequence.done + int(rng.integers(1, d.noise.shape[1] + 1)), world.plan.length)
                    d.done[p] = sequence.done
            if forced is not None:
                assert np.array_equal(d.forced, forced)
