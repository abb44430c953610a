"""A backend whose device memory is apart from the host's, as a GPU's is, computed by ONNX Runtime on the CPU.

It is as strict as a GPU where that matters: host and device meet only where `run` uploads bound inputs and brings back
what `fetch` names; what was not fetched holds a pattern that no computation gives. Calls exist for 1, 2, 4, ... slots.
Engines that run once an image are on a stream of their own, which does nothing before somebody waits for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cascade_trt.runtime.backends import Buffer, Identity, Kind
from cascade_trt.runtime.backends.host import HostBuffer, HostCache, host_buffer
from cascade_trt.runtime.backends.kernels import Kernels
from cascade_trt.runtime.backends.kernels.info import KernelInfo
from cascade_trt.runtime.backends.ort import OrtBackend, OrtEngine
from cascade_trt.runtime.backends.ort_cuda import IMAGE_ENGINES


class Stream:
    """Work in its order. `late`: none is done before `wait` asks for it. `waits` counts those that had to do some."""

    def __init__(self, late: bool) -> None:
        self._late, self.queue, self.waits, self._added, self._done = late, deque[Callable[[], object]](), 0, 0, 0

    def add(self, work: Callable[[], object]) -> int:
        """Returns a mark behind it."""
        self.queue.append(work)
        self._added += 1
        if not self._late:
            self._do(self._added)
        return self._added

    def wait(self, mark: int | None = None) -> None:
        """Until the work before `mark`, or all that there is, is done."""
        mark = self._added if mark is None else mark
        self.waits += self._done < mark
        self._do(mark)

    def _do(self, mark: int) -> None:
        while self._done < mark:
            self._done += 1
            self.queue.popleft()()


class Place:
    """What the views of a memory share: `stream` is that of the engines that are bound to it."""

    def __init__(self, stream: Stream) -> None:
        self.stream, self.bound = stream, False

    def bind(self, stream: Stream) -> None:
        assert not self.bound or stream is self.stream, "engines of two streams share a memory"
        self.stream, self.bound = stream, True


class ApartBuffer:
    """`device` is where engines compute, `host` what the caller sees; both are zeroed."""

    def __init__(self, host: HostBuffer, device: HostBuffer, kind: Kind, place: Place) -> None:
        self._host, self.device, self.kind, self.place = host, device, kind, place

    @property
    def shape(self) -> tuple[int, ...]:
        return self.device.shape

    @property
    def dtype(self) -> str:
        return self.device.dtype

    @property
    def host(self) -> np.ndarray:
        return self._host.host

    def view(self, start: int, stop: int) -> ApartBuffer:
        return ApartBuffer(self._host.view(start, stop), self.device.view(start, stop), self.kind, self.place)

    @property
    def address(self) -> int:
        return self.device.address

    def move(self, source: int, to: int, count: int) -> None:
        self._host.move(source, to, count)
        self.place.stream.add(lambda: self.device.move(source, to, count))

    def upload(self) -> None:
        content = self.host.copy()  # the caller may write there as soon as this returns
        self.place.stream.add(lambda: self.device.host.__setitem__(..., content))

    send = upload

    def fetch(self) -> None:
        self.place.stream.wait()
        self.host[...] = self.device.host


class ApartCache(HostCache):
    """A cache that only engines, and the backend's own moves, can reach."""

    place: Place

    def bindings(self, start: int, stop: int, steps: int = 1) -> Any:
        inputs, outputs = super().bindings(start, stop, steps)
        apart: dict[int, ApartBuffer] = {}
        for buffer in inputs.values():
            apart[id(buffer)] = ApartBuffer(host_buffer((1,), buffer.dtype), buffer, "device", self.place)
        named = lambda given: {name: apart[id(buffer)] for name, buffer in given.items()}  # noqa: E731
        return named(inputs), named(outputs)


class ApartBackend:
    captures = False

    def __init__(self, threads: int | None = 1) -> None:
        self._ort = OrtBackend(threads)
        self.stream, self.beside = Stream(late=False), Stream(late=True)

    @property
    def identity(self) -> Identity:
        return replace(self._ort.identity, backend="apart")

    def load(self, path: Path) -> ApartEngine:
        stream = self.beside if path.name.split(".")[0] in IMAGE_ENGINES else self.stream
        return ApartEngine(self._ort.load(path), stream)

    def load_merged(self, path: Path, files: Mapping[str, Path]) -> dict[str, ApartEngine]:
        return {name: ApartEngine(engine, self.stream) for name, engine in self._ort.load_merged(path, files).items()}

    def buffer(self, shape: Sequence[int], dtype: str, kind: Kind) -> ApartBuffer:
        return ApartBuffer(host_buffer(shape, dtype), host_buffer(shape, dtype), kind, Place(self.stream))

    def cache(self, layers: int, rows: int, heads: int, slots: int, head_dim: int, dtype: str) -> ApartCache:
        cache = ApartCache(layers, rows, heads, slots, head_dim, dtype)
        cache.place = Place(self.stream)
        return cache

    def check_slots(self, slots: int) -> None: ...

    def sizes(self, slots: int) -> tuple[int, ...]:
        return (*(2**power for power in range(slots.bit_length()) if 2**power < slots), slots)

    def kernels(self, bundle: Path, compiled: Sequence[KernelInfo]) -> Kernels | None:  # noqa: ARG002 - host's rounds
        return None


class ApartEngine:
    def __init__(self, engine: OrtEngine, stream: Stream) -> None:
        self._engine, self._stream = engine, stream

    def dtype(self, name: str) -> str:
        return self._engine.dtype(name)

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> ApartCall:
        on_device = [{name: buffer.device for name, buffer in given.items()} for given in (inputs, outputs)]  # type: ignore[attr-defined]
        for buffer in (*inputs.values(), *outputs.values()):
            buffer.place.bind(self._stream)  # type: ignore[attr-defined]
        return ApartCall(self._engine.bind(*on_device), inputs, outputs, self._stream)


class ApartCall:
    def __init__(self, call: Any, inputs: Mapping[str, Any], outputs: Mapping[str, Any], stream: Stream) -> None:
        self._call, self._inputs, self._outputs, self._stream = call, inputs, outputs, stream

    def run(self, fetch: Sequence[str] = ()) -> None:
        for buffer in self._inputs.values():
            if buffer.kind == "in":
                buffer.upload()
        if fetch and not self._outputs.keys() >= set(fetch):
            raise ValueError(f"{sorted(set(fetch) - self._outputs.keys())} are not among the bound outputs")
        self._stream.add(lambda: self._call.run(()))
        for name, buffer in self._outputs.items():
            if name in fetch:
                buffer.fetch()
            elif buffer.kind == "out" and self.spoils:
                buffer.host.view(np.uint8)[...] = 0xFF if buffer.dtype != "bool" else 1

    spoils = False  # whether outputs that were not fetched are overwritten: nobody may read them
