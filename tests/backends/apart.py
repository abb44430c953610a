"""A backend whose device memory is apart from the host's, as a GPU's is, computed by ONNX Runtime on the CPU.

It is as strict as a GPU where that matters: host and device meet only where `run` uploads bound inputs and brings back
what `fetch` names; what was not fetched holds a pattern that no computation gives. Calls exist for 1, 2, 4, ... slots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cascade_trt.runtime.backends import Buffer, Identity, Kind
from cascade_trt.runtime.backends.host import HostBuffer, HostCache, host_buffer
from cascade_trt.runtime.backends.kernels import Kernels
from cascade_trt.runtime.backends.kernels.info import KernelInfo
from cascade_trt.runtime.backends.ort import OrtBackend, OrtEngine


class ApartBuffer:
    """`device` is where engines compute, `host` what the caller sees; both are zeroed."""

    def __init__(self, host: HostBuffer, device: HostBuffer, kind: Kind) -> None:
        self._host, self.device, self.kind = host, device, kind

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
        return ApartBuffer(self._host.view(start, stop), self.device.view(start, stop), self.kind)

    @property
    def address(self) -> int:
        return self.device.address

    def move(self, source: int, to: int, count: int) -> None:
        self._host.move(source, to, count)
        self.device.move(source, to, count)

    def upload(self) -> None:
        self.device.host[...] = self.host

    send = upload

    def fetch(self) -> None:
        self.host[...] = self.device.host


class ApartCache(HostCache):
    """A cache that only engines, and the backend's own moves, can reach."""

    def bindings(self, start: int, stop: int, steps: int = 1) -> Any:
        inputs, outputs = super().bindings(start, stop, steps)
        apart: dict[int, ApartBuffer] = {}
        for buffer in inputs.values():
            apart[id(buffer)] = ApartBuffer(host_buffer((1,), buffer.dtype), buffer, "device")
        named = lambda given: {name: apart[id(buffer)] for name, buffer in given.items()}  # noqa: E731
        return named(inputs), named(outputs)


class ApartBackend:
    def __init__(self, threads: int | None = 1) -> None:
        self._ort = OrtBackend(threads)

    @property
    def identity(self) -> Identity:
        return replace(self._ort.identity, backend="apart")

    def load(self, path: Path) -> ApartEngine:
        return ApartEngine(self._ort.load(path))

    def load_merged(self, path: Path, files: Mapping[str, Path]) -> dict[str, ApartEngine]:
        return {name: ApartEngine(engine) for name, engine in self._ort.load_merged(path, files).items()}

    def buffer(self, shape: Sequence[int], dtype: str, kind: Kind) -> ApartBuffer:
        return ApartBuffer(host_buffer(shape, dtype), host_buffer(shape, dtype), kind)

    def cache(self, layers: int, rows: int, heads: int, slots: int, head_dim: int, dtype: str) -> ApartCache:
        return ApartCache(layers, rows, heads, slots, head_dim, dtype)

    def sizes(self, slots: int) -> tuple[int, ...]:
        return (*(2**power for power in range(slots.bit_length()) if 2**power < slots), slots)

    def kernels(self, bundle: Path, compiled: Sequence[KernelInfo]) -> Kernels | None:  # noqa: ARG002 - host's rounds
        return None


class ApartEngine:
    def __init__(self, engine: OrtEngine) -> None:
        self._engine = engine

    def dtype(self, name: str) -> str:
        return self._engine.dtype(name)

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> ApartCall:
        on_device = [{name: buffer.device for name, buffer in given.items()} for given in (inputs, outputs)]  # type: ignore[attr-defined]
        return ApartCall(self._engine.bind(*on_device), inputs, outputs)


class ApartCall:
    def __init__(self, call: Any, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        self._call, self._inputs, self._outputs = call, inputs, outputs

    def run(self, fetch: Sequence[str] = ()) -> None:
        for buffer in self._inputs.values():
            if buffer.kind == "in":
                buffer.upload()
        self._call.run(fetch)
        for name, buffer in self._outputs.items():
            if name in fetch:
                buffer.fetch()
            elif buffer.kind == "out" and self.spoils:
                buffer.host.view(np.uint8)[...] = 0xFF if buffer.dtype != "bool" else 1

    spoils = False  # whether outputs that were not fetched are overwritten: nobody may read them
