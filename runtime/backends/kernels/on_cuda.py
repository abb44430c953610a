"""The kernels of a round on a GPU, out of the bundle's machine code."""

from __future__ import annotations

import ctypes
import warnings
import weakref
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...errors import CascadeWarning
from .. import Buffer
from ..cuda_memory import CudaBuffer
from ..device import CudaDevice
from ..host import host_dtype
from ..turns import TURN
from .info import KernelInfo, kernels_for


class CudaKernels:
    """Launches the kernels in `cubin` on the stream of `device`. Raises CascadeError when CUDA refuses them."""

    def __init__(self, device: CudaDevice, cubin: bytes) -> None:
        self._device, self._kernels = device, device.load(cubin)
        self._free: dict[tuple[int, int], list[Landing]] = defaultdict(list)  # by stream and bytes

    def launch(self, name: str, grid: tuple[int, int, int], threads: int, *arguments: ctypes.Structure) -> None:
        self._kernels.launch(name, grid, (threads, 1, 1), arguments)

    def bring(self, buffer: Buffer) -> CudaArrival:
        assert isinstance(buffer, CudaBuffer)  # it is the backend's own
        with TURN.lock:  # batches share the landings
            free = self._free[buffer.device.stream, buffer.nbytes]
            landing = free.pop() if free else Landing(buffer.device, buffer.nbytes)
            landing.take(buffer)
        return CudaArrival(landing, free, buffer)


class Landing:
    """Pinned memory for what comes from the GPU on one stream, and a mark on that behind the copy."""

    def __init__(self, device: CudaDevice, size: int) -> None:
        self._device, self.memory, self.mark = device, device.pinned(size), device.event()

    def take(self, buffer: CudaBuffer) -> None:
        self._device.download(self.memory.ctypes.data, buffer.address, len(self.memory))
        self.mark.record()


class CudaArrival:
    """One content. The landing is free again as soon as the host has a copy, or wants none any more: the next content
    comes on the same stream, behind this one."""

    def __init__(self, landing: Landing, free: list[Landing], buffer: CudaBuffer) -> None:
        self._landing, self._shape, self._dtype = landing, buffer.shape, host_dtype(buffer.dtype)
        self._content: np.ndarray | None = None
        self._give_back = weakref.finalize(self, free.append, landing)
        self._give_back.atexit = False

    def wait(self) -> np.ndarray:
        if self._content is None:
            self._landing.mark.wait()
            self._content = self._landing.memory.view(self._dtype).reshape(self._shape).copy()
            self._give_back()
        return self._content


def open_kernels(device: CudaDevice, bundle: Path, compiled: Sequence[KernelInfo]) -> CudaKernels | None:
    """The kernels in the bundle that `device` can run. Warns and returns None where there are none."""
    found = kernels_for(bundle, compiled, device.capability)
    if found.code is None:
        warnings.warn(f"rounds run on the host, which is slower: {found.why}", CascadeWarning, stacklevel=2)
        return None
    return CudaKernels(device, found.code)
