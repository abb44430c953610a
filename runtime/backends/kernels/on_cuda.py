"""The kernels of a round on a GPU, out of the bundle's machine code."""

from __future__ import annotations

import ctypes
import math
import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...errors import CascadeWarning
from .. import Buffer
from ..device import CudaDevice
from ..host import host_dtype
from .info import KernelInfo


class CudaKernels:
    """Launches the kernels in `cubin` on the stream of `device`. Raises CascadeError when CUDA refuses them."""

    def __init__(self, device: CudaDevice, cubin: bytes) -> None:
        self._device, self._kernels = device, device.load(cubin)
        self._free: dict[int, list[CudaArrival]] = defaultdict(list)  # by bytes; what was waited for is used again

    def launch(self, name: str, grid: tuple[int, int, int], threads: int, *arguments: ctypes.Structure) -> None:
        self._kernels.launch(name, grid, (threads, 1, 1), arguments)

    def bring(self, buffer: Buffer) -> CudaArrival:
        size = math.prod(buffer.shape) * host_dtype(buffer.dtype).itemsize
        arrival = self._free[size].pop() if self._free[size] else CudaArrival(self._device, size, self._free[size])
        arrival.start(buffer)
        return arrival


class CudaArrival:
    """Pinned memory, and a mark on the stream behind the copy to it. After `wait` it goes back to `home`."""

    def __init__(self, device: CudaDevice, size: int, home: list[CudaArrival]) -> None:
        self._device, self._pinned, self._home = device, device.pinned(size), home
        self._mark = device.event()
        self._buffer: Buffer | None = None

    def start(self, buffer: Buffer) -> None:
        self._buffer = buffer
        self._device.download(self._pinned.ctypes.data, buffer.address, len(self._pinned))
        self._mark.record()

    def wait(self) -> np.ndarray:
        buffer, self._buffer = self._buffer, None
        assert buffer is not None  # it was started, and not waited for since
        self._mark.wait()
        found = self._pinned.view(host_dtype(buffer.dtype)).reshape(buffer.shape).copy()
        self._home.append(self)
        return found


def open_kernels(device: CudaDevice, bundle: Path, compiled: Sequence[KernelInfo]) -> CudaKernels | None:
    """The kernels in the bundle that `device` can run. Warns and returns None where there are none."""
    from .info import kernels_for

    found = kernels_for(bundle, compiled, device.capability)
    if found.code is None:
        warnings.warn(f"rounds run on the host, which is slower: {found.why}", CascadeWarning, stacklevel=2)
        return None
    return CudaKernels(device, found.code)
