"""A TensorRT without a GPU: plans name ONNX graphs, ONNX Runtime computes, memory is that of `host_cuda.py`.

It is as strict as TensorRT where that matters: shapes must be those of the chosen profile, every tensor needs an
address, an aliased output must share its input's, contexts need scratch of the size that they ask for, and what is
queued runs when the stream gets there. A captured graph keeps the addresses that it was captured with.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import Enum, auto
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
from host_cuda import HostDriver, host_device
from onnx import TensorProto

from cascade_trt.engines.tensorrt.profiles import engine_profiles
from cascade_trt.runtime.backends.device import CudaDevice
from cascade_trt.runtime.backends.host import HostBuffer, host_dtype
from cascade_trt.runtime.backends.ort import OrtBackend
from cascade_trt.runtime.backends.tensorrt import TensorRtBackend
from cascade_trt.runtime.backends.tensorrt_library import Library
from cascade_trt.runtime.bundle import PlanInfo, read_manifest
from cascade_trt.runtime.pipeline import Pipeline
from cascade_trt.runtime.plans import Plans, this_platform

VERSION = "1.7.1.116"
SCRATCH = "scratch.0"
SCRATCH_SHAPE = (2, 8, 5)
SCRATCH_BYTES = 4096
Dims = dict[str, int]


def write_plan(path: Path, graph: Path, profiles: Sequence[Dims]) -> Path:
    path.write_text(json.dumps({"graph": str(graph), "profiles": list(profiles)}))
    return path


def plan_info(
    engine: str, file: Path, profiles: Sequence[Dims], options: Mapping[str, Any] | None = None,
    target: str = "rtx:sm89", capability: str = "8.9", version: str = VERSION,
) -> PlanInfo:  # fmt: skip
    """The manifest's entry for a plan that `write_plan` wrote."""
    backend = "tensorrt" if target == "tensorrt" else "tensorrt-rtx"
    return PlanInfo(
        engine=engine, target=target, file=str(file), report="", key="", backend=backend, backend_version=version,
        compute_capability=capability, platform=this_platform(), precision="fp16", options=dict(options or {}),
        profiles=list(profiles), network={}, bytes=file.stat().st_size,
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(), seconds=0.0, peak_memory=0,
    )  # fmt: skip


def compiled(
    bundle: Path, folder: Path, profiles: Mapping[str, Sequence[Dims]] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None, **more: Any,
) -> Plans:  # fmt: skip
    """Plans in `folder` of all engines of a bundle: those of `options` with their options, those of `profiles` with
    these profiles, all others as they are compiled."""
    manifest, options, profiles, entries = read_manifest(bundle), options or {}, profiles or {}, []
    for name, info in manifest.engines.items():
        own = options.get(name, {})
        dims = profiles.get(name) or engine_profiles(manifest, name, own)
        file = write_plan(folder / f"{name}.plan", bundle / info.file, dims)
        entries.append(plan_info(name, file, dims, own, **more))
    return replace(Plans.of(bundle, manifest), entries=entries)


def for_slots(bundle: Path, counts: Sequence[int]) -> dict[str, list[Dims]]:
    """The profiles of each engine for calls on these numbers of slots, and those that fill one slot or draw for one."""
    manifest = read_manifest(bundle)
    length, found = manifest.model.condition.length, {}
    for name in manifest.engines:
        once = name.split(".")[0] not in ("target", "draft", "embed")
        found[name] = [
            dims for dims in engine_profiles(manifest, name)
            if dims["P"] in counts or once or dims.get("M") == length or (dims.get("N"), dims.get("L")) == (length, 1)
        ]  # fmt: skip
    return found


def draws_on(monkeypatch: Any, plans: Plans, graphs: bool = True) -> Pipeline:
    """The bundle of `plans` on them."""
    device, driver = host_device()
    own = backend(monkeypatch, plans, device, driver, graphs=graphs)
    return Pipeline.load(plans.folder, own, warm=False)


def backend(
    monkeypatch: Any, plans: Plans, device: CudaDevice, driver: HostDriver, name: str = "tensorrt-rtx", **options: Any
) -> TensorRtBackend:
    """A backend on this TensorRT and that device."""
    install(monkeypatch, driver)
    return TensorRtBackend(name, plans, device, **options)


def install(monkeypatch: Any, driver: HostDriver, version: str = VERSION) -> None:
    """From now on this TensorRT, on that driver, is the one that is installed."""
    FakeTrt.driver = driver
    monkeypatch.setattr(
        "cascade_trt.runtime.backends.tensorrt.import_library", lambda name: Library(name, FakeTrt, version)
    )
    monkeypatch.setattr("cascade_trt.runtime.plans.installed_version", lambda _: version)
    monkeypatch.setattr("cascade_trt.runtime.backends.runtime_cache.cache_folder", lambda: None)  # nothing of a user's
    monkeypatch.setattr(TensorRtBackend, "kernels", lambda *_: None)  # they would have to be compiled for this CPU


class DataType(Enum):
    FLOAT, HALF, BF16, INT32, INT64, BOOL, FP8 = (auto() for _ in range(7))


_TYPES = {
    TensorProto.FLOAT: (DataType.FLOAT, "float32"), TensorProto.FLOAT16: (DataType.HALF, "float16"),
    TensorProto.BFLOAT16: (DataType.BF16, "bfloat16"), TensorProto.INT64: (DataType.INT64, "int64"),
    TensorProto.BOOL: (DataType.BOOL, "bool"),
}  # fmt: skip


class _Severity(Enum):
    INTERNAL_ERROR, ERROR, WARNING = 0, 1, 2


class FakeTrt:
    driver: ClassVar[HostDriver]
    DataType = DataType

    class ILogger:
        Severity = _Severity

        def __init__(self) -> None:
            pass

        def log(self, severity: _Severity, msg: str) -> None:
            raise NotImplementedError

    class TensorIOMode(Enum):
        INPUT, OUTPUT = 1, 2

    class TensorLocation(Enum):
        DEVICE, HOST = 0, 1

    class ExecutionContextAllocationStrategy(Enum):
        STATIC, USER_MANAGED = 0, 2

    class CudaGraphStrategy(Enum):
        DISABLED, WHOLE_GRAPH_CAPTURE = 0, 1

    class DynamicShapesKernelSpecializationStrategy(Enum):
        LAZY, EAGER = 0, 1

    class Runtime:
        def __init__(self, log: FakeTrt.ILogger) -> None:
            self.log = log

        def deserialize_cuda_engine(self, data: bytes) -> FakeEngine | None:
            if not data.startswith(b"{"):
                self.log.log(_Severity.ERROR, "Magic tag does not match")
                return None
            return FakeEngine(json.loads(data), self.log)


class RuntimeConfig:
    strategy: Any = None
    cache: Any = None
    cuda_graph_strategy = FakeTrt.CudaGraphStrategy.DISABLED
    dynamic_shapes_kernel_specialization_strategy = FakeTrt.DynamicShapesKernelSpecializationStrategy.LAZY

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache()

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        return True


class RuntimeCache:
    """What was compiled, by graph and profile: TensorRT-RTX does that when a call of a shape first runs. Another
    driver refuses what is written, and leaves the cache as it was."""

    driver: ClassVar[str] = "580.65"
    compiled: ClassVar[list[str]] = []  # by all of them

    def __init__(self) -> None:
        self.held: set[str] = set()

    def need(self, kernel: str) -> None:
        if kernel not in self.held:
            self.held.add(kernel)
            self.compiled.append(kernel)

    def serialize(self) -> memoryview:
        """IHostMemory has Python's buffer protocol."""
        return memoryview(json.dumps({"driver": self.driver, "held": sorted(self.held)}).encode())

    def deserialize(self, blob: bytes) -> bool:
        written = json.loads(blob)
        if written["driver"] != self.driver:
            return False
        self.held |= set(written["held"])
        return True


class FakeEngine:
    device_memory_size_v2 = SCRATCH_BYTES

    def __init__(self, plan: dict[str, Any], log: FakeTrt.ILogger) -> None:
        graph = onnx.load(plan["graph"], load_external_data=False).graph
        self.values = {value.name: value.type.tensor_type for value in [*graph.input, *graph.output]}
        self.inputs = [value.name for value in graph.input]
        self.names = [*self.values, SCRATCH]
        self.profiles, self.log, self.graph = plan["profiles"], log, Path(plan["graph"]).name
        self.session = OrtBackend(1).load(Path(plan["graph"]))
        self.num_io_tensors, self.num_optimization_profiles = len(self.names), len(self.profiles)

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> FakeTrt.TensorIOMode:
        return FakeTrt.TensorIOMode.INPUT if name in self.inputs else FakeTrt.TensorIOMode.OUTPUT

    def get_tensor_location(self, _: str) -> FakeTrt.TensorLocation:
        return FakeTrt.TensorLocation.DEVICE

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType.HALF if name == SCRATCH else _TYPES[self.values[name].elem_type][0]

    def dtype(self, name: str) -> str:
        return _TYPES[self.values[name].elem_type][1]

    def get_aliased_input_tensor(self, name: str) -> str | None:
        past = name.replace("present_", "past_", 1)
        return past if past != name and past in self.inputs else None

    def shape(self, name: str, sizes: Dims) -> tuple[int, ...]:
        if name == SCRATCH:
            return SCRATCH_SHAPE
        return tuple(sizes.get(dim.dim_param, dim.dim_value or -1) for dim in self.values[name].shape.dim)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape(name, {})

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        assert -1 in self.get_tensor_shape(name), "of a tensor without open dimensions"
        return [self.shape(name, self.profiles[index])] * 3

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig()

    def create_execution_context(self, config: Any) -> FakeContext:
        whole, cache = False, None
        if isinstance(config, RuntimeConfig):
            cache = config.cache
            whole = config.cuda_graph_strategy is FakeTrt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            config = config.strategy
        assert config is FakeTrt.ExecutionContextAllocationStrategy.USER_MANAGED
        return FakeContext(self, whole, cache)


class FakeContext:
    made: ClassVar[itertools.count] = itertools.count()

    def __init__(self, engine: FakeEngine, whole_graph: bool, cache: RuntimeCache | None) -> None:
        self.engine, self.whole_graph, self.cache = engine, whole_graph, cache
        self.addresses: dict[str, int] = {}
        self.sizes: Dims | None = None
        self.given: set[str] = set()
        self.memory, self.stream = (0, 0), 0
        next(self.made)

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        assert stream in FakeTrt.driver.streams
        self.stream, self.sizes = stream, self.engine.profiles[index]
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert tuple(shape) == self.get_tensor_shape(name), name
        self.given.add(name)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert self.sizes is not None
        return self.engine.shape(name, self.sizes)

    def update_device_memory_size_for_shapes(self) -> int:
        assert self.given == set(self.engine.inputs)
        return SCRATCH_BYTES

    def set_device_memory(self, address: int, size: int) -> None:
        FakeTrt.driver.check(address, size)
        self.memory = address, size

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert name in self.engine.names
        self.addresses[name] = address
        return address % 256 == 0  # TensorRT: "must have at least 256-byte alignment"

    def is_stream_capturable(self, stream: int) -> bool:
        return stream == self.stream

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == self.stream and self.given == set(self.engine.inputs)
        assert self.memory[1] >= SCRATCH_BYTES and set(self.addresses) == set(self.engine.names)
        assert not self.whole_graph or FakeTrt.driver.recorded is None
        for name in self.engine.names:
            alias = self.engine.get_aliased_input_tensor(name)
            assert alias is None or self.addresses[name] == self.addresses[alias], name
        if self.cache is not None:
            self.cache.need(f"{self.engine.graph} {self.sizes}")
        FakeTrt.driver.enqueue(partial(self.compute, dict(self.addresses)), stream)
        return True

    def compute(self, addresses: Mapping[str, int]) -> None:
        """Where the addresses point now; scratch gets a pattern, so that nobody can rely on it."""
        driver = FakeTrt.driver
        driver.check(*self.memory)
        ctypes.memset(self.memory[0], 0x5A, SCRATCH_BYTES)
        arrays: dict[str, HostBuffer] = {}
        for name in self.engine.names:
            dtype = "float16" if name == SCRATCH else self.engine.dtype(name)
            shape = self.get_tensor_shape(name)
            size = int(np.prod(shape)) * host_dtype(dtype).itemsize
            driver.check(addresses[name], size)
            memory = (ctypes.c_char * size).from_address(addresses[name])
            arrays[name] = HostBuffer(np.frombuffer(memory, host_dtype(dtype)).reshape(shape), dtype)
        arrays.pop(SCRATCH).host[:] = 1
        inputs = {name: arrays.pop(name) for name in self.engine.inputs}
        self.engine.session.bind(inputs, arrays).run(tuple(arrays))
