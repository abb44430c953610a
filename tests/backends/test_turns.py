"""Threads that share a device: captures are left alone, nobody queues late because another waits, and what is freed is
freed when it may be. The driver (host_cuda.py) refuses what would spoil a capture."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
import types
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fake_trt
import numpy as np
import pytest
from any_plans import any_plans
from contract import sums_graph
from host_cuda import HostDriver, host_device
from support import random_features

from cascade_trt.runtime.backends.cuda_memory import CudaCache, cuda_buffer
from cascade_trt.runtime.backends.device import CudaDevice, Graph
from cascade_trt.runtime.backends.kernels.on_cuda import CudaKernels
from cascade_trt.runtime.backends.ort_cuda import OrtCudaEngine
from cascade_trt.runtime.backends.turns import TURN
from cascade_trt.runtime.pipeline import Pipeline
from cascade_trt.runtime.request import Request

Card = tuple[CudaDevice, HostDriver]
pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")  # in finalisers
LONG, SHORT = 30, 0.05  # seconds


@pytest.fixture
def card() -> Iterator[Card]:
    device, driver = host_device()
    yield device, driver
    driver.drain_all()


@contextmanager
def held_elsewhere(hold: Callable[[threading.Event, threading.Event], None]) -> Iterator[None]:
    """Another thread is inside `hold`, which sets its first event and waits for the second."""
    begun, end = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(hold, begun, end)
        try:
            assert begun.wait(LONG)
            yield
        finally:
            end.set()
            other.result(LONG)


def take_turn(begun: threading.Event, end: threading.Event) -> None:
    with TURN.lock:
        begun.set()
        assert end.wait(LONG)


def must_wait(hold: Callable[[threading.Event, threading.Event], None], act: Callable[[], object]) -> None:
    """Does `act` in a thread, which ends no earlier than `hold` in another."""
    with ThreadPoolExecutor(1) as pool:
        with held_elsewhere(hold):
            acting = pool.submit(act)
            with pytest.raises(TimeoutError):
                acting.result(SHORT)
        acting.result(LONG)


def capture_of(device: CudaDevice) -> Callable[[threading.Event, threading.Event], None]:
    def hold(begun: threading.Event, end: threading.Event) -> None:
        with device.capture():
            begun.set()
            assert end.wait(LONG)

    return hold


# captures -------------------------------------------------------------------------------------------------------
def acts(device: CudaDevice) -> dict[str, Callable[[], object]]:
    """What a thread may queue, allocate or ask for."""
    buffer, other = (cuda_buffer(device, (2, 2), "int64", kind) for kind in ("in", "device"))
    host, event, kernels = np.zeros(4, np.int64), device.event(), CudaKernels.__new__(CudaKernels)
    kernels._free = defaultdict(list)
    event.record()

    def capture() -> Graph:
        with device.capture() as graph:
            device.zero(buffer.address, 8)
        return graph

    graph = capture()
    return {
        "upload": lambda: device.upload(buffer.address, host.ctypes.data, 32), "capture": capture,
        "download": lambda: device.download(host.ctypes.data, buffer.address, 32), "send": other.send,
        "copy": lambda: device.copy(buffer.address, buffer.address + 8, 8), "memory": device.memory,
        "lines": lambda: device.copy_strided(other.address, buffer.address, 8, 2, 16), "pin": lambda: device.pinned(8),
        "zero": lambda: device.zero(buffer.address, 8), "allocate": lambda: device.allocate(8),
        "launch": lambda: (graph.launch(), buffer), "follow": lambda: device.follow(device.beside),
        "record": event.record, "ask": lambda: event.passed, "bring": lambda: kernels.bring(buffer),
        "synchronize": device.synchronize,
    }  # fmt: skip


NAMES = tuple(acts(host_device()[0]))


@pytest.mark.parametrize("name", NAMES)
def test_a_capture_is_left_alone(card: Card, name: str) -> None:
    """By other threads, on any of its streams, and by those of another device in the process."""
    device, driver = card
    act = acts(device)[name]
    must_wait(capture_of(device), act)
    assert driver.recorded is None
    must_wait(capture_of(host_device()[0]), act)


def test_no_two_threads_are_inside_of_onnx_runtime(card: Card) -> None:
    """Its captures forbid others to allocate, and a session that captures takes one caller."""
    device, _ = card
    inside = threading.Lock()

    def hold(begun: threading.Event, end: threading.Event) -> None:
        def run(*_: object) -> None:
            assert inside.acquire(blocking=False)
            begun.set()
            assert end.wait(LONG)
            inside.release()

        session = types.SimpleNamespace(
            get_inputs=list, get_outputs=list, get_input_memory_infos=list, run_with_iobinding=run
        )
        OrtCudaEngine(None, session, device, "target.onnx", graphs=True).run(None, None)

    must_wait(hold, lambda: device.allocate(8))
    end = threading.Event()
    end.set()
    must_wait(hold, lambda: hold(threading.Event(), end))


@pytest.mark.parametrize("name", ["decode", "target"])
def test_no_call_of_tensorrt_runs_into_a_capture(
    card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Its plain runs, its own capture, and its graph; nothing is uploaded before them that would wait."""
    backend = fake_trt.backend(monkeypatch, any_plans(tmp_path), *card)
    x, y, total = (backend.buffer((1, 2), "float32", kind) for kind in ("in", "in", "out"))
    call = backend.load(sums_graph(tmp_path).rename(tmp_path / f"{name}.onnx")).bind({"x": x, "y": y}, {"sum": total})
    for _ in range(3):
        must_wait(capture_of(card[0]), call.run)
    assert card[1].launches == (name == "target") * 2


def test_landings_are_taken_in_turn(card: Card) -> None:
    """Threads share those of a pipeline: between the look and the taking nobody comes."""
    buffer, kernels = cuda_buffer(card[0], (1,), "int64", "out"), CudaKernels.__new__(CudaKernels)
    kernels._free = defaultdict(list)
    kernels.bring(buffer).wait()
    (free,) = kernels._free.values()
    with ThreadPoolExecutor(1) as pool:
        with held_elsewhere(take_turn):
            bringing = pool.submit(kernels.bring, buffer)
            with pytest.raises(TimeoutError):
                bringing.result(SHORT)
            assert len(free) == 1
        arrival = bringing.result(LONG)
    assert not free and arrival.wait().tolist() == [0] and len(free) == 1


def test_a_failed_capture_leaves_nothing(card: Card) -> None:
    device, driver = card
    with pytest.raises(ZeroDivisionError), device.capture():
        _ = 1 / 0
    assert driver.recorded is None and not driver.graphs and gc.isenabled()
    memory = device.allocate(8)
    with device.capture() as graph:
        device.zero(memory.address, 8)
    assert len(driver.graphs) == 1
    del graph
    assert not driver.graphs


def test_batches_of_one_pipeline_in_threads(
    small_vocabulary: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each captures its own calls while the others draw: images are those of a batch that is alone."""
    device, driver = host_device()
    own = fake_trt.backend(monkeypatch, fake_trt.compiled(small_vocabulary.folder, tmp_path), device, driver)
    pipe, given = Pipeline.load(small_vocabulary.folder, own, warm=False), random_features(small_vocabulary, 3)

    def draw(seed: int) -> list[list[int]]:
        batch = pipe.batch(2, tree="small_9")
        jobs = [
            batch.submit(Request(features=features, features_mask=mask, seed=seed + place))
            for place, (features, mask) in enumerate(zip(given["features"], given["features_mask"], strict=True))
        ]
        return [job.result().codes.tolist() for job in jobs]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(draw, (0, 10, 20)))
    finally:
        sys.setswitchinterval(interval)
    assert driver.captures
    for seed, codes in zip((0, 10, 20), found, strict=True):
        assert codes == small_vocabulary.generate(**given, seed=seed, tree="small_9").codes.tolist()


# waits ----------------------------------------------------------------------------------------------------------
def slow(driver: HostDriver, monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """The driver's waits say that they have begun, and end when they are told."""
    begun, end, usual = threading.Event(), threading.Event(), driver.cuEventSynchronize

    def wait(event: Any) -> tuple:
        begun.set()
        assert end.wait(LONG)
        return usual(event)

    monkeypatch.setattr(driver, "cuEventSynchronize", wait)
    return begun, end


@pytest.mark.parametrize("how", ["arrival", "fetch"])
def test_others_queue_and_capture_while_a_thread_waits(card: Card, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    device, driver = card
    event, memory = device.event(), device.allocate(8)
    event.record()
    begun, end = slow(driver, monkeypatch)
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(event.wait if how == "arrival" else device.synchronize)
        try:
            assert begun.wait(LONG)

            def draw() -> None:
                device.zero(memory.address, 8)
                with device.capture() as graph:
                    device.zero(memory.address, 8)
                    end.set()  # the other thread's wait ends in the middle of it
                    waiting.result(LONG)
                graph.launch()

            pool.submit(draw).result(LONG)
        finally:
            end.set()
    assert driver.launches == 1


def test_an_upload_during_a_wait_is_not_part_of_it(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it reads is not written over when the wait is over."""
    device, driver = card
    buffer, seen = (cuda_buffer(device, (1,), "int64", kind) for kind in ("in", "out"))
    begun, end = slow(driver, monkeypatch)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(device.synchronize)
        try:
            assert begun.wait(LONG)
            buffer.host[:] = 1
            buffer.upload()
            device.copy(seen.address, buffer.address, 8)
        finally:
            end.set()
        waiting.result(LONG)
    buffer.host[:] = 2
    buffer.upload()
    seen.fetch()
    device.synchronize()
    assert seen.host.tolist() == [1]


# what is uploaded, and zeroed -----------------------------------------------------------------------------------
def test_what_is_sent_may_change_at_once(card: Card) -> None:
    """Of a buffer that the host has no pinned memory of: CUDA reads it when the stream gets there."""
    device, driver = card
    buffer = cuda_buffer(device, (4,), "int64", "device")
    seen = [cuda_buffer(device, (4,), "int64", "out") for _ in range(6)]
    for value, copy in enumerate(seen):
        buffer.host[value % 4] = value + 1
        (buffer.view(1, 3) if value % 4 in (1, 2) else buffer).send()
        device.copy(copy.address, buffer.address, buffer.nbytes)
        copy.fetch()
    buffer.host[:] = -1
    assert not driver.waits
    device.synchronize()
    wanted = np.zeros(4, np.int64)
    for value, copy in enumerate(seen):
        wanted[value % 4] = value + 1
        assert copy.host.tolist() == wanted.tolist()


def test_what_is_sent_reaches_what_later_uploads_compare_with(card: Card) -> None:
    device, _ = card
    buffer, seen = (cuda_buffer(device, (1,), "int64", kind) for kind in ("in", "out"))
    for value, act in ((5, buffer.send), (0, buffer.upload)):
        buffer.host[:] = value
        act()
        device.copy(seen.address, buffer.address, 8)
        seen.fetch()
        device.synchronize()
        assert seen.host.tolist() == [value]


@pytest.mark.parametrize("most", [1, 1 << 20])
def test_a_cache_is_cleared_whatever_its_planes(most: int) -> None:
    """CUDA takes no pitch of 2 GiB, and planes may be larger."""
    device, driver = host_device(most_pitch=most)
    cache = CudaCache(device, 2, 4, 2, 3, 2, "float32")
    driver.drain_all()
    ctypes.memset(cache.address, 1, cache.nbytes)
    cache.clear(1, 3)
    assert len(driver.queue) == (4 if most == 1 else 1)
    device.synchronize()
    content = np.frombuffer(ctypes.string_at(cache.address, cache.nbytes), np.uint8).reshape(4, 4, -1)
    assert not content[:, 1:3].any() and (content[:, [0, 3]] == 1).all()


# freeing --------------------------------------------------------------------------------------------------------
def test_nothing_is_freed_under_queued_work(card: Card) -> None:
    """The driver refuses it, on either stream."""
    device, driver = card
    for where in (device, device.beside):
        memory = where.allocate(64)
        buffer = cuda_buffer(where, (8,), "int64", "in")
        buffer.host[:] = 3
        buffer.upload()
        where.zero(memory.address, 64)
        device.beside.zero(memory.address, 8)
        assert any(driver.queues.values())
        del memory, buffer
        assert not driver.blocks and not driver.pinned and not any(driver.queues.values())


def test_marks_are_dropped_without_a_wait(card: Card) -> None:
    device, driver = card
    buffer = cuda_buffer(device, (1,), "int64", "in")
    for value in range(20):
        buffer.host[:] = value + 1
        buffer.upload()
        device.follow(device.beside)
    assert not driver.waits and driver.queue


@pytest.mark.parametrize("how", ["capture", "turn"])
@pytest.mark.parametrize("by", ["wait", "allocate", "free"])
def test_a_finaliser_waits_for_nobody(card: Card, how: str, by: str) -> None:
    """In a thread while another has its turn: what it frees is freed by the next one that may."""
    device, driver = card
    memory, event, more = device.allocate(8), device.event(), device.allocate(8)
    device.synchronize()

    with held_elsewhere(capture_of(device) if how == "capture" else take_turn):
        address = memory.address
        del memory
        assert address in driver.blocks
    if how == "turn":  # a capture frees what it has held up
        assert address in driver.blocks
        if by == "wait":
            event.wait()
        elif by == "allocate":
            device.pinned(8)
        else:
            del more
    assert address not in driver.blocks


def test_what_ends_in_a_capture_is_freed_behind_it(card: Card) -> None:
    device, driver = card
    memory, kept = device.allocate(8), device.allocate(8)
    device.synchronize()
    with device.capture():
        device.zero(kept.address, 8)
        del memory
        assert len(driver.blocks) == 2
    assert len(driver.blocks) == 1


def test_a_librarys_object_goes_behind_what_is_queued_and_not_into_a_capture(card: Card) -> None:
    """Sessions and contexts free memory that is their own."""
    device, driver = card
    left: list[bool] = []

    class Session:
        def __del__(self) -> None:
            left.append(driver.recorded is None and not driver.queue)

    held, memory = device.hold(Session()), device.allocate(8)
    assert isinstance(held.thing, Session) and driver.queue
    with device.capture():
        del held
        assert not left
    assert left == [True]
    held = device.hold(Session())
    device.zero(memory.address, 8)
    del held
    assert left == [True, True]
