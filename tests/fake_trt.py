"""A TensorRT without a GPU: plans name ONNX graphs, ONNX Runtime computes, device memory is memory of its own here.

It is as strict as TensorRT where that matters: shapes must be those of the chosen profile, every tensor needs an
address, and an aliased output must share its input's.
"""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from cascade_trt.engines.tensorrt.loader import Flavour
from cascade_trt.runtime.backends.host import HostBuffer
from cascade_trt.runtime.backends.ort import OrtBackend

SCRATCH_SHAPE = (2, 8, 5)


class HostDevice:
    stream = 7

    def __init__(self) -> None:
        self.buffers: dict[int, Any] = {}

    def allocate(self, size: int) -> int:
        buffer = ctypes.create_string_buffer(size)
        self.buffers[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    def upload(self, address: int, array: np.ndarray) -> None:
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def download(self, address: int, array: np.ndarray) -> None:
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def wait(self) -> None:
        pass


def write_plan(path: Path, graph: Path, profiles: list[dict[str, int]]) -> Path:
    path.write_text(json.dumps({"graph": str(graph), "profiles": profiles}))
    return path


def flavour() -> Flavour:
    return Flavour("tensorrt-rtx", FakeTrt, "1.7.1.116")


class FakeTrt:
    class Logger:
        ERROR = 1

        def __init__(self, _: int) -> None:
            pass

    class Runtime:
        def __init__(self, _: object) -> None:
            pass

        def deserialize_cuda_engine(self, data: bytes) -> FakeEngine | None:
            return FakeEngine(json.loads(data)) if data.startswith(b"{") else None

    @staticmethod
    def nptype(dtype: np.dtype | None) -> np.dtype:
        if dtype is None:
            raise TypeError("Could not resolve TensorRT datatype")
        return dtype


class FakeEngine:
    def __init__(self, plan: dict[str, Any]) -> None:
        graph = onnx.load(plan["graph"], load_external_data=False).graph
        self.values = {value.name: value.type.tensor_type for value in [*graph.input, *graph.output]}
        self.inputs = [value.name for value in graph.input]
        self.names = [*self.values, "scratch.0"]
        self.profiles = plan["profiles"]
        self.session = OrtBackend(1).load(Path(plan["graph"]))
        self.num_io_tensors, self.num_optimization_profiles = len(self.names), len(self.profiles)

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_dtype(self, name: str) -> np.dtype:
        if name == "scratch.0":
            return np.dtype(np.float16)
        return onnx.helper.tensor_dtype_to_np_dtype(self.values[name].elem_type)

    def shape(self, name: str, sizes: dict[str, int]) -> tuple[int, ...]:
        if name == "scratch.0":
            return SCRATCH_SHAPE
        return tuple(sizes.get(dim.dim_param, dim.dim_value or -1) for dim in self.values[name].shape.dim)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        same = {key: size for key, size in self.profiles[0].items() if {p[key] for p in self.profiles} == {size}}
        return self.shape(name, same)

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        return [self.shape(name, self.profiles[index])] * 3

    def create_execution_context(self) -> FakeContext:
        return FakeContext(self)


class FakeContext:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.addresses: dict[str, int] = {}
        self.sizes: dict[str, int] = {}

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        assert stream == HostDevice.stream
        self.sizes = self.engine.profiles[index]
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert shape == self.get_tensor_shape(name), name
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.engine.shape(name, self.sizes)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == HostDevice.stream
        arrays: dict[str, HostBuffer] = {}
        for name in self.engine.names:
            shape, dtype = self.get_tensor_shape(name), self.engine.get_tensor_dtype(name)
            count = int(np.prod(shape))
            memory = (ctypes.c_char * (count * dtype.itemsize)).from_address(self.addresses[name])
            arrays[name] = HostBuffer(np.frombuffer(memory, dtype, count).reshape(shape))
        arrays.pop("scratch.0").host[:] = 1
        for name in arrays:
            if name.startswith("present_"):
                assert self.addresses[name] == self.addresses[name.replace("present_", "past_", 1)]
        inputs = {name: arrays.pop(name) for name in self.engine.inputs}
        self.engine.session.bind(inputs, arrays).run(tuple(arrays))
        return True
