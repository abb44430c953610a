"""Threads in other orders: no kernel's result depends on them, no two threads race, and none reads beside its arrays.

The kernels run one thread at a time, so a race shows in two ways: results differ from order to order, and watch.cpp
sees two accesses with no wait between them, whatever the order was.
"""

from __future__ import annotations

import ctypes
import shutil

import numpy as np
import pytest
from kernels.cpu import SOURCES, WatchedLibrary
from kernels.test_kernel_rounds import Reference, compare_walks, make_world
from kernels.test_kernel_rules import Scene
from kernels.worlds import World

from cascade_trt.runtime import loop

KINDS = ("strict", "cascade", "lantern", "lantern++", "stand-in")
ORDERS = range(3)


@pytest.fixture(scope="module")
def watched(library: ctypes.CDLL, tmp_path_factory: pytest.TempPathFactory) -> WatchedLibrary:  # noqa: ARG001 - g++
    return WatchedLibrary(tmp_path_factory.mktemp("watched"))


def whole(scene: Scene) -> list[np.ndarray]:
    """All arrays that `walk_by_rule` may touch."""
    starts, ids, table = scene.kept
    given = starts, ids, table, scene.setting, scene.logits, scene.log_q, scene.q_rows, scene.similarity
    return [*scene.world.device.whole, *given, *scene.scratch]


def walk(library: WatchedLibrary, scene: Scene, order: int, threads: int) -> list[bytes]:
    """What both walks leave in every array, from what the arrays hold now; scratch holds no numbers before."""
    arguments, arrays = scene.arguments(), whole(scene)
    scene.scratch[0][:] = np.nan
    before = [array.copy() for array in arrays]
    library.know(*arrays)
    library.use_order(order)
    scene.world.device.run("walk", threads)
    scene.world.device.run("walk_by_rule", threads, arguments)
    compare_walks(scene.world, loop.accept(scene.lane(), [s if s.room else None for s in scene.world.sequences if s]))
    after = [array.tobytes() for array in scene.world.device.whole]
    for array, content in zip(arrays, before, strict=True):
        array[:] = content
    return after


@pytest.mark.parametrize("kind", KINDS)
def test_walks_in_any_order(watched: WatchedLibrary, kind: str) -> None:
    rng = np.random.default_rng(11)
    for _ in range(3):
        scene = Scene(watched, rng, kind)  # type: ignore[arg-type] - as a library
        threads = int(rng.choice([2, 5, 33]))
        first, *others = (walk(watched, scene, order, threads) for order in ORDERS)
        assert all(other == first for other in others)


@pytest.mark.parametrize("order", ORDERS)
def test_rounds_in_any_order(watched: WatchedLibrary, order: int) -> None:
    """Every kernel of a round leaves what the runtime's functions do; the cache is moved by many threads."""
    rng = np.random.default_rng(order)
    for _ in range(6):
        reference = Reference(make_world(watched, rng, int(rng.integers(1, 8))))  # type: ignore[arg-type]
        watched.know(*reference.world.device.whole, reference.block.view(np.uint16))
        watched.use_order(order)
        for _ in range(8):
            reference.round()


def test_noise_in_any_order(watched: WatchedLibrary) -> None:
    rng, rows = np.random.default_rng(0), []
    world: World = make_world(watched, rng, 3)  # type: ignore[arg-type]
    for slot in range(3):
        world.fill(slot)
    watched.know(*world.device.whole)
    for order in ORDERS:
        world.device.noise[:] = 7
        watched.use_order(order)
        world.device.run("noise", 4)
        rows.append(world.device.noise.tobytes())
    assert rows[0] == rows[1] == rows[2] and (world.device.noise != 7).any()


@pytest.fixture(scope="module")
def faulty(library: ctypes.CDLL, tmp_path_factory: pytest.TempPathFactory) -> WatchedLibrary:  # noqa: ARG001 - g++
    """`block_sum` does not wait in its loop, and `place` reads one row too far."""
    folder = tmp_path_factory.mktemp("faulty")
    shutil.copytree(SOURCES, source := folder / "source", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    wait, adds = "        __syncthreads();\n", "        if (t + half < width) values[t] +="
    for file, text, instead in (("rules.h", wait + adds, adds), ("place.cu", "r.first[row]", "r.first[row + 1]")):
        whole = (source / file).read_text()
        assert whole.count(text) == 1
        (source / file).write_text(whole.replace(text, instead))
    return WatchedLibrary(folder, source)


@pytest.mark.parametrize("order", ORDERS)
def test_a_wait_that_is_missing_is_found(faulty: WatchedLibrary, order: int) -> None:
    scene = Scene(faulty, np.random.default_rng(11), "strict")  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match=r"^run_walk_by_rule: a (read|write) races, .*, rules\.h:4\d "):
        walk(faulty, scene, order, 5)


def test_a_read_beside_an_array_is_found(faulty: WatchedLibrary) -> None:
    """Of one number, behind the last row of the last slot."""
    world: World = make_world(faulty, np.random.default_rng(0), 1)  # type: ignore[arg-type]
    world.fill(0)
    faulty.know(*world.device.whole)
    with pytest.raises(AssertionError, match=r"^run_place: a read beside, .*, place\.cu:\d+ "):
        world.device.run("place")
