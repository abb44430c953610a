"""Buffers and caches in the host's own memory, for backends that compute there."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..errors import CascadeError
from ..machine import free_memory

_HOST = {"bfloat16": "uint16"}  # numpy has no bfloat16: its bits are shown


def host_dtype(dtype: str) -> np.dtype:
    """The numpy dtype that holds `dtype`. Raises TypeError for one that does not exist."""
    return np.dtype(_HOST.get(dtype, dtype))


def to_dtype(array: np.ndarray, dtype: str) -> np.ndarray:
    """A float array as `host_dtype(dtype)`, contiguous; bfloat16 is rounded to the nearest, ties to even."""
    if dtype != "bfloat16":
        return np.ascontiguousarray(array, dtype=host_dtype(dtype))
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet = (bits >> np.uint32(16)) | np.uint32(0x40)  # rounding must not turn a NaN into an infinity
    return np.where(np.isnan(array), quiet, rounded).astype(np.uint16)


def to_float(array: np.ndarray, dtype: str) -> np.ndarray:
    """float32 values of an array in `host_dtype(dtype)`."""
    if dtype != "bfloat16":
        return array.astype(np.float32)
    return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)


class HostBuffer:
    """A buffer whose memory is `host`, a contiguous array in `host_dtype(dtype)`. Raises ValueError otherwise."""

    def __init__(self, host: np.ndarray, dtype: str | None = None) -> None:
        self.dtype = dtype or host.dtype.name
        if not host.flags.c_contiguous:
            raise ValueError("a buffer must be contiguous")
        if host.dtype != host_dtype(self.dtype):
            raise ValueError(f"{self.dtype} is held as {host_dtype(self.dtype)}, not {host.dtype}")
        self.host = host

    @property
    def shape(self) -> tuple[int, ...]:
        return self.host.shape

    @property
    def address(self) -> int:
        return self.host.ctypes.data

    def send(self) -> None:
        """Nothing: it is there."""

    def view(self, start: int, stop: int) -> HostBuffer:
        if not 0 <= start < stop <= len(self.host):
            raise ValueError(f"places {start} to {stop} lie outside of a buffer of {len(self.host)}")
        return HostBuffer(self.host[start:stop], self.dtype)

    def move(self, source: int, to: int, count: int) -> None:
        self.host[to : to + count] = self.host[source : source + count].copy()


def host_buffer(shape: Sequence[int], dtype: str) -> HostBuffer:
    """Zeros."""
    return HostBuffer(np.zeros(tuple(shape), host_dtype(dtype)), dtype)


class HostCache:
    """Keys and values in one block [layers, 2, rows, heads, slots, head_dim]. Raises CascadeError where the machine has
    no memory for it: as soon as it is written to, the system would end the process."""

    def __init__(self, layers: int, rows: int, heads: int, slots: int, head_dim: int, dtype: str) -> None:
        self._dtype = dtype
        shape = (layers, 2, rows, heads, slots, head_dim)
        size, free = math.prod(shape) * host_dtype(dtype).itemsize, free_memory()
        if free is not None and size > free:
            raise CascadeError(
                f"the cache of {rows} rows needs {size / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} GiB are "
                "free: draw fewer images at a time, or build the bundle with a smaller --batch."
            )
        self._block = np.empty(shape, host_dtype(dtype))
        self._block.fill(0)  # committed to memory now

    @property
    def shape(self) -> tuple[int, ...]:
        return self._block.shape

    @property
    def nbytes(self) -> int:
        return self._block.nbytes

    @property
    def address(self) -> int:
        return self._block.ctypes.data

    def bindings(
        self, start: int, stop: int, steps: int = 1
    ) -> tuple[dict[str, HostBuffer], dict[str, HostBuffer]]:
        inputs, outputs = {}, {}
        for layer, pair in enumerate(self._block):
            for name, array in zip(("key", "value"), pair, strict=True):
                shared = HostBuffer(array[start:stop], self._dtype)
                for index in range(layer * steps, (layer + 1) * steps):
                    inputs[f"past_{name}.{index}"] = outputs[f"present_{name}.{index}"] = shared
        return inputs, outputs

    def move(self, rows: Sequence[int], start: int, path: Sequence[int]) -> None:
        for j, node in enumerate(path):
            if node != j:
                for row in rows:
                    # [layers, 2, H, Dh]; later entries lie behind every slot that is written so far (path[j] >= j)
                    self._block[:, :, row, :, start + j] = self._block[:, :, row, :, start + node]

    def copy_rows(self, source: int, to: int, count: int, slots: int) -> None:
        self._block[:, :, to : to + count, :, :slots] = self._block[:, :, source : source + count, :, :slots]

    def clear(self, start: int, stop: int) -> None:
        self._block[:, :, start:stop] = 0
