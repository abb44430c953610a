"""TensorRT-RTX and TensorRT: engines (plans) that `cascade-trt compile` made of a bundle's graphs, on their GPU.

Memory is that of `ort_cuda.py`: buffers and caches bound by their addresses, rounds queued on one stream and what runs
once an image on another, a wait only where something is fetched. Every bound call has an execution context of its own;
those of a stream work in one piece of scratch memory, for they take turns. A call of a shape that no profile has is
filled up (`tensorrt_shapes.py`).

The second run of a call captures it as a CUDA graph, the copies of a filled-up call included, and from then on a run is
one launch. Where TensorRT-RTX says that a context cannot be captured, it makes its own graph. What runs once an image
stays plain; its calls share contexts.

It has not met a GPU yet (docs/gpu.md). Tests run it on a TensorRT and a CUDA driver of their own, which compute.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..engine_info import FIXED_NODES, FIXED_PAIRS, PlanInfo
from ..errors import CascadeError, CascadeWarning
from ..plans import EXTRAS, RTX, Here, Plans
from . import Buffer, Identity, Kind
from .cuda_memory import CudaBuffer, CudaCache, cuda_buffer
from .device import CudaDevice, Graph
from .host import host_dtype
from .kernels.info import KernelInfo
from .kernels.on_cuda import CudaKernels, open_kernels
from .ort import check_names
from .ort_cuda import IMAGE_ENGINES, ROUND_ENGINES, device_for
from .runtime_cache import RuntimeCaches
from .tensorrt_library import Context, Parts, import_library, refused
from .tensorrt_shapes import NodesInPieces, Padded, PairsInPieces, Shapes, for_pieces, is_odd, smallest
from .turns import TURN

_DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT32": "int32", "INT64": "int64",
           "BOOL": "bool"}  # fmt: skip
_WARM_RUNS = 5  # before a call is timed


def open_device(backend: str, device: int) -> CudaDevice:
    """GPU `device` for a TensorRT. Raises CascadeError where it cannot be used."""
    if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.bindings") is None:
        extra = EXTRAS[backend]
        raise CascadeError(f"{backend} needs cuda-bindings: run `pip install 'cascade-trt[{extra}]'`.")
    return CudaDevice(device)


class TensorRtBackend:
    """Loads `plans` of the flavour `name` ("tensorrt-rtx", "tensorrt") on a GPU: the plans of `target`, or of whichever
    target fits. Without `graphs` no CUDA graph is made, which is slower, and shows whether one is at fault.

    Raises CascadeError without TensorRT, a GPU, or plans that fit.
    """

    def __init__(
        self, name: str, plans: Plans, device: int | CudaDevice = 0, graphs: bool = True, target: str | None = None
    ) -> None:
        self._name, self._bundle, self._graphs = name, plans, graphs
        self.device = open_device(name, device) if isinstance(device, int) else device
        self._plans = plans.fitting(name, Here.look((self.device.name, self.device.capability)), target)
        self._parts = Parts.of(import_library(name), self.device)
        self._caches = RuntimeCaches(self.device, self._parts.library.version)

    @property
    def identity(self) -> Identity:
        return Identity(self._name, self._parts.library.version, self.device.name, 1)

    @property
    def captures(self) -> bool:
        return self._graphs

    def load(self, path: Path) -> TensorRtEngine:
        """The plan that was compiled from the graph in `path`. Raises CascadeError when there is none, or TensorRT
        refuses it."""
        plan = self._plans.get(path.name)
        if plan is None:
            target = next((plan.target for plan in self._plans.values()), self._name)
            raise CascadeError(f"{path.name} has no engine for {target}: {self._bundle.again(target)}")
        data, advice = self._bundle.read(plan), self._bundle.again(plan.target).rstrip(".")
        with TURN.lock:
            self.device.make_current()
            engine = self._parts.runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise refused(f"load {plan.file} of {path.name}", self._parts.log, advice)
        graphs = self._graphs and path.name.split(".")[0] not in IMAGE_ENGINES
        parts = self._parts if device_for(path, self.device) is self.device else self._parts.beside
        return TensorRtEngine(parts, engine, plan, advice, self._bundle.most_nodes, graphs, self._caches)

    def load_merged(self, path: Path, files: Mapping[str, Path]) -> Mapping[str, TensorRtEngine]:  # noqa: ARG002
        """Each graph's own plan: nothing is compiled from the merged file."""
        return {name: self.load(file) for name, file in files.items()}

    def buffer(self, shape: Sequence[int], dtype: str, kind: Kind) -> CudaBuffer:
        return cuda_buffer(self.device, shape, dtype, kind)

    def cache(self, layers: int, rows: int, heads: int, slots: int, head_dim: int, dtype: str) -> CudaCache:
        return CudaCache(self.device, layers, rows, heads, slots, head_dim, dtype)

    def check_slots(self, slots: int) -> None:
        served = self._served()
        if served and slots > max(served):
            raise CascadeError(
                f"the TensorRT engines in {self._bundle.folder} draw at most {max(served)} images at a time (--batch), "
                f"not {slots}: ask for fewer, draw with another backend, or build the bundle again with --batch "
                f"{slots} and compile its engines."
            )

    def sizes(self, slots: int) -> tuple[int, ...]:
        """The numbers that every engine of a round has profiles for."""
        return (*sorted(count for count in self._served() if count < slots), slots)

    def _served(self) -> set[int]:
        counts = [{dims["P"] for dims in plan.profiles} for plan in self._plans.values()
                  if plan.engine.split(".")[0] in ROUND_ENGINES]  # fmt: skip
        return set.intersection(*counts) if counts else set()

    def kernels(self, bundle: Path, compiled: Sequence[KernelInfo]) -> CudaKernels | None:
        return open_kernels(self.device, bundle, compiled)


class TensorRtEngine:
    """A deserialized plan. `graphs` says whether its calls become CUDA graphs; `most` nodes or pairs are the most that
    a call may be filled up to."""

    def __init__(
        self, parts: Parts, engine: Any, plan: PlanInfo, advice: str, most: int, graphs: bool, caches: RuntimeCaches
    ) -> None:
        self._parts, self._engine, self._trt = parts, engine, parts.library.trt
        self.device, self.graphs, self.file = parts.scratch.device, graphs, plan.file
        self._advice, self._most = advice, most
        self._fixed = {name for name in (FIXED_NODES, FIXED_PAIRS) if name in plan.options}
        self._inputs, self._outputs = self._tensors()
        self._aliases: dict[str, str | None] = {
            name: engine.get_aliased_input_tensor(name) or None for name in self._outputs
        }
        self._profiles: list[Shapes] = [self._profile(index) for index in range(engine.num_optimization_profiles)]
        self._caches = caches
        self._config = self._new_config(plan)
        self._makes_images = plan.engine == "decode"
        self._shared: dict[int, Context] = {}  # of calls without CUDA graphs, by profile

    def _tensors(self) -> tuple[dict[str, str], dict[str, str]]:
        """Inputs and outputs with their dtypes. Raises CascadeError for what the runtime cannot bind."""
        engine, trt = self._engine, self._trt
        found: tuple[dict[str, str], dict[str, str]] = {}, {}
        for name in (engine.get_tensor_name(index) for index in range(engine.num_io_tensors)):
            dtype = _DTYPES.get(engine.get_tensor_dtype(name).name)
            if dtype is None or engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
                raise CascadeError(f"{self.file} wants {name} in a form that it never had: {self._advice}.")
            found[engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT][name] = dtype
        return found

    def _profile(self, index: int) -> dict[str, tuple[int, ...]]:
        """The shapes of all inputs: profiles have one size for each open dimension."""
        shapes = {name: tuple(self._engine.get_tensor_shape(name)) for name in self._inputs}
        return {
            name: tuple(self._engine.get_tensor_profile_shape(name, index)[1]) if -1 in shape else shape
            for name, shape in shapes.items()
        }

    def _new_config(self, plan: PlanInfo) -> Any:
        """TensorRT-RTX compiles kernels when a call first runs. All contexts share them, other processes find them
        (`runtime_cache.py`), and they are final when a CUDA graph is captured. None for TensorRT, which has compiled
        everything."""
        trt = self._trt
        if self._parts.library.backend != RTX:
            return None
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        cache = config.create_runtime_cache()
        self._caches.open(self, cache, plan)
        config.set_runtime_cache(cache)
        return config

    def has_run(self) -> None:
        """A call of it has."""
        if self._makes_images:
            self._caches.image_done()

    @property
    def makes_graphs(self) -> bool:
        """Whether TensorRT can make CUDA graphs itself."""
        return self._config is not None

    def dtype(self, name: str) -> str:
        return (self._inputs | self._outputs)[name]

    # binding ------------------------------------------------------------------------------------------------
    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> TensorRtCall:
        """Raises CascadeError when no profile takes these shapes."""
        check_names(self._inputs, self._outputs, inputs, outputs)
        given, wanted = (_on_gpu(buffers, self.device) for buffers in (inputs, outputs))
        for name, buffer in wanted.items():
            if buffer.kind == "in" and self._aliases[name] is None:
                raise ValueError(f"{name} is an output, and its buffer is one that the host writes")
        shapes = {name: buffer.shape for name, buffer in given.items()}
        index, kind = self._fit(shapes)
        working = self.context(index)
        results = {name: working.shape(name) for name in self._outputs}
        exact = kind is Padded and self._profiles[index] == shapes
        if exact and (odd := [name for name, buffer in wanted.items() if buffer.shape != results[name]]):
            raise ValueError(f"{odd} are of another shape than the engine's, {[results[name] for name in odd]}")
        as_it_is = exact and not any(is_odd(name, buffer) for name, buffer in (*given.items(), *wanted.items()))
        shaped = None if as_it_is else kind(self.device, given, wanted, self._profiles[index], results)
        return TensorRtCall(self, index, working, given, wanted, shaped, self._others(given, wanted, results))

    def _fit(self, shapes: Shapes) -> tuple[int, type[Padded]]:
        """The number of a profile, and how it takes a call of these shapes."""
        if (index := smallest(self._profiles, shapes, self._most)) is not None:
            return index, Padded
        for option, kind in ((FIXED_NODES, NodesInPieces), (FIXED_PAIRS, PairsInPieces)):
            if option in self._fixed:
                index = for_pieces(self._profiles, shapes, kind.cuts, self._most)
                if index is not None:
                    return index, kind
        shown = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items()
                          if len(shape) > 1 and not name.startswith("past_"))  # fmt: skip
        raise CascadeError(
            f"{self.file} has no profile for {shown}: draw with guidance as the bundle does, with a tree that it was "
            "built with, and no more images at a time than its --batch; or build it so, and compile its engines again."
        )

    def _others(
        self, inputs: Mapping[str, CudaBuffer], outputs: Mapping[str, CudaBuffer], results: Shapes
    ) -> dict[str, tuple[int, object]]:
        """Address and memory of each output that nobody has bound. Raises ValueError where bound ones do not share the
        memory that the engine updates in place."""
        found: dict[str, tuple[int, object]] = {}
        for name, dtype in self._outputs.items():
            alias, bound = self._aliases[name], outputs.get(name)
            if alias is not None:
                if bound is None:
                    found[name] = inputs[alias].address, inputs[alias]
                elif bound.address != inputs[alias].address:
                    raise ValueError(f"{name} updates {alias} in place, and they are bound to different memory")
            elif bound is None:
                size = math.prod(results[name]) * host_dtype(dtype).itemsize
                memory = self.device.allocate(size, f"the output {name}")
                found[name] = memory.address, memory
            elif any(bound.address == buffer.address for buffer in inputs.values()):
                raise ValueError(f"{name} is not updated in place, and shares the memory of an input")
        return found

    # contexts -----------------------------------------------------------------------------------------------
    def context(self, index: int, whole_graph: bool = False) -> Context:
        """A context for profile `index`; one for all calls that are not captured."""
        with TURN.lock:
            if self.graphs or whole_graph:
                return self._new_context(index, whole_graph)
            if index not in self._shared:
                self._shared[index] = self._new_context(index, False)
            return self._shared[index]

    def _new_context(self, index: int, whole_graph: bool) -> Context:
        self.device.make_current()
        strategy: Any = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._config is not None:
            own, none = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE, self._trt.CudaGraphStrategy.DISABLED
            self._config.cuda_graph_strategy = own if whole_graph else none
            strategy = self._config
        context = self._engine.create_execution_context(strategy)
        stream = self.device.stream
        if context is None or not context.set_optimization_profile_async(index, stream):
            raise self.refusal("prepare")
        for name, shape in self._profiles[index].items():
            if not context.set_input_shape(name, shape):
                raise self.refusal("prepare")
        size = max(self._engine.device_memory_size_v2, context.update_device_memory_size_for_shapes())
        memory = self._parts.scratch.at_least(size)
        context.set_device_memory(memory.address, memory.size)
        return Context(self.device.hold(context), memory)

    def refusal(self, verb: str) -> CascadeError:
        return refused(f"{verb} {self.file}", self._parts.log, self._advice)


def _on_gpu(buffers: Mapping[str, Buffer], device: CudaDevice) -> dict[str, CudaBuffer]:
    """Buffers of an engine on the stream of `device`."""
    found: dict[str, CudaBuffer] = {}
    for name, buffer in buffers.items():
        if not isinstance(buffer, CudaBuffer):
            raise ValueError(f"{name} is a buffer of another backend")
        buffer.work_on(device, name)
        found[name] = buffer
    return found


class TensorRtCall:
    """Keeps all that its context, and its CUDA graph, point at."""

    def __init__(
        self, engine: TensorRtEngine, index: int, context: Context, inputs: Mapping[str, CudaBuffer],
        outputs: Mapping[str, CudaBuffer], shaped: Padded | None, others: Mapping[str, tuple[int, object]],
    ) -> None:  # fmt: skip
        self._engine, self._index, self._context, self._shaped = engine, index, context, shaped
        self._inputs, self._outputs, self._others = inputs, outputs, others
        own, answers = ({}, {}) if shaped is None else (shaped.own, shaped.answers)
        bound = {**inputs, **outputs, **own, **answers}
        self._addresses = {name: buffer.address for name, buffer in bound.items()}
        self._addresses |= {name: address for name, (address, _) in others.items()}
        prepared = [] if shaped is None else shaped.uploads
        written = [name for name in own if own[name] in prepared]  # by the host, in the place of what was given
        self._uploads = [buffer for name, buffer in inputs.items() if buffer.kind == "in" and name not in written]
        self._uploads += prepared
        self._graph: Graph | None = None
        self._captures = engine.graphs  # whether the next run but one is captured
        self._warm = False
        self._set_addresses()

    def run(self, fetch: Sequence[str] = ()) -> None:
        if not self._outputs.keys() >= set(fetch):
            raise ValueError(f"{sorted(set(fetch) - self._outputs.keys())} are not among the bound outputs")
        for piece in (None,) if self._shaped is None else self._shaped.pieces():
            self._load(piece)
            self._launch()
            if self._shaped is not None:
                self._shaped.collect(piece)
        for name in fetch:
            self._outputs[name].fetch()
        if fetch:
            self._engine.device.synchronize()
        self._engine.has_run()

    def seconds(self, repeats: int = 50) -> float:
        """Mean time of the call on the GPU, all pieces together, without uploads; the first few runs do not count."""
        device, pieces = self._engine.device, [None] if self._shaped is None else list(self._shaped.pieces())
        self._load(pieces[0])
        for _ in range(_WARM_RUNS):
            self._launch()
        start, end = device.event(timed=True), device.event(timed=True)
        start.record()
        for _ in range(repeats):
            self._launch()
        end.record()
        end.wait()
        return len(pieces) * end.since(start) / 1000 / repeats

    def _load(self, piece: object) -> None:
        if self._shaped is not None:
            self._shaped.prepare(piece)
        for buffer in self._uploads:
            buffer.upload()

    def _launch(self) -> None:
        """Queues the call: as it is, then into a CUDA graph, then as that graph. Contexts may be shared."""
        with TURN.lock:
            if self._graph is None and self._warm and self._captures:
                self._capture()
            if self._graph is None:
                self._queue()
            else:
                self._graph.launch()
            self._warm = True

    def _queue(self) -> None:
        engine = self._engine
        if not engine.graphs:  # the context is shared
            self._set_addresses()
        if self._shaped is not None:
            self._shaped.before()
        engine.device.make_current()
        if not self._context.context.execute_async_v3(engine.device.stream):
            raise engine.refusal("run")
        if self._shaped is not None:
            self._shaped.after()

    def _capture(self) -> None:
        """Makes the graph, or lets TensorRT-RTX make its own; where neither can be, runs stay plain, which is told."""
        engine, self._captures = self._engine, False
        context, stream = self._context.context, engine.device.stream
        engine.device.make_current()
        if engine.makes_graphs and not context.is_stream_capturable(stream):
            self._context = engine.context(self._index, whole_graph=True)
            self._set_addresses()
            return
        try:
            with engine.device.capture() as graph:
                self._queue()
        except CascadeError as error:
            what = f"{engine.file} makes no CUDA graph ({str(error).rstrip('.')})"
            warnings.warn(f"{what}: this is slower, and images are the same.", CascadeWarning, stacklevel=2)
            return
        self._graph = graph

    def _set_addresses(self) -> None:
        with TURN.lock:
            for name, address in self._addresses.items():
                if not self._context.context.set_tensor_address(name, address):
                    raise self._engine.refusal("prepare")
