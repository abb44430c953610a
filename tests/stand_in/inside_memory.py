"""Memory of `ort-cuda` on the stand-in: its moves against those of host memory, what is uploaded, what is freed, and
what `device.py` queues."""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from contract import sums_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_in.calls import calls, forget

from cascade_trt.runtime.backends.cuda_memory import CudaBuffer, CudaCache, cuda_buffer
from cascade_trt.runtime.backends.device import CudaDevice
from cascade_trt.runtime.backends.host import HostBuffer, HostCache
from cascade_trt.runtime.backends.ort_cuda import OrtCudaBackend
from cascade_trt.runtime.errors import CascadeError

BACKEND = OrtCudaBackend()
DEVICE = BACKEND.device
LAYERS, ROWS, HEADS, SLOTS, DIM = 2, 6, 3, 9, 4


def write(buffer: CudaBuffer, array: np.ndarray) -> None:
    """Puts `array` into the GPU's memory."""
    assert buffer.nbytes == array.nbytes and array.flags.c_contiguous
    DEVICE.upload(buffer.address, array.ctypes.data, array.nbytes)
    DEVICE.synchronize()


def read(buffer: CudaBuffer, like: np.ndarray) -> np.ndarray:
    """What the GPU's memory holds."""
    found = np.empty_like(like)
    DEVICE.download(found.ctypes.data, buffer.address, found.nbytes)
    DEVICE.synchronize()
    return found


# moves ----------------------------------------------------------------------------------------------------------
paths = st.sets(st.integers(1, 5), max_size=4).map(lambda nodes: [0, *sorted(nodes)])
rows = st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=ROWS, unique=True)
moves = st.tuples(st.just("move"), st.tuples(rows, st.integers(0, SLOTS - 6), paths))
places = st.integers(0, ROWS - 1)
copies = st.tuples(places, places, st.integers(1, ROWS), st.integers(1, SLOTS)).map(
    lambda c: ("copy_rows", (c[0], c[1], min(c[2], ROWS - max(c[0], c[1])), c[3]))
)
clears = st.tuples(places, st.integers(1, ROWS)).map(lambda c: ("clear", (c[0], min(ROWS, c[0] + c[1]))))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(moves, copies, clears), min_size=1, max_size=5), st.sampled_from(["float32", "float16"]))
def test_a_cache_moves_as_on_the_host(steps: Sequence[tuple[str, tuple]], dtype: str) -> None:
    """Rows that overlap included; nothing but the entries that are meant changes."""
    shape = LAYERS, ROWS, HEADS, SLOTS, DIM, dtype
    device, host = CudaCache(DEVICE, *shape), HostCache(*shape)
    assert device.nbytes == host.nbytes
    rng = np.random.default_rng(0)
    (ours, _), (theirs, _) = device.bindings(0, ROWS), host.bindings(0, ROWS)
    assert ours.keys() == theirs.keys()
    for name, buffer in theirs.items():
        buffer.host[:] = rng.normal(size=buffer.shape)
        write(ours[name], buffer.host)
    for what, arguments in steps:
        for cache in (device, host):
            getattr(cache, what)(*arguments)
    for name, buffer in theirs.items():
        np.testing.assert_array_equal(read(ours[name], buffer.host), buffer.host)


def test_a_cache_is_zeroed_and_its_bindings_are_rows_of_one_block() -> None:
    cache = CudaCache(DEVICE, LAYERS, ROWS, HEADS, SLOTS, DIM, "float16")
    whole, part = cache.bindings(0, ROWS)[0], cache.bindings(2, 4)[0]
    for name, buffer in whole.items():
        assert not read(buffer, np.ones(buffer.shape, np.float16)).any()
        assert part[name].address == buffer.address + 2 * buffer.nbytes // ROWS
    assert whole["past_value.0"].address == whole["past_key.0"].address + cache.nbytes // (2 * LAYERS)


def test_an_entry_moves_by_one_copy_for_neighbouring_rows() -> None:
    cache = CudaCache(DEVICE, LAYERS, ROWS, HEADS, SLOTS, DIM, "float16")
    forget()
    cache.move([2, 3], 1, [0, 1, 3, 4])
    sizes = [call.size for call in calls("copy")]
    assert sizes == 2 * [2 * LAYERS * 2 * HEADS * DIM * 2]
    assert not calls("synchronize", "upload", "download")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 7), st.integers(0, 7), st.integers(1, 8), st.sampled_from(["out", "device"]))
def test_a_buffer_moves_as_on_the_host(source: int, to: int, count: int, kind) -> None:
    count = min(count, 8 - max(source, to))
    content = np.random.default_rng(1).integers(0, 99, (8, 3))
    buffer, host = cuda_buffer(DEVICE, (8, 3), "int64", kind), HostBuffer(content.copy())
    write(buffer, content)
    for moved in (buffer, host):
        moved.move(source, to, count)
    np.testing.assert_array_equal(read(buffer, content), host.host)


def test_a_moved_input_is_uploaded_where_it_went() -> None:
    buffer = cuda_buffer(DEVICE, (4, 2), "int64", "in")
    buffer.host[3] = 7
    buffer.upload()
    buffer.move(3, 0, 1)
    buffer.upload()
    np.testing.assert_array_equal(read(buffer, buffer.host), [[7, 7], [0, 0], [0, 0], [7, 7]])


# uploads and downloads ------------------------------------------------------------------------------------------
def test_a_run_uploads_what_was_written_and_waits_for_what_it_fetches(tmp_path: Path) -> None:
    x, y = (BACKEND.buffer((4, 2), "float32", "in") for _ in range(2))
    total = BACKEND.buffer((4, 2), "float32", "out")
    call = BACKEND.load(sums_graph(tmp_path)).bind({"x": x, "y": y.view(0, 4)}, {"sum": total})
    for _ in range(3):  # the first run is plain, the second captures
        call.run(fetch=("sum",))
    forget()
    call.run()
    assert [c.kind for c in calls()] == ["graph"]
    x.host[2] = 1
    forget()
    call.run(fetch=("sum",))
    upload, graph, download, *_ = made = calls()
    assert [c.kind for c in made] == ["upload", "graph", "download", "record", "synchronize"]
    assert (upload.to, upload.size) == (x.address, x.nbytes)
    assert (download.source, download.to, download.size) == (total.address, total.host.ctypes.data, total.nbytes)
    assert {c.stream for c in made} == {DEVICE.stream} and graph.captured is False
    np.testing.assert_array_equal(read(x, x.host), x.host)


def test_a_view_uploads_its_own_part() -> None:
    buffer = cuda_buffer(DEVICE, (4, 2), "int64", "in")
    buffer.host[:] = 5
    forget()
    buffer.view(1, 3).upload()
    (upload,) = calls("upload")
    assert (upload.to, upload.size) == (buffer.address + 16, 32)
    np.testing.assert_array_equal(read(buffer, buffer.host)[:, 0], [0, 5, 5, 0])


def test_an_input_may_be_written_as_soon_as_a_run_returns() -> None:
    """The upload reads a copy, and the copy is not written while an upload may still read it (here it never does: the
    mark behind it has passed). The host does not wait."""
    buffer = cuda_buffer(DEVICE, (4, 2), "int64", "in")
    start, stop = buffer.host.ctypes.data, buffer.host.ctypes.data + buffer.nbytes
    DEVICE.synchronize()
    forget()
    for value in (1, 2):
        buffer.host[:] = value
        buffer.upload()
    assert [call.kind for call in calls()] == ["upload", "record", "upload"]
    assert not any(start <= call.source < stop for call in calls("upload"))
    DEVICE.synchronize()
    forget()
    buffer.host[:] = 3
    buffer.upload()
    assert [call.kind for call in calls()] == ["upload"]


def test_an_output_is_no_buffer_that_the_host_writes(tmp_path: Path) -> None:
    x, y = (BACKEND.buffer((1, 2), "float32", "in") for _ in range(2))
    engine = BACKEND.load(sums_graph(tmp_path))
    with pytest.raises(ValueError, match="sum is an output, and its buffer is one that the host writes"):
        engine.bind({"x": x, "y": y}, {"sum": x})
    with pytest.raises(ValueError, match="y is a buffer of another backend"):
        engine.bind({"x": x, "y": HostBuffer(np.zeros((1, 2), np.float32))}, {})


# freeing --------------------------------------------------------------------------------------------------------
def freed() -> set[int]:
    gc.collect()
    return {call.to for call in calls("free", "unpin")}


def test_memory_is_freed_with_the_last_reference(tmp_path: Path) -> None:
    forget()
    x, y, total = (BACKEND.buffer((4, 2), "float32", kind) for kind in ("in", "in", "out"))
    kept = total.host
    made = {call.to for call in calls("allocate", "pin")}
    assert len(made) == 6  # on the GPU and beside it
    call = BACKEND.load(sums_graph(tmp_path)).bind({"x": x.view(0, 2), "y": y.view(0, 2)}, {"sum": total.view(0, 2)})
    on_device = {x.address, y.address, total.address}
    del x, y, total
    assert not freed() & made
    del call
    assert freed() & made >= on_device and len(freed() & made) == 5  # the array still shows its pinned memory
    assert not kept.any()
    del kept
    assert freed() >= made


def test_what_does_not_fit_is_a_sentence() -> None:
    with pytest.raises(CascadeError, match=r"^a buffer needs 9.0 GiB of the GPU's memory, and \d\.\d GiB are free: "):
        BACKEND.buffer((9 << 30,), "bool", "device")
    with pytest.raises(CascadeError, match=r"^the cache of 64 rows needs 16.0 GiB of the GPU's memory"):
        BACKEND.cache(32, 64, 32, 1024, 64, "float16")


def test_there_is_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    with pytest.raises(CascadeError, match=r"^there is no GPU 1: CUDA shows 1 GPU \(CUDA_VISIBLE_DEVICES is '5'\)"):
        OrtCudaBackend(1)


# graphs and kernels ---------------------------------------------------------------------------------------------
def test_captured_work_runs_when_it_is_launched() -> None:
    source, to = (DEVICE.allocate(8) for _ in range(2))
    kernels = DEVICE.load(b"walk commit\0")
    sent, found = np.array([5], np.int64), np.zeros(1, np.int64)
    forget()
    with DEVICE.capture() as graph:
        DEVICE.copy(to.address, source.address, 8)
        kernels.launch("walk", (1, 1, 1), (32, 1, 1), (ctypes.c_int(7), ctypes.c_void_p(source.address)))
    copy, launch = calls("copy", "launch")
    assert copy.captured and launch.captured and (launch.name, launch.size, launch.stream) == ("walk", 7, DEVICE.stream)
    DEVICE.upload(source.address, sent.ctypes.data, 8)
    for wanted in (0, 5):
        DEVICE.download(found.ctypes.data, to.address, 8)
        DEVICE.synchronize()
        assert found[0] == wanted
        graph.launch()


def test_what_fails_in_a_capture_ends_it() -> None:
    with pytest.raises(ZeroDivisionError), DEVICE.capture():
        _ = 1 / 0
    forget()
    memory = DEVICE.allocate(8)
    DEVICE.zero(memory.address, 8)
    assert len(calls("zero")) == 2 and not any(call.captured for call in calls())


def test_kernels_that_are_not_there_are_a_sentence() -> None:
    with pytest.raises(CascadeError, match=r"^CUDA refuses a call \(NOT_FOUND\): start again"):
        DEVICE.load(b"walk\0").launch("commit", (1, 1, 1), (1, 1, 1), ())


def test_events_mark_places_on_the_stream() -> None:
    forget()
    first, second = DEVICE.event(), DEVICE.event()
    first.record()
    second.record()
    second.wait()
    assert [call.kind for call in calls()] == ["record", "record", "synchronize"]
    assert second.since(first) >= 0


def test_threads_allocate_and_free_while_others_capture(tmp_path: Path) -> None:
    """ONNX Runtime captures for each thread that runs a call: once in every new one. The stand-in refuses to allocate
    and to free in other threads meanwhile; a memory that is not freed stays in its count."""
    engine = BACKEND.load(sums_graph(tmp_path))
    x, y, total = (BACKEND.buffer((4, 2), "float32", kind) for kind in ("in", "in", "out"))
    call, done = engine.bind({"x": x, "y": y}, {"sum": total}), threading.Event()
    for _ in range(2):
        call.run()

    def make() -> int:
        count = 0
        while not done.is_set():
            BACKEND.buffer((4, 2), "float32", "in").upload()
            count += 1
        return count

    gc.collect()
    free = DEVICE.memory()[0]
    with ThreadPoolExecutor(2) as pool:
        making = [pool.submit(make) for _ in range(2)]
        try:
            for _ in range(60):
                forget()
                thread = threading.Thread(target=call.run, args=(("sum",),))
                thread.start()
                thread.join()
                assert len(calls("capture")) == len(calls("graph")) == 1
        finally:
            done.set()
        assert all(each.result() > 60 for each in making)
    gc.collect()
    assert DEVICE.memory()[0] == free


def test_other_threads_may_use_the_device() -> None:
    made: list[CudaDevice | CudaBuffer] = []
    thread = threading.Thread(target=lambda: made.append(cuda_buffer(DEVICE, (2,), "int64", "in")))
    thread.start()
    thread.join()
    assert len(made) == 1
