"""A CUDA driver without a GPU: device memory is memory of its own here, and work waits on its stream until somebody
waits for it, or is captured. `CudaDevice(0, HostDriver())` is a device on which `fake_trt.py` computes.

It is as strict as CUDA where that matters: nothing is allocated, freed or waited for during a capture, copies stay
within what was allocated, and what is read of the host is read when the stream gets there. Nothing is freed under work
that is queued, and other threads leave a capture alone. Streams are as late as they may be: nothing is done before an
event or a wait demands it, and then nothing else is done.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
import time
import types
from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from cascade_trt.runtime.backends.device import CudaDevice

CUresult = IntEnum("CUresult", {"CUDA_SUCCESS": 0, "CUDA_ERROR_INVALID_VALUE": 1, "CUDA_ERROR_OUT_OF_MEMORY": 2,
                                "CUDA_ERROR_NOT_READY": 600, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED": 900})  # fmt: skip
OK = CUresult(0)
STREAM = 7  # of rounds; the next is that of what runs once an image
BESIDE = 8
Work = Callable[[], None]


@dataclass
class Mark:
    """Where an event was recorded."""

    stream: int
    passed: bool = False
    seconds: float = 0.0

    def pass_by(self) -> None:
        self.passed, self.seconds = True, time.perf_counter()


class Event:
    """`mark` is the newest; an event that was never recorded has passed."""

    def __init__(self, timed: bool) -> None:
        self.mark, self.timed = Mark(STREAM, passed=True), timed


class HostDriver:
    """cuda.bindings.driver, as far as `runtime/backends/device.py` uses it."""

    CUresult = CUresult
    CUdevice_attribute = types.SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=75, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=76,
        CU_DEVICE_ATTRIBUTE_MAX_PITCH=11,
    )  # fmt: skip
    CUstream_flags = types.SimpleNamespace(CU_STREAM_NON_BLOCKING=1)
    CUstreamCaptureMode = types.SimpleNamespace(
        CU_STREAM_CAPTURE_MODE_GLOBAL=0, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1, CU_STREAM_CAPTURE_MODE_RELAXED=2
    )
    CUmemorytype = types.SimpleNamespace(CU_MEMORYTYPE_DEVICE=2)
    CUDA_MEMCPY3D = types.SimpleNamespace

    def __init__(
        self, capability: tuple[int, int] = (8, 9), name: str = "A card", most_pitch: int = (1 << 31) - 1
    ) -> None:
        self.capability, self.name, self.most_pitch = capability, name, most_pitch
        self.blocks: dict[int, Any] = {}  # address -> device memory
        self.pinned: dict[int, Any] = {}
        self.queues: dict[int, deque[Work]] = defaultdict(deque)  # by stream
        self.recorded: list[Work] | None = None  # while a capture is under way
        self.captured = self.capturing = 0  # the stream of that capture, and its thread
        self._thread = threading.local()  # with its capture mode
        self._draining = threading.RLock()
        self.streams: list[int] = []
        self.graphs: dict[int, list[Work]] = {}
        self.launches = self.waits = self.captures = 0
        self.waited: list[int] = []  # the streams that the host has waited for
        self._numbers = itertools.count(1)

    # what is queued -----------------------------------------------------------------------------------------
    @property
    def queue(self) -> deque[Work]:
        """Of rounds."""
        return self.queues[STREAM]

    def enqueue(self, work: Work, stream: int = STREAM) -> None:
        assert stream in self.streams, "on no stream of this device"
        self._is_free("queued")
        capturing = self.recorded is not None and stream == self.captured
        (self.recorded if capturing else self.queues[stream]).append(work)  # type: ignore[union-attr]

    def drain(self, stream: int, mark: Mark | None = None) -> None:
        """Does what is queued on a stream, up to a mark on it if there is one."""
        queue = self.queues[stream]
        with self._draining:  # a stream does one thing after the other
            while queue and not (mark is not None and mark.passed):
                queue.popleft()()

    def drain_all(self) -> None:
        for stream in reversed(self.streams):
            self.drain(stream)

    def _is_free(self, what: str) -> None:
        """While a stream is captured, all but the thread that does so leave the driver alone."""
        assert self.recorded is None or self.capturing == threading.get_ident(), f"{what} in another thread's capture"

    def check(self, address: int, size: int) -> None:
        """That a piece of device memory was allocated, and is still."""
        starts = sorted(self.blocks)
        place = bisect_right(starts, address) - 1
        assert place >= 0, "not on the device"
        assert address + size <= starts[place] + len(self.blocks[starts[place]]), "behind what was allocated"

    # the device ---------------------------------------------------------------------------------------------
    def cuInit(self, _: int) -> tuple:
        return (OK,)

    def cuDriverGetVersion(self) -> tuple:
        return OK, 13010

    def cuDeviceGetCount(self) -> tuple:
        return OK, 1

    def cuDeviceGet(self, index: int) -> tuple:
        return OK, index

    def cuDeviceGetName(self, *_: int) -> tuple:
        return OK, self.name.encode() + b"\0"

    def cuDeviceGetAttribute(self, which: int, _: int) -> tuple:
        return OK, self.most_pitch if which == 11 else self.capability[which - 75]

    def cuDevicePrimaryCtxRetain(self, _: int) -> tuple:
        return OK, 1

    def cuCtxSetCurrent(self, _: int) -> tuple:
        return (OK,)

    def cuCtxGetStreamPriorityRange(self) -> tuple:
        return OK, 0, -5

    def cuStreamCreateWithPriority(self, _: int, priority: int) -> tuple:
        assert priority == (0 if self.streams else -5), "rounds come first"
        self.streams.append(STREAM + len(self.streams))
        return OK, self.streams[-1]

    def cuMemGetInfo(self) -> tuple:
        return OK, 1 << 30, 1 << 31

    # memory -------------------------------------------------------------------------------------------------
    def _new(self, size: int, into: dict[int, Any]) -> tuple:
        assert self.recorded is None, "allocated during a capture"
        block = ctypes.create_string_buffer(b"\xa5" * (size + 255), size + 255)
        address = -(-ctypes.addressof(block) // 256) * 256
        into[address] = block
        return OK, address

    def _free(self, address: int, of: dict[int, Any]) -> tuple:
        assert self.recorded is None, "freed during a capture"
        assert not any(self.queues.values()), "freed under work that is queued"  # whether CUDA waits, it does not say
        del of[address]
        return (OK,)

    def cuMemAlloc(self, size: int) -> tuple:
        return self._new(size, self.blocks)

    def cuMemFree(self, address: int) -> tuple:
        return self._free(address, self.blocks)

    def cuMemHostAlloc(self, size: int, _: int) -> tuple:
        return self._new(size, self.pinned)

    def cuMemFreeHost(self, address: int) -> tuple:
        return self._free(address, self.pinned)

    def _move(self, to: int, source: int, size: int, stream: int) -> tuple:
        self.enqueue(lambda: ctypes.memmove(to, source, size) and None, stream)
        return (OK,)

    def cuMemcpyHtoDAsync(self, to: int, source: int, size: int, stream: int) -> tuple:
        self.check(to, size)
        return self._move(to, source, size, stream)

    def cuMemcpyDtoHAsync(self, to: int, source: int, size: int, stream: int) -> tuple:
        self.check(source, size)
        return self._move(to, source, size, stream)

    def cuMemcpyDtoDAsync(self, to: int, source: int, size: int, stream: int) -> tuple:
        self.check(to, size)
        self.check(source, size)
        return self._move(to, source, size, stream)

    def cuMemcpy3DAsync(self, copy: Any, stream: int) -> tuple:
        assert copy.WidthInBytes <= min(copy.srcPitch, copy.dstPitch), "lines overlap"
        assert copy.Height <= min(copy.srcHeight, copy.dstHeight) or copy.Depth == 1, "planes overlap"

        def place(start: int, pitch: int, height: int, plane: int, line: int) -> int:
            return start + (plane * height + line) * pitch

        pairs = [
            (place(copy.dstDevice, copy.dstPitch, copy.dstHeight, plane, line),
             place(copy.srcDevice, copy.srcPitch, copy.srcHeight, plane, line))
            for plane in range(copy.Depth) for line in range(copy.Height)
        ]  # fmt: skip
        for to, source in (pairs[0], pairs[-1]):
            self.check(to, copy.WidthInBytes)
            self.check(source, copy.WidthInBytes)
        size = copy.WidthInBytes
        self.enqueue(lambda: [ctypes.memmove(to, source, size) for to, source in pairs] and None, stream)
        return (OK,)

    def cuMemsetD8Async(self, to: int, value: int, size: int, stream: int) -> tuple:
        self.check(to, size)
        self.enqueue(lambda: ctypes.memset(to, value, size) and None, stream)
        return (OK,)

    def cuMemsetD2D8Async(self, to: int, pitch: int, value: int, width: int, lines: int, stream: int) -> tuple:
        assert width <= pitch <= self.most_pitch, "a pitch that CUDA refuses"
        self.check(to, pitch * (lines - 1) + width)
        places = range(to, to + lines * pitch, pitch)
        self.enqueue(lambda: [ctypes.memset(place, value, width) for place in places] and None, stream)
        return (OK,)

    # the streams --------------------------------------------------------------------------------------------
    def _waits(self, stream: int) -> None:
        self.waits += 1
        self.waited.append(stream)

    def cuThreadExchangeStreamCaptureMode(self, mode: int) -> tuple:
        before = getattr(self._thread, "mode", self.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL)
        self._thread.mode = mode
        return OK, before

    def cuStreamSynchronize(self, stream: int) -> tuple:
        assert self.recorded is None, "waited for a stream during a capture"
        self._waits(stream)
        self.drain(stream)
        return (OK,)

    def cuStreamWaitEvent(self, stream: int, event: Event, _: int) -> tuple:
        mark = event.mark  # as it is now
        self.enqueue(lambda: self.drain(mark.stream, mark), stream)
        return (OK,)

    def cuStreamBeginCapture(self, stream: int, _: int) -> tuple:
        assert stream == STREAM and self.recorded is None
        self.recorded, self.captured, self.capturing = [], stream, threading.get_ident()
        self.captures += 1
        return (OK,)

    def cuStreamEndCapture(self, _: int) -> tuple:
        number = next(self._numbers)
        self.graphs[number], self.recorded = self.recorded or [], None
        return OK, number

    def cuGraphInstantiate(self, graph: int, _: int) -> tuple:
        number = next(self._numbers)
        self.graphs[number] = self.graphs[graph]
        return OK, number

    def cuGraphDestroy(self, graph: int) -> tuple:
        del self.graphs[graph]
        return (OK,)

    cuGraphExecDestroy = cuGraphDestroy

    def cuGraphLaunch(self, graph: int, stream: int) -> tuple:
        self._is_free("launched")
        self.launches += 1
        self.queues[stream] += self.graphs[graph]
        return (OK,)

    # events -------------------------------------------------------------------------------------------------
    def cuEventCreate(self, flags: int) -> tuple:
        return OK, Event(timed=not flags & 2)  # CU_EVENT_DISABLE_TIMING

    def cuEventDestroy(self, _: Event) -> tuple:
        return (OK,)

    def cuEventRecord(self, event: Event, stream: int) -> tuple:
        event.mark = Mark(stream)
        self.enqueue(event.mark.pass_by, stream)
        return (OK,)

    def cuEventQuery(self, event: Event) -> tuple:
        self._is_free("asked")
        return (OK if event.mark.passed else CUresult.CUDA_ERROR_NOT_READY,)

    def cuEventSynchronize(self, event: Event) -> tuple:
        relaxed = getattr(self._thread, "mode", 0) == self.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        assert relaxed, "another thread may capture"
        assert self.recorded is None or self.capturing != threading.get_ident(), "waited for during a capture"
        self._waits(event.mark.stream)
        self.drain(event.mark.stream, event.mark)
        return (OK,)

    def cuEventElapsedTime(self, first: Event, last: Event) -> tuple:
        assert first.timed and last.timed  # CUDA calls others an invalid handle
        return OK, 1e3 * (last.mark.seconds - first.mark.seconds)


def host_device(capability: tuple[int, int] = (8, 9), **options: Any) -> tuple[CudaDevice, HostDriver]:
    driver = HostDriver(capability, **options)
    return CudaDevice(0, driver), driver
