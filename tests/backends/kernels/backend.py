"""A backend that has kernels: its device memory is apart, and the kernels' own source runs in it, compiled by g++."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from apart import ApartBackend, ApartBuffer

from cascade_trt.runtime.backends.kernels.info import KernelInfo
from cascade_trt.runtime.pipeline import Pipeline


class HostKernels:
    """Runs each kernel at once. `launched` are their names, in order."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self.launched: list[str] = []
        self.under_way = self.most_under_way = 0  # records that were brought and not waited for

    def launch(self, name: str, grid: tuple[int, int, int], threads: int, *arguments: ctypes.Structure) -> None:
        self.launched.append(name)
        threads = min(threads, 4) if name == "walk_by_rule" else threads  # a fiber each
        getattr(self._library, f"run_{name}")(*map(ctypes.byref, arguments), (ctypes.c_int * 3)(*grid), threads)

    def bring(self, buffer: ApartBuffer) -> HostArrival:
        self.under_way += buffer.dtype == "int32"  # neither pixels nor a prefix
        self.most_under_way = max(self.most_under_way, self.under_way)
        return HostArrival(self, buffer)


class HostArrival:
    """There when its stream gets there."""

    def __init__(self, kernels: HostKernels, buffer: ApartBuffer) -> None:
        self._kernels, self._waited, self._stream = kernels, buffer.dtype != "int32", buffer.place.stream
        content = self._content = np.full_like(buffer.device.host, -1)  # no finite pixel, no token, no count
        if content.dtype.kind == "f":
            content[...] = np.nan
        self._mark = self._stream.add(lambda: content.__setitem__(..., buffer.device.host))

    def wait(self) -> np.ndarray:
        self._kernels.under_way -= not self._waited
        self._waited = True
        self._stream.wait(self._mark)
        return self._content


class KernelsBackend(ApartBackend):
    """Images that a kernel walks for are drawn without the host."""

    def __init__(self, library: ctypes.CDLL) -> None:
        super().__init__()
        self.of_rounds = HostKernels(library)

    def kernels(self, bundle: Path, compiled: Sequence[KernelInfo]) -> HostKernels:  # noqa: ARG002 - for this CPU
        return self.of_rounds


class Pair:
    """A bundle with the host's rounds, and with those of a device."""

    def __init__(self, library: ctypes.CDLL, on_host: Pipeline) -> None:
        self.backend = KernelsBackend(library)
        self.on_host, self.on_device = on_host, Pipeline.load(on_host.folder, self.backend, warm=False)
