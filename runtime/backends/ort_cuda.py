"""ONNX Runtime on a GPU, through its CUDA provider.

What a round needs is queued on one stream: uploads of what the host has written, engines, cache moves, downloads. What
runs once an image is queued on a second one, beside it (`device.py`). A run waits for its stream once if it fetches
something, else never. Buffers are bound by their addresses, once; a cache is one
address for past and present, so TensorScatter updates it in place.

The second run of a bound call captures it as a CUDA graph, and from then on a run is one launch. What runs once an
image is not worth it, and stays plain. While it captures, ONNX Runtime runs the engine several times. That is harmless
for ours: their outputs depend on inputs alone, and their updates write the same slots again.

It has not met a GPU yet (docs/gpu.md). Tests run it on a stand-in for CUDA, which computes nothing.
"""

from __future__ import annotations

import ctypes
import io
import itertools
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from ..errors import CascadeError, CascadeWarning
from . import CUDA_PROVIDER, Buffer, Identity, Kind
from .cuda_memory import CudaBuffer, CudaCache, cuda_buffer
from .device import CudaDevice
from .kernels.info import KernelInfo
from .kernels.on_cuda import CudaKernels, open_kernels
from .ort import DTYPES, check_names, import_onnxruntime, reason
from .turns import TURN

LEAST_VERSION = "1.31"  # before it, a second CUDA graph of a session could spoil what the first one reads (#32121)
ROUND_ENGINES = "target", "draft", "embed"  # a node of theirs on the CPU would make every round wait for it
IMAGE_ENGINES = "condition", "text", "decode"  # these run once an image
_MEMORY = "Cuda"
_LIBRARIES = "libcudart.so.13", "libcublas.so.13", "libcublasLt.so.13", "libcurand.so.10", "libcudnn.so.9"
_ONNX_TYPES = {"float32": 1, "int32": 6, "int64": 7, "bool": 9, "float16": 10, "bfloat16": 16}
_ERRORS_ONLY, _FATAL_ONLY = 3, 4  # what is refused is said by us
_NO_GRAPH = "-1"
NEEDS_BFLOAT16 = (8, 0)


class OrtCudaBackend:
    """Loads graphs into ONNX Runtime on GPU `device` of those that CUDA shows. Without `graphs` no CUDA graph is made,
    which is slower, and shows whether one is at fault.

    Raises CascadeError without a GPU, a driver for CUDA 13, cuda-bindings, or an ONNX Runtime with the CUDA provider.
    """

    def __init__(self, device: int = 0, graphs: bool = True) -> None:
        self._graphs = graphs
        self._ort = import_onnxruntime("cuda", LEAST_VERSION)
        if CUDA_PROVIDER not in self._ort.get_available_providers():
            raise CascadeError(
                "the installed ONNX Runtime has no CUDA provider: on a machine with an NVIDIA GPU run `pip uninstall "
                "onnxruntime`, then `pip install 'cascade-trt[cuda]'`; elsewhere draw with the backend ort-cpu."
            )
        self._ort.set_default_logger_severity(_ERRORS_ONLY)  # 1.31 warns of a plugin that nobody asked for
        self.device = CudaDevice(device)
        _load_libraries(self._ort)

    @property
    def identity(self) -> Identity:
        return Identity("ort-cuda", self._ort.__version__, self.device.name, 1)

    @property
    def captures(self) -> bool:
        return self._graphs

    def load(self, path: Path) -> OrtCudaEngine:
        """Raises CascadeError when ONNX Runtime refuses the graph, or would run a part of a round on the CPU. Warns
        where other graphs have such a part."""
        part, device = path.name.split(".")[0], device_for(path, self.device)
        wanted = graphs = self._graphs and part not in IMAGE_ENGINES
        try:
            session = self._session(path, device, graphs)
        except CascadeError:  # nodes on the CPU are one reason; without CUDA graphs we learn which, or that it was none
            session, graphs = self._session(path, device, graphs=False), False
        if found := _left_to_cpu(session) or ("makes no CUDA graph" if wanted and not graphs else ""):
            named = f"of {path.name} ONNX Runtime {self._ort.__version__} {found}"
            if part in ROUND_ENGINES:
                raise CascadeError(f"{named}, in every round: build the bundle again with this version of cascade-trt.")
            warnings.warn(f"{named}: this is slower, and images are the same.", CascadeWarning, stacklevel=2)
        return OrtCudaEngine(self._ort, session, device, path.name, graphs and not found)

    def load_merged(self, path: Path, files: Mapping[str, Path]) -> Mapping[str, OrtCudaEngine]:  # noqa: ARG002
        """Each graph from its own file: the merged one has If nodes, which no CUDA graph takes. Weights that they share
        are in memory once for each."""
        return {name: self.load(file) for name, file in files.items()}

    def _session(self, path: Path, device: CudaDevice, graphs: bool) -> Any:
        options = self._ort.SessionOptions()
        options.log_severity_level = _FATAL_ONLY
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        provider = {
            "device_id": str(device.index),
            "has_user_compute_stream": "1",
            "user_compute_stream": str(device.stream),
            "enable_cuda_graph": str(int(graphs)),
            "arena_extend_strategy": "kSameAsRequested",  # the default takes up to twice what is needed
            "cudnn_conv_algo_search": "HEURISTIC",  # the default times every algorithm in the first image's decoder
            "use_tf32": "0",  # fp32 is for those who compare; who wants speed builds with half precision
        }
        try:
            chosen = [(CUDA_PROVIDER, provider), "CPUExecutionProvider"]
            with TURN.lock:  # it allocates
                session = self._ort.InferenceSession(str(path), options, providers=chosen)
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise _refused(f"load {path.name}", error, "build the bundle again") from error
        if CUDA_PROVIDER not in session.get_providers():  # it goes on without one that does not start
            raise CascadeError(
                "ONNX Runtime's CUDA provider does not start: see `cascade-trt doctor`, or draw with the backend "
                "ort-cpu."
            )
        return session

    def buffer(self, shape: Sequence[int], dtype: str, kind: Kind) -> CudaBuffer:
        return cuda_buffer(self.device, shape, dtype, kind)

    def cache(self, layers: int, rows: int, heads: int, slots: int, head_dim: int, dtype: str) -> CudaCache:
        return CudaCache(self.device, layers, rows, heads, slots, head_dim, dtype)

    def check_slots(self, slots: int) -> None:
        """Shapes are free."""

    def sizes(self, slots: int) -> tuple[int, ...]:
        return (*(2**power for power in range(slots.bit_length()) if 2**power < slots), slots)

    def kernels(self, bundle: Path, compiled: Sequence[KernelInfo]) -> CudaKernels | None:
        return open_kernels(self.device, bundle, compiled)


def device_for(path: Path, device: CudaDevice) -> CudaDevice:
    """`device` with the stream of the engine in a file."""
    return device.beside if path.name.split(".")[0] in IMAGE_ENGINES else device


def _left_to_cpu(session: Any) -> str:
    """What a session does on the CPU, as "runs 21 InstanceNormalization, 1 Pad on the CPU"; empty where nothing."""
    parts = session.get_provider_graph_assignment_info()
    found = Counter(node.op_type for part in parts if part.ep_name != CUDA_PROVIDER for node in part.get_nodes())
    if found:
        return f"runs {', '.join(f'{count} {kind}' for kind, count in found.most_common())} on the CPU"
    names = sorted(_read_on_host(session))
    return f"reads {', '.join(names)} on the CPU" if names else ""


def _read_on_host(session: Any) -> frozenset[str]:
    """The inputs that a session needs in the host's memory."""
    places = zip(session.get_inputs(), session.get_input_memory_infos(), strict=True)
    return frozenset(value.name for value, place in places if place.name != _MEMORY)


def _load_libraries(ort: Any) -> None:
    """CUDA's libraries: the system's, else as pip installed them (for PyTorch, say). Raises CascadeError where there
    are none: ONNX Runtime would find out in the middle of an image, or go on without a GPU."""
    if not _missing_libraries():
        return
    with redirect_stdout(io.StringIO()):  # it prints what it misses, needed or not
        ort.preload_dlls()
    if missing := _missing_libraries():
        raise CascadeError(
            f"ONNX Runtime needs {', '.join(missing)}: run `pip install 'onnxruntime-gpu[cuda,cudnn]'`, or draw with "
            "the backend ort-cpu."
        )


def _missing_libraries() -> list[str]:
    missing = []
    for name in _LIBRARIES:
        try:
            ctypes.CDLL(name)
        except OSError:
            missing.append(name)
    return missing


def _refused(what: str, error: Exception, advice: str) -> CascadeError:
    text = str(error)
    if kernel := re.search(r"Provider type for (\w+) node|Could not find an implementation for (\w+)", text):
        return CascadeError(
            f"ONNX Runtime cannot {what}, for it has no kernel for {kernel[1] or kernel[2]} in this precision: build "
            "the bundle with --precision fp16 or fp32."
        )
    if "out of memory" in text or "Failed to allocate memory" in text or "BFCArena" in text:
        return CascadeError(
            f"the GPU has not enough memory to {what}: draw fewer images at a time, build the bundle with a smaller "
            "--batch or in half precision, or end other programs on the GPU."
        )
    if failure := re.search(r"CUDA failure \d+: ([^;]+)", text):
        return CascadeError(
            f"the GPU failed when it had to {what} ({failure[1].strip()}): start again, and see `nvidia-smi` if it "
            "recurs."
        )
    return CascadeError(f"ONNX Runtime on this GPU cannot {what} ({reason(error)}): {advice}.")


class OrtCudaEngine:
    """A session; `graphs` says whether its calls become CUDA graphs. `file` is what it was loaded from.

    Raises CascadeError for a graph of bfloat16 on a GPU that has none.
    """

    def __init__(self, ort: Any, session: Any, device: CudaDevice, file: str, graphs: bool) -> None:
        self.graphs = graphs
        self._ort, self._held, self.device, self._file = ort, device.hold(session), device, file
        self._inputs, self._outputs = (
            {value.name: DTYPES[value.type] for value in values}
            for values in (session.get_inputs(), session.get_outputs())
        )
        if device.capability < NEEDS_BFLOAT16 and "bfloat16" in (self._inputs | self._outputs).values():
            raise CascadeError(
                f"{file} computes in bfloat16, which this GPU ({device.name}) does not: build the bundle with "
                "--precision fp16."
            )
        self._on_host = _read_on_host(session)
        self._numbers = itertools.count(1) if graphs else None  # of the session's CUDA graphs

    def dtype(self, name: str) -> str:
        return (self._inputs | self._outputs)[name]

    def run(self, binding: Any, options: Any) -> None:
        """Queues the engine on what is bound. ONNX Runtime may capture, or allocate."""
        try:
            with TURN.lock:
                self._held.thing.run_with_iobinding(binding, options)
        except Exception as error:  # as above
            raise _refused(f"run {self._file}", error, "build the bundle again") from error

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> OrtCudaCall:
        check_names(self._inputs, self._outputs, inputs, outputs)
        binding, bound = self._held.thing.io_binding(), {}
        for given, bind in ((inputs, binding.bind_input), (outputs, binding.bind_output)):
            for name, buffer in given.items():
                if not isinstance(buffer, CudaBuffer):
                    raise ValueError(f"{name} is a buffer of another backend")
                if given is outputs and buffer.kind == "in":
                    raise ValueError(f"{name} is an output, and its buffer is one that the host writes")
                buffer.work_on(self.device, name)
                place = "cuda", self.device.index, _ONNX_TYPES[buffer.dtype], list(buffer.shape), buffer.address
                if given is inputs and name in self._on_host:  # from the GPU it would be copied now, and never again
                    place = "cpu", 0, _ONNX_TYPES[buffer.dtype], list(buffer.shape), buffer.host.ctypes.data
                bind(name, *place)
                bound[name] = buffer
        number = None if self._numbers is None else str(next(self._numbers))
        options = [_run_options(self._ort, graph or _NO_GRAPH) for graph in (_NO_GRAPH, number)]
        reads, writes = ({name: bound[name] for name in given} for given in (inputs, outputs))
        return OrtCudaCall(self, binding, reads, writes, self._on_host, options)


def _run_options(ort: Any, graph: str) -> Any:
    options = ort.RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    options.add_run_config_entry("gpu_graph_id", graph)
    return options


class OrtCudaCall:
    """Keeps the bound buffers alive for as long as the binding, and its CUDA graph, point at them."""

    def __init__(
        self, engine: OrtCudaEngine, binding: Any, inputs: Mapping[str, CudaBuffer], outputs: Mapping[str, CudaBuffer],
        on_host: frozenset[str], options: Sequence[Any],
    ) -> None:  # fmt: skip
        self._engine, self._binding, self._inputs, self._outputs = engine, binding, inputs, outputs
        self._uploads = [buffer for name, buffer in inputs.items() if buffer.kind == "in" and name not in on_host]
        self._downloads = [inputs[name] for name in on_host if inputs[name].kind != "in"]
        self._first, self._then = options

    def run(self, fetch: Sequence[str] = ()) -> None:
        if not self._outputs.keys() >= set(fetch):
            raise ValueError(f"{sorted(set(fetch) - self._outputs.keys())} are not among the bound outputs")
        for buffer in self._uploads:
            buffer.upload()
        self._fetch(self._downloads)
        self._engine.run(self._binding, self._first)
        self._first = self._then
        self._fetch([self._outputs[name] for name in fetch])

    def _fetch(self, buffers: Sequence[CudaBuffer]) -> None:
        for buffer in buffers:
            buffer.fetch()
        if buffers:
            self._engine.device.synchronize()
