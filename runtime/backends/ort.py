"""ONNX Runtime on the CPU.

Buffers are bound once as OrtValues that share numpy's memory. Binding one buffer as both input and output is what
makes ONNX Runtime update a cache in place; through a plain `run` it would copy the whole cache.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CascadeError, CascadeWarning
from ..machine import cores, engine_threads, processor
from ..schema import short
from . import Buffer, Identity, Kind
from .host import HostBuffer, HostCache, host_buffer
from .kernels.info import KernelInfo

DTYPES = {
    "tensor(float)": "float32", "tensor(float16)": "float16", "tensor(bfloat16)": "bfloat16",
    "tensor(int64)": "int64", "tensor(int32)": "int32", "tensor(bool)": "bool",
}  # fmt: skip
_BFLOAT16 = 16  # ONNX's number of the type, which numpy cannot name
_ERRORS_ONLY = 3
LEAST_VERSION = "1.25"  # the first that has everything in our graphs of opset 24 (TensorScatter on the CPU)
_CHOICE = "graph"  # input of a merged model: the number of the graph that a call runs


class OrtBackend:
    """Loads graphs into ONNX Runtime; `threads` per engine, by default one for each physical core, and at most one for
    each core that this process may use."""

    captures = False

    def __init__(self, threads: int | None = None) -> None:
        self._ort = import_onnxruntime("cpu", LEAST_VERSION)
        self._threads = None if threads is None else _usable_threads(threads)

    @property
    def identity(self) -> Identity:
        return Identity("ort-cpu", self._ort.__version__, processor(), engine_threads(self._threads))

    def load(self, path: Path) -> OrtEngine:
        """Raises CascadeError when ONNX Runtime refuses the graph."""
        return OrtEngine(self._ort, self._session(path), path.name)

    def load_merged(self, path: Path, files: Mapping[str, Path]) -> Mapping[str, OrtEngine]:
        """One session for all: ONNX Runtime packs weights once for each session, and sessions cannot share them.

        Raises CascadeError when ONNX Runtime refuses the file, or it holds other graphs or in another order.
        """
        session = self._session(path)
        given = [value.name for value in session.get_inputs()]
        held = list(dict.fromkeys(name.split("/")[0] for name in given if name != _CHOICE))
        if held != list(files) or _CHOICE not in given:
            raise CascadeError(
                f"{path.name} holds the graphs {', '.join(held)}, not {', '.join(files)}: build the bundle again."
            )
        return {name: OrtEngine(self._ort, session, path.name, f"{name}/", number) for number, name in enumerate(files)}

    def _session(self, path: Path) -> Any:
        options = self._ort.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        # Drafter and target take turns. A pool that goes on spinning after its call takes the other's cores:
        # on two cores a call on three nodes then takes 1.6 times as long.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        try:
            return self._ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            missing = "NOT_IMPLEMENTED" in str(error)  # kernels of half precisions
            advice = "build the bundle with --precision fp32 to use it here" if missing else "build the bundle again"
            raise CascadeError(
                f"ONNX Runtime on this CPU cannot load {path.name} ({reason(error)}): {advice}."
            ) from error

    def buffer(self, shape: Sequence[int], dtype: str, kind: Kind) -> HostBuffer:  # noqa: ARG002 - one memory here
        return host_buffer(shape, dtype)

    def cache(self, layers: int, rows: int, heads: int, slots: int, head_dim: int, dtype: str) -> HostCache:
        return HostCache(layers, rows, heads, slots, head_dim, dtype)

    def check_slots(self, slots: int) -> None:
        """Shapes are free."""

    def sizes(self, slots: int) -> tuple[int, ...]:
        return tuple(range(1, slots + 1))

    def kernels(self, bundle: Path, compiled: Sequence[KernelInfo]) -> None:  # noqa: ARG002 - rounds are the host's
        return None


def import_onnxruntime(extra: str, least: str) -> Any:
    """The module. `extra` of this package installs it, `least` is the first version that will do. Raises CascadeError
    where it is missing, damaged or older."""
    try:
        import onnxruntime
    except ImportError as error:
        if error.name == "onnxruntime":
            raise CascadeError(f"ONNX Runtime is not installed: run `pip install 'cascade-trt[{extra}]'`.") from None
        raise CascadeError(f"ONNX Runtime cannot be loaded ({reason(error)}): install it again.") from error
    if not hasattr(onnxruntime, "InferenceSession"):  # what is left where one of two distributions was removed
        raise CascadeError(
            "ONNX Runtime's files are not whole, as after onnxruntime and onnxruntime-gpu were installed together: "
            "uninstall both, then run `pip install 'cascade-trt[cpu]'`, or [cuda] for a GPU."
        )
    if (problem := version_problem(onnxruntime.__version__, extra, least)) is not None:
        raise CascadeError(f"ONNX Runtime {problem}.")
    return onnxruntime


def version_problem(version: str, extra: str = "cpu", least: str = LEAST_VERSION) -> str | None:
    """Why this version of ONNX Runtime cannot run any bundle, and what to do; None where it can."""
    given, needed = ([int(part) for part in text.split(".")[:2] if part.isdigit()] for text in (version, least))
    if given >= needed or not given:  # a build of somebody's own may be called anything
        return None
    return f"{version} is too old, {least} is needed: run `pip install 'cascade-trt[{extra}]'`"


def reason(error: Exception) -> str:
    """The first line of what it says."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _usable_threads(threads: Any) -> int:
    """At most one for each core: with many more, engines wait for each other without an end. Raises CascadeError for
    what is no number of threads."""
    if isinstance(threads, bool) or not isinstance(threads, int | np.integer) or threads < 1:
        raise CascadeError(f"threads must be a whole number of at least 1, not {short(threads)}.")
    most = cores()
    if threads > most:
        asked = f"{short(threads)} threads were asked for"
        warnings.warn(f"{asked}, this machine lets us use {most} cores: {most} are used.", CascadeWarning, stacklevel=7)
    return min(int(threads), most)


class OrtEngine:
    """A session, with the dtypes of what it reads and writes; or graph `number` of a merged one, whose names there
    begin with `prefix`. `file` is what it was loaded from."""

    def __init__(self, ort: Any, session: Any, file: str, prefix: str = "", number: int | None = None) -> None:
        self._ort, self._session, self._file, self._prefix = ort, session, file, prefix
        self._choice = None if number is None else ort.OrtValue.ortvalue_from_numpy(np.array(number, np.int64))
        self._inputs, self._outputs = (
            {value.name.removeprefix(prefix): DTYPES[value.type] for value in values if value.name.startswith(prefix)}
            for values in (session.get_inputs(), session.get_outputs())
        )

    def dtype(self, name: str) -> str:
        return (self._inputs | self._outputs)[name]

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> OrtCall:
        check_names(self._inputs, self._outputs, inputs, outputs)
        binding = self._session.io_binding()
        values: dict[tuple[int, tuple[int, ...]], Any] = {}

        def shared(buffer: Buffer) -> Any:
            key = (buffer.host.ctypes.data, buffer.shape)
            if key not in values:
                values[key] = self._value(buffer)
            return values[key]

        if self._choice is not None:
            binding.bind_ortvalue_input(_CHOICE, self._choice)
        for name, buffer in inputs.items():
            binding.bind_ortvalue_input(self._prefix + name, shared(buffer))
        for name, buffer in outputs.items():
            binding.bind_ortvalue_output(self._prefix + name, shared(buffer))
        return OrtCall(self._session, self._file, binding, {**inputs, **outputs}, frozenset(outputs))

    def _value(self, buffer: Buffer) -> Any:
        """An OrtValue in the buffer's own memory."""
        if buffer.dtype == "bfloat16":
            return self._ort.OrtValue.ortvalue_from_numpy_with_onnx_type(buffer.host, _BFLOAT16)
        return self._ort.OrtValue.ortvalue_from_numpy(buffer.host)


class OrtCall:
    """Keeps the bound buffers alive for as long as the binding points at them."""

    def __init__(
        self, session: Any, file: str, binding: Any, bound: Mapping[str, Buffer], outputs: frozenset[str]
    ) -> None:
        self._session, self._file, self._binding, self._bound, self._outputs = session, file, binding, bound, outputs

    def run(self, fetch: Sequence[str] = ()) -> None:
        if not self._outputs.issuperset(fetch):
            raise ValueError(f"{sorted(set(fetch) - self._outputs)} are not among the bound outputs")
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # as above
            raise CascadeError(
                f"ONNX Runtime cannot run {self._file} ({reason(error)}): build the bundle again."
            ) from error


def check_names(
    reads: Mapping[str, str], writes: Mapping[str, str], inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]
) -> None:
    """Raises ValueError where buffers do not fit a graph's inputs and outputs (name -> dtype)."""
    if missing := reads.keys() - inputs.keys():
        raise ValueError(f"inputs {sorted(missing)} are not bound")
    for known, given in ((reads, inputs), (writes, outputs)):
        if unknown := given.keys() - known.keys():
            raise ValueError(f"the graph has no {sorted(unknown)}")
        for name, buffer in given.items():
            if buffer.dtype != known[name]:
                raise ValueError(f"{name} is {known[name]}, the buffer is {buffer.dtype}")
