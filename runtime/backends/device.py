"""One GPU through CUDA's driver: two streams, memory, pinned memory, copies, events, graphs and kernels.

cuda-bindings is all that is needed, and it is imported when the first device is made. The driver's interface is used
rather than that of the CUDA runtime: it comes with the driver itself, and it works in the primary context, where ONNX
Runtime, TensorRT and PyTorch work too. So addresses and the stream may be given to them as they are.

Every refusal of CUDA is a CascadeError. Work is queued on `stream` and `synchronize` waits for it; memory is freed with
the last reference to it. Sizes are in bytes, addresses and handles are integers.

Rounds are on the first stream. What runs once an image (text, condition, decode) is on the second, `CudaDevice.beside`,
and so a round never waits for it. A memory belongs to the stream of the engines that are bound to it
(`CudaBuffer.work_on`), and all that is queued for it is queued there. docs/kernels.md has what orders the two streams.

Threads may share a device: calls take turns (`turns.py`), and no thread waits for the GPU while it has its turn.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from functools import cached_property
from importlib import import_module
from typing import Any

import numpy as np

from ..errors import CascadeError
from .cuda_errors import CPU_INSTEAD, DRIVER, gib, sentence, visible
from .turns import TURN

LEAST_CUDA = 13000  # as the driver counts: 1000 * major + 10 * minor
LEAST_CAPABILITY = 7, 5  # CUDA 13 knows no older GPU
_NO_TIMING = 2  # CU_EVENT_DISABLE_TIMING


class CudaDevice:
    """GPU `index` of those that CUDA shows (`CUDA_VISIBLE_DEVICES` says which), with one of its streams. `driver` is
    cuda.bindings.driver, or what stands for it in tests. Raises CascadeError where there is no such GPU, no driver, or
    one that is too old."""

    def __init__(self, index: int = 0, driver: Any = None) -> None:
        self._cuda = cuda = driver or _bindings()
        self._start()
        count = self.check(cuda.cuDeviceGetCount())
        if not 0 <= index < count:
            shown = f"CUDA shows {count} GPU{'s' * (count != 1)}{visible()}"
            raise CascadeError(f"there is no GPU {index}: {shown}, counted from 0: choose another.")
        self.index = index
        self.waits = self.synchronized = 0  # for all work: the number of the newest, and of the newest that is over
        self._marks: list[Event] = []  # for such waits
        handle = self.check(cuda.cuDeviceGet(index))
        self.name = self.check(cuda.cuDeviceGetName(256, handle)).split(b"\0")[0].decode()
        kind = cuda.CUdevice_attribute
        parts = kind.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, kind.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR
        major, minor = (self.check(cuda.cuDeviceGetAttribute(part, handle)) for part in parts)
        self._most_pitch = self.check(cuda.cuDeviceGetAttribute(kind.CU_DEVICE_ATTRIBUTE_MAX_PITCH, handle))
        self.capability: tuple[int, int] = major, minor
        if self.capability < LEAST_CAPABILITY:
            least = ".".join(map(str, LEAST_CAPABILITY))
            raise CascadeError(
                f"{self.name} has compute capability {major}.{minor}, {least} is needed (Turing or newer): take "
                f"another GPU, {CPU_INSTEAD}."
            )
        self._context = self.check(cuda.cuDevicePrimaryCtxRetain(handle))
        self._use()
        self._priorities: tuple[int, int] = self.check(cuda.cuCtxGetStreamPriorityRange())  # the least, the greatest
        self._streams: list[int] = []
        self.stream = self._new_stream(self._priorities[1])
        # None of them is given back before the process ends: what is still bound to them might need them until then.

    def _new_stream(self, priority: int) -> int:
        flag = self._cuda.CUstream_flags.CU_STREAM_NON_BLOCKING
        with TURN.lock:
            self._streams.append(int(self.check(self._cuda.cuStreamCreateWithPriority(flag, priority))))
        return self._streams[-1]

    @cached_property
    def beside(self) -> CudaDevice:
        """This device with its second stream, in the place of the first. The GPU starts what is queued on the first one
        before what is queued here: a decoder's large kernels leave no room for the small ones of a round else."""
        with TURN.lock:
            if "beside" in self.__dict__:  # another thread was earlier
                return self.__dict__["beside"]
            self._use()
            other = copy(self)
            other.stream, other._marks = self._new_stream(self._priorities[0]), []
            other.waits = other.synchronized = 0
            other.__dict__["beside"], self.__dict__["beside"] = self, other
            return other

    def _start(self) -> None:
        """Finds the driver, and whether it is new enough."""
        try:
            self.check(self._cuda.cuInit(0))
            version = self.check(self._cuda.cuDriverGetVersion())
        except RuntimeError:  # cuda-bindings finds no library, or it lacks a function
            raise CascadeError(f"no NVIDIA driver was found on this machine: {DRIVER}.") from None
        if version < LEAST_CUDA:
            known = f"it knows CUDA {version // 1000}.{version % 1000 // 10}, {LEAST_CUDA // 1000}.0 is needed"
            raise CascadeError(f"the NVIDIA driver is too old ({known}): {DRIVER}.")

    def check(self, result: Sequence[Any]) -> Any:
        """What a call of cuda-bindings returned: nothing, a value, or several. Raises CascadeError for an error."""
        error, *values = result
        if int(error):
            raise CascadeError(sentence(error.name.removeprefix("CUDA_ERROR_")))
        return values[0] if len(values) == 1 else tuple(values) if values else None

    def _use(self) -> None:
        """Calls of this thread are for this GPU; others (PyTorch, say) may have chosen another one since."""
        self.check(self._cuda.cuCtxSetCurrent(self._context))

    def make_current(self) -> None:
        """For libraries that work on the GPU of the calling thread, as TensorRT does."""
        self._use()

    # memory -------------------------------------------------------------------------------------------------
    def memory(self) -> tuple[int, int]:
        """Bytes that are free, and bytes in all."""
        with TURN.lock:
            TURN.empty()
            self._use()
            return self.check(self._cuda.cuMemGetInfo())

    def allocate(self, size: int, what: str = "a buffer") -> DeviceMemory:
        """Zeroed memory on the GPU. Raises CascadeError, which says `what` the memory was for."""
        with TURN.lock:
            TURN.empty()
            self._use()
            error, address = self._cuda.cuMemAlloc(max(size, 1))
            if error == self._cuda.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
                free, _ = self.memory()
                raise CascadeError(
                    f"{what} needs {gib(size)} of the GPU's memory, and {gib(free)} are free: draw fewer images at "
                    "a time, build the bundle with a smaller --batch, or end other programs on the GPU."
                )
            self.check((error,))
            memory = DeviceMemory(int(address), size)
            self._free_with(memory, self._cuda.cuMemFree, address, waits=True)
            self.zero(memory.address, max(size, 1))
        return memory

    def pinned(self, size: int) -> np.ndarray:
        """Zeroed memory of the host that copies reach without the CPU, uint8 [size]; freed with its last view."""
        with TURN.lock:
            TURN.empty()
            self._use()
            address = int(self.check(self._cuda.cuMemHostAlloc(max(size, 1), 0)))
            block = (ctypes.c_uint8 * max(size, 1)).from_address(address)  # every view holds it
            self._free_with(block, self._cuda.cuMemFreeHost, address, waits=True)
        array = np.ctypeslib.as_array(block)[:size]
        array[:] = 0
        return array

    def hold(self, thing: Any) -> Held:
        """A library's object that frees memory when it goes: behind all work that is queued by then."""
        return Held(self, thing)

    def _free_with(self, owner: Any, free: Any, handle: Any, waits: bool = False) -> None:
        """Calls `free` when `owner` is gone, if need be behind all work that is queued by then; not when the process
        ends, for then the driver does it."""

        def release() -> None:  # an error would be an earlier one, which was reported
            self._cuda.cuCtxSetCurrent(self._context)
            for stream in self._streams if waits else ():  # CUDA does not promise to wait when memory is freed
                self._cuda.cuStreamSynchronize(stream)
            free(handle)

        weakref.finalize(owner, TURN.bury, release).atexit = False

    # work on the stream -------------------------------------------------------------------------------------
    def upload(self, to: int, source: int, size: int) -> None:
        """From the host; `source` must stay as it is until `synchronize`, if it is pinned."""
        with TURN.lock:
            self._use()
            self.check(self._cuda.cuMemcpyHtoDAsync(to, source, size, self.stream))

    def download(self, to: int, source: int, size: int) -> None:
        """To the host, which may read it after `synchronize`."""
        with TURN.lock:
            self._use()
            self.check(self._cuda.cuMemcpyDtoHAsync(to, source, size, self.stream))

    def copy(self, to: int, source: int, size: int) -> None:
        """On the GPU; the two parts may overlap."""
        with TURN.lock:
            self._use()
            for start, length in pieces(size, to - source):
                self.check(self._cuda.cuMemcpyDtoDAsync(to + start, source + start, length, self.stream))

    def copy_strided(
        self, to: int, source: int, width: int, lines: int, pitch: int, planes: int = 1, plane: int = 0,
        to_pitch: int = 0, to_plane: int = 0,
    ) -> None:  # fmt: skip
        """On the GPU: `lines` pieces of `width` bytes, `pitch` apart, in each of `planes` planes that are `plane` lines
        apart; in the destination `to_pitch` and `to_plane`, where they differ. Source and destination must not
        overlap."""
        cuda, copy = self._cuda, self._cuda.CUDA_MEMCPY3D()
        copy.srcMemoryType = copy.dstMemoryType = cuda.CUmemorytype.CU_MEMORYTYPE_DEVICE
        copy.srcDevice, copy.dstDevice = source, to
        copy.srcPitch, copy.dstPitch = pitch, to_pitch or pitch
        copy.srcHeight, copy.dstHeight = plane or lines, to_plane or plane or lines
        copy.WidthInBytes, copy.Height, copy.Depth = width, lines, planes
        with TURN.lock:
            self._use()
            self.check(cuda.cuMemcpy3DAsync(copy, self.stream))

    def zero(self, to: int, width: int, lines: int = 1, pitch: int = 0) -> None:
        """Zeroes `lines` pieces of `width` bytes, `pitch` apart."""
        with TURN.lock:
            self._use()
            if lines > 1 and pitch <= self._most_pitch:
                self.check(self._cuda.cuMemsetD2D8Async(to, pitch, 0, width, lines, self.stream))
                return
            for line in range(lines):
                self.check(self._cuda.cuMemsetD8Async(to + line * pitch, 0, width, self.stream))

    def synchronize(self) -> None:
        """Waits for all work that is on the stream now. What other threads queue meanwhile is not waited for."""
        with TURN.lock:
            mark = self._marks.pop() if self._marks else self.event()
            mark.record()
            self.waits += 1
            number = self.waits
        mark.wait()
        self._marks.append(mark)
        self.synchronized = max(self.synchronized, number)  # too low, if another thread comes between: that is safe

    def event(self, timed: bool = False) -> Event:
        return Event(self, timed)

    def follow(self, other: CudaDevice) -> None:
        """What is queued from now on waits, on the GPU, for what `other` has queued so far."""
        with TURN.lock:
            mark = other.event()  # CUDA keeps it until it has passed
            mark.record()
            self.check(self._cuda.cuStreamWaitEvent(self.stream, mark.handle, 0))

    # graphs and kernels -------------------------------------------------------------------------------------
    @contextmanager
    def capture(self) -> Iterator[Graph]:
        """What this thread queues inside becomes the graph, and does not run; other threads wait. Nothing may wait or
        allocate inside."""
        cuda, graph = self._cuda, Graph(self)
        with TURN.capture():
            self._use()
            mode = cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
            self.check(cuda.cuStreamBeginCapture(self.stream, mode))
            try:
                yield graph
            except BaseException:
                error, unfinished = cuda.cuStreamEndCapture(self.stream)
                if not int(error):
                    cuda.cuGraphDestroy(unfinished)
                raise  # what went wrong inside is the error to report
            recorded = self.check(cuda.cuStreamEndCapture(self.stream))
            try:
                graph.handle = self.check(cuda.cuGraphInstantiate(recorded, 0))
            finally:
                cuda.cuGraphDestroy(recorded)
            self._free_with(graph, cuda.cuGraphExecDestroy, graph.handle)

    def load(self, cubin: bytes) -> Kernels:
        """The kernels of a file that was compiled for this GPU."""
        return Kernels(self, cubin)


class DeviceMemory:
    """Memory on the GPU, for as long as this object is there."""

    def __init__(self, address: int, size: int) -> None:
        self.address, self.size = address, size


class Held:
    """`thing` goes some time after this object, when CUDA may free what is its own."""

    def __init__(self, device: CudaDevice, thing: Any) -> None:
        self._only = [thing]  # finalisers run before attributes go
        device._free_with(self, list.clear, self._only, waits=True)

    @property
    def thing(self) -> Any:
        return self._only[0]


class Event:
    """A mark on the stream of `device`. One that is not `timed` costs less."""

    def __init__(self, device: CudaDevice, timed: bool = False) -> None:
        self._device = device
        with TURN.lock:
            device._use()
            self.handle = device.check(device._cuda.cuEventCreate(0 if timed else _NO_TIMING))
            device._free_with(self, device._cuda.cuEventDestroy, self.handle)

    def record(self) -> None:
        """Behind all work that is queued so far."""
        with TURN.lock:
            self._device._use()
            self._device.check(self._device._cuda.cuEventRecord(self.handle, self._device.stream))

    def wait(self) -> None:
        """Until the work before the mark is done. Other threads may have their turns meanwhile, and may capture: a wait
        in this mode, for what was not captured, spoils nothing."""
        device, cuda = self._device, self._device._cuda
        device._use()
        relaxed = cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        usual = device.check(cuda.cuThreadExchangeStreamCaptureMode(relaxed))
        try:
            device.check(cuda.cuEventSynchronize(self.handle))
        finally:
            cuda.cuThreadExchangeStreamCaptureMode(usual)
        TURN.empty()

    @property
    def passed(self) -> bool:
        """Whether the work before the mark is done."""
        with TURN.lock:
            self._device._use()
            error, *_ = self._device._cuda.cuEventQuery(self.handle)
        if error == self._device._cuda.CUresult.CUDA_ERROR_NOT_READY:
            return False
        self._device.check((error,))
        return True

    def since(self, earlier: Event) -> float:
        """Milliseconds on the GPU between two marks that are timed and have been waited for."""
        with TURN.lock:
            self._device._use()
            return self._device.check(self._device._cuda.cuEventElapsedTime(earlier.handle, self.handle))


class Graph:
    """Captured work, queued as a whole by `launch`."""

    def __init__(self, device: CudaDevice) -> None:
        self._device, self.handle = device, None

    def launch(self) -> None:
        with TURN.lock:
            self._device._use()
            self._device.check(self._device._cuda.cuGraphLaunch(self.handle, self._device.stream))


class Kernels:
    """Kernels by their names in C."""

    def __init__(self, device: CudaDevice, cubin: bytes) -> None:
        cuda = device._cuda
        self._device, self._functions = device, {}
        with TURN.lock:
            device._use()
            self._library = device.check(cuda.cuLibraryLoadData(cubin, None, None, 0, None, None, 0))
            device._free_with(self, cuda.cuLibraryUnload, self._library, waits=True)

    def launch(
        self, name: str, grid: Sequence[int], block: Sequence[int], arguments: Sequence[Any], shared: int = 0
    ) -> None:
        """`arguments` are ctypes values or structures, which the kernel gets by value; `shared` is dynamic shared
        memory. `grid` and `block` have three numbers."""
        device, cuda = self._device, self._device._cuda
        places = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        with TURN.lock:
            device._use()
            if name not in self._functions:
                kernel = device.check(cuda.cuLibraryGetKernel(self._library, name.encode()))
                self._functions[name] = device.check(cuda.cuKernelGetFunction(kernel))
            function, at = self._functions[name], ctypes.addressof(places)
            device.check(cuda.cuLaunchKernel(function, *grid, *block, shared, device.stream, at, 0))


def pieces(size: int, shift: int) -> Iterator[tuple[int, int]]:
    """(start, length) of parts that can be moved by `shift` in turn, though the whole may overlap where it goes."""
    step = min(abs(shift), size)
    starts = range(0, size, step) if step else ()
    for start in starts if shift < 0 else reversed(starts):
        yield start, min(step, size - start)


def _bindings() -> Any:
    try:
        return import_module("cuda.bindings.driver")  # by name: where there is no GPU it may not be installed
    except ImportError as error:
        raise CascadeError(
            f"cuda-bindings cannot be loaded ({error}): run `pip install 'cascade-trt[cuda]'`, {CPU_INSTEAD}."
        ) from None
