"""Buffers and caches in a GPU's memory, with what the host sees of them beside it.

| kind | on the GPU | on the host |
|---|---|---|
| "in" | what engines read | `host`, and in pinned memory a copy of what was uploaded last |
| "out" | what engines write | `host` is pinned: `fetch` brings the content there |
| "device" | engines and kernels use it | `host` is made when it is first asked for, a pinned copy by the first `send` |

`fetch` brings the content of any of them. The copy of what is uploaded does two things. What has not changed since is
not uploaded again ("in"). And the caller may write to `host` as soon as a run, or `send`, has returned, although the
upload may still be under way. Where the next upload comes before that one is done, another copy takes its place: the
host does not wait. Of memory that is not pinned CUDA makes such a copy itself, but it does not promise so for GPUs that
share the host's memory.

All that is queued for a memory is queued on one stream, that of the engines that it is bound to (`device.py`).
"""

from __future__ import annotations

import ctypes
import math
from collections import deque
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np

from . import Kind
from .device import CudaDevice, Event, pieces
from .host import host_dtype
from .turns import TURN

_compare = ctypes.CDLL(None).memcmp
_compare.argtypes, _compare.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t), ctypes.c_int


class _Memory:
    """One allocation: on the GPU, and beside it. `device` has the stream that its work is queued on."""

    def __init__(self, device: CudaDevice, size: int, kind: Kind, what: str = "a buffer") -> None:
        self.device, self.size = device, size
        self.kind: Kind = kind
        self.bound = False  # to an engine, whose stream is that of `device`
        self.on_device = device.allocate(size, what)
        self._leaving: deque[tuple[np.ndarray, Event]] = deque()  # earlier copies, and marks behind their uploads
        self.sent_at = -1  # device.waits when the newest upload was queued: done when a later wait is
        self._take_sent(device.pinned(size) if kind == "in" else np.zeros(0, np.uint8))

    def _take_sent(self, memory: np.ndarray) -> None:
        self._sent, self.sent_address = memory, int(memory.ctypes.data)

    def make_sent(self) -> None:
        """Pinned memory that no upload reads any more, with what was uploaded."""
        if len(self._sent) < self.size:
            self._take_sent(self.device.pinned(self.size))
        elif self.sent_at >= self.device.synchronized:
            self._renew()

    def _renew(self) -> None:
        mark = self.device.event()
        mark.record()
        self._leaving.append((self._sent, mark))
        memory = self._leaving.popleft()[0] if self._leaving[0][1].passed else self.device.pinned(self.size)
        memory[:] = self._sent
        self._take_sent(memory)

    @cached_property
    def host(self) -> np.ndarray:
        """uint8 [size]."""
        return self.device.pinned(self.size) if self.kind == "out" else np.zeros(self.size, np.uint8)


class CudaBuffer:
    """A part of a memory, from byte `start` on."""

    def __init__(self, memory: _Memory, shape: tuple[int, ...], dtype: str, start: int = 0) -> None:
        self._memory, self._start, self.shape, self.dtype = memory, start, shape, dtype
        self.nbytes = math.prod(shape) * host_dtype(dtype).itemsize
        self.address = memory.on_device.address + start

    @property
    def kind(self) -> Kind:
        return self._memory.kind

    @property
    def device(self) -> CudaDevice:
        """With the stream that its work is queued on."""
        return self._memory.device

    def work_on(self, device: CudaDevice, name: str) -> None:
        """An engine on the stream of `device` is bound to it as `name`. Raises ValueError where one on another stream
        is."""
        memory = self._memory
        if memory.device is not device:
            if memory.bound:
                raise ValueError(f"{name} is a buffer of engines on another stream")
            device.follow(memory.device)
            memory.device, uploaded = device, memory.sent_at >= 0
            memory.sent_at = device.waits if uploaded else -1
        memory.bound = True

    @property
    def host(self) -> np.ndarray:
        return self._host

    @cached_property
    def _host(self) -> np.ndarray:
        part = self._memory.host[self._start : self._start + self.nbytes]
        return part.view(host_dtype(self.dtype)).reshape(self.shape)

    @cached_property
    def _host_address(self) -> int:
        return self.host.ctypes.data

    @property
    def _place(self) -> int:
        """Bytes of one place of the first axis."""
        return self.nbytes // self.shape[0]

    def view(self, start: int, stop: int) -> CudaBuffer:
        if not 0 <= start < stop <= self.shape[0]:
            raise ValueError(f"places {start} to {stop} lie outside of a buffer of {self.shape[0]}")
        return CudaBuffer(
            self._memory, (stop - start, *self.shape[1:]), self.dtype, self._start + start * self._place
        )

    def move(self, source: int, to: int, count: int) -> None:
        if self.kind != "device":
            self.host[to : to + count] = self.host[source : source + count].copy()
        if self.kind != "in":  # of those the host has the newest, and the next run uploads it
            place, base = self._place, self.address
            self._memory.device.copy(base + to * place, base + source * place, count * place)

    def upload(self) -> None:
        """Queues what the host has written since the last time."""
        if _compare(self._host_address, self._memory.sent_address + self._start, self.nbytes):
            self.send()

    def send(self) -> None:
        """Queues all that the host holds, whatever was sent before."""
        memory, device = self._memory, self._memory.device
        memory.make_sent()
        sent = memory.sent_address + self._start
        ctypes.memmove(sent, self._host_address, self.nbytes)
        with TURN.lock:  # the number and the upload: a wait that another thread begins in between is not one for it
            memory.sent_at = device.waits
            device.upload(self.address, sent, self.nbytes)

    def fetch(self) -> None:
        """Queues the way back; `host` has it after `device.synchronize`."""
        self._memory.device.download(self._host_address, self.address, self.nbytes)


def cuda_buffer(device: CudaDevice, shape: Sequence[int], dtype: str, kind: Kind) -> CudaBuffer:
    """Zeros."""
    size = math.prod(shape) * host_dtype(dtype).itemsize
    return CudaBuffer(_Memory(device, size, kind), tuple(shape), dtype)


class CudaCache:
    """Keys and values in one block [layers, 2, rows, heads, slots, head_dim]. Raises CascadeError where the GPU has no
    memory for it.

    A plane is a layer's keys or values, a line one head's numbers in all slots.
    """

    def __init__(
        self, device: CudaDevice, layers: int, rows: int, heads: int, slots: int, head_dim: int, dtype: str
    ) -> None:
        self._device, self._dtype = device, dtype
        self._planes, self._rows, self._heads, self._slots, self._width = 2 * layers, rows, heads, slots, head_dim
        self.shape = layers, 2, rows, heads, slots, head_dim
        self._entry = head_dim * host_dtype(dtype).itemsize
        self._line = slots * self._entry
        self.nbytes = self._planes * rows * heads * self._line
        self._memory = _Memory(device, self.nbytes, "device", f"the cache of {rows} rows")
        self.address = self._memory.on_device.address

    def bindings(
        self, start: int, stop: int, steps: int = 1
    ) -> tuple[dict[str, CudaBuffer], dict[str, CudaBuffer]]:
        inputs, outputs = {}, {}
        shape = (stop - start, self._heads, self._slots, self._width)
        for plane in range(self._planes):
            layer, name = plane // 2, ("key", "value")[plane % 2]
            shared = CudaBuffer(self._memory, shape, self._dtype, self._offset(start, plane))
            for index in range(layer * steps, (layer + 1) * steps):
                inputs[f"past_{name}.{index}"] = outputs[f"present_{name}.{index}"] = shared
        return inputs, outputs

    def move(self, rows: Sequence[int], start: int, path: Sequence[int]) -> None:
        """A copy for each entry that moves and each run of neighbouring rows. Entries go one after the other: those
        that come later lie behind every slot that is written so far (path[j] >= j)."""
        runs = list(_runs(rows))
        for j, node in enumerate(path):
            if node != j:
                for row, count in runs:
                    self._copy((row, start + node), (row, start + j), count, 1)

    def copy_rows(self, source: int, to: int, count: int, slots: int) -> None:
        for row, length in pieces(count, to - source):
            self._copy((source + row, 0), (to + row, 0), length, slots)

    def clear(self, start: int, stop: int) -> None:
        plane = self._rows * self._heads * self._line
        part = (stop - start) * self._heads * self._line
        self._device.zero(self._address(start, 0), part, self._planes, plane)

    def _copy(self, source: tuple[int, int], to: tuple[int, int], rows: int, slots: int) -> None:
        """Entries of `rows` rows and `slots` slots from one (row, slot) to another, in all planes."""
        self._device.copy_strided(
            self._address(*to), self._address(*source), slots * self._entry, rows * self._heads, self._line,
            self._planes, self._rows * self._heads,
        )  # fmt: skip

    def _offset(self, row: int, plane: int = 0) -> int:
        return (plane * self._rows + row) * self._heads * self._line

    def _address(self, row: int, slot: int) -> int:
        """Of an entry of the first head in the first plane."""
        return self._memory.on_device.address + self._offset(row) + slot * self._entry


def _runs(rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(first, count) of rows that are neighbours."""
    first = count = 0
    for row in rows:
        if count and row == first + count:
            count += 1
            continue
        if count:
            yield first, count
        first, count = row, 1
    if count:
        yield first, count
