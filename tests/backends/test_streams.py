"""Work of two streams, each of which does nothing before an event or a wait demands it (host_cuda.py): an order that no
event asks for does not come about."""

from __future__ import annotations

import ctypes
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import fake_trt
import numpy as np
import pytest
from any_plans import any_plans
from contract import sums_graph
from host_cuda import BESIDE, STREAM, HostDriver, host_device

from cascade_trt.runtime.backends.cuda_memory import CudaBuffer, cuda_buffer
from cascade_trt.runtime.backends.device import CudaDevice
from cascade_trt.runtime.backends.kernels.on_cuda import CudaKernels
from cascade_trt.runtime.backends.tensorrt import TensorRtBackend, TensorRtCall

Card = tuple[CudaDevice, HostDriver]


class Kernels(CudaKernels):
    """Without any: they bring buffers."""

    def __init__(self) -> None:
        self._free = defaultdict(list)


@pytest.fixture
def on_card() -> Iterator[Card]:
    device, driver = host_device()
    yield device, driver
    driver.drain_all()


@pytest.fixture
def backend(on_card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TensorRtBackend:
    return fake_trt.backend(monkeypatch, any_plans(tmp_path), *on_card)


def bound(backend: TensorRtBackend, folder: Path, name: str) -> tuple[TensorRtCall, CudaBuffer, CudaBuffer]:
    """x + 0 of [1, 2] on the stream of the engine `name`: the call, x, what comes out."""
    engine = backend.load(sums_graph(folder).rename(folder / f"{name}.onnx"))
    x, y, total = (backend.buffer((1, 2), "float32", kind) for kind in ("in", "in", "out"))
    return engine.bind({"x": x, "y": y}, {"sum": total}), x, total


def content(buffer: CudaBuffer) -> list[float]:
    """As it lies on the device, whatever is still queued."""
    return np.frombuffer(ctypes.string_at(buffer.address, buffer.nbytes), np.float32).tolist()


def test_new_memory_is_zeroed_before_the_other_stream_writes_it(
    backend: TensorRtBackend, tmp_path: Path, on_card: Card
) -> None:
    bound(backend, tmp_path, "text")  # makes the stream's scratch, for which an empty one is freed
    call, x, total = bound(backend, tmp_path, "decode")
    driver = on_card[1]
    x.host[:] = 4
    waits = driver.waits
    call.run()
    assert driver.waits == waits and driver.queue and content(total) != [4, 4]
    driver.drain(BESIDE)
    assert content(total) == [4, 4]
    driver.drain(STREAM)
    assert content(total) == [4, 4]


def test_the_host_waits_for_an_engines_own_stream(backend: TensorRtBackend, tmp_path: Path, on_card: Card) -> None:
    driver = on_card[1]
    for name, stream in (("decode", BESIDE), ("condition", BESIDE), ("text", BESIDE), ("target", STREAM)):
        call, x, total = bound(backend, tmp_path, name)
        waited = len(driver.waited)
        x.host[:] = 3
        call.run(("sum",))
        assert driver.waited[waited:] == [stream] and total.host.tolist() == [[3, 3]]


def test_a_stream_computes_while_the_other_is_late(backend: TensorRtBackend, tmp_path: Path, on_card: Card) -> None:
    """What was queued first on the second stream is not done when a round has been waited for."""
    driver = on_card[1]
    image, x, pixels = bound(backend, tmp_path, "decode")
    round_, y, drawn = bound(backend, tmp_path, "target")
    driver.drain_all()
    x.host[:], y.host[:] = 1, 2
    image.run()
    round_.run(("sum",))
    assert drawn.host.tolist() == [[2, 2]] and content(pixels) == [0, 0] and driver.queues[BESIDE]
    driver.drain(BESIDE)
    assert content(pixels) == [1, 1]


def test_streams_share_no_scratch(backend: TensorRtBackend, tmp_path: Path) -> None:
    calls = {name: bound(backend, tmp_path, name)[0] for name in ("decode", "text", "target", "embed")}
    scratch = {name: call._context.memory.address for name, call in calls.items()}
    assert scratch["decode"] == scratch["text"] != scratch["target"] == scratch["embed"]


def test_a_buffer_has_engines_of_one_stream(backend: TensorRtBackend, tmp_path: Path) -> None:
    _, x, total = bound(backend, tmp_path, "decode")
    engine = backend.load(sums_graph(tmp_path).rename(tmp_path / "target.onnx"))
    with pytest.raises(ValueError, match="x is a buffer of engines on another stream"):
        engine.bind({"x": x.view(0, 1), "y": x}, {"sum": total})


@pytest.mark.parametrize("stream", [STREAM, BESIDE])
def test_uploads_wait_for_nothing_and_lose_nothing(on_card: Card, stream: int) -> None:
    """Many in a row, each of which leaves pinned memory when its stream gets there; views upload their parts."""
    device, driver = on_card
    buffer = cuda_buffer(device, (4,), "int64", "in")
    if stream == BESIDE:
        buffer.upload()
        buffer.work_on(device.beside, "x")
    seen = [cuda_buffer(buffer.device, (4,), "int64", "out") for _ in range(12)]
    for value, copy in enumerate(seen):
        buffer.host[value % 4] = value + 1
        (buffer.view(2, 4) if value % 4 > 1 else buffer).upload()
        buffer.device.copy(copy.address, buffer.address, buffer.nbytes)
        copy.fetch()
        if value == 6:
            driver.drain_all()  # what has left is written again
    assert not driver.waits
    blocks = len(driver.pinned)
    buffer.device.synchronize()
    wanted = np.zeros(4, np.int64)
    for value, copy in enumerate(seen):
        wanted[value % 4] = value + 1
        assert copy.host.tolist() == wanted.tolist()
    assert blocks <= len(seen) + 8


def test_what_nobody_waits_for_spoils_nothing(on_card: Card) -> None:
    """An arrival that is dropped gives its memory back, and the next content of its stream comes there; that of the
    other stream comes elsewhere, for it may come first."""
    device, driver = on_card
    kernels, ours = Kernels(), cuda_buffer(device, (1,), "int64", "in")
    theirs = cuda_buffer(device, (1,), "int64", "in")
    theirs.work_on(device.beside, "x")
    ours.host[:], theirs.host[:] = 1, 2
    ours.upload()
    theirs.upload()
    kernels.bring(theirs)  # dropped
    first = kernels.bring(ours)
    assert first.wait().tolist() == [1] and driver.queues[BESIDE]
    pinned = len(driver.pinned)
    again, other = kernels.bring(theirs), kernels.bring(ours)
    assert len(driver.pinned) == pinned
    assert (other.wait().tolist(), again.wait().tolist()) == ([1], [2])
    assert first.wait().tolist() == [1]


def test_a_device_has_two_streams(on_card: Card) -> None:
    device, _ = on_card
    assert (device.stream, device.beside.stream) == (STREAM, BESIDE)
    assert device.beside is device.beside and device.beside.beside is device
    device.beside.synchronize()
    assert (device.synchronized, device.beside.synchronized) == (0, 1)
