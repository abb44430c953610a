"""ONNX Runtime on the CPU.

Arrays are bound once as OrtValues that share numpy's memory. Binding one array as both input and output is
what makes ONNX Runtime update a cache in place; through a plain `run` it would copy the whole cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CascadeError

_DTYPES = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(bool)": np.dtype(np.bool_),
}
_ERRORS_ONLY = 3


class OrtBackend:
    """Loads graphs into ONNX Runtime; `threads` per engine, by default one for each physical core."""

    def __init__(self, threads: int | None = None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            if error.name == "onnxruntime":
                raise CascadeError(
                    "ONNX Runtime is not installed: run `pip install 'cascade-trt[cpu]'`."
                ) from None
            reason = next(iter(str(error).splitlines()), "no reason given")
            raise CascadeError(f"ONNX Runtime cannot be loaded ({reason}): install it again.") from error
        if threads is not None and threads < 1:
            raise CascadeError("threads must be at least 1.")
        self._ort: Any = onnxruntime
        self._threads = threads

    def load(self, path: Path) -> OrtEngine:
        """Raises CascadeError when ONNX Runtime refuses the graph."""
        options = self._ort.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        # Drafter and target take turns. A pool that goes on spinning after its call takes the other's cores:
        # on two cores a call on three nodes then takes 1.6 times as long.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        try:
            session = self._ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            reason = str(error).strip().splitlines()[0]
            raise CascadeError(
                f"ONNX Runtime on this CPU cannot load {path.name} ({reason}): "
                "build the bundle with --precision fp32 to use it here."
            ) from error
        return OrtEngine(self._ort, session)


class OrtEngine:
    def __init__(self, ort: Any, session: Any) -> None:
        self._ort = ort
        self._session = session
        self._types = {value.name: value.type for value in session.get_inputs()}

    def input_dtype(self, name: str) -> np.dtype:
        return _DTYPES[self._types[name]]

    def bind(self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> OrtCall:
        """Raises ValueError for an array that ONNX Runtime could not share."""
        binding = self._session.io_binding()
        values: dict[int, Any] = {}

        def shared(name: str, array: np.ndarray) -> Any:
            if not array.flags.c_contiguous:
                raise ValueError(f"{name} must be contiguous to be bound")
            address = array.ctypes.data
            if address not in values:
                values[address] = self._ort.OrtValue.ortvalue_from_numpy(array)
            return values[address]

        for name, array in inputs.items():
            binding.bind_ortvalue_input(name, shared(name, array))
        for name, array in outputs.items():
            binding.bind_ortvalue_output(name, shared(name, array))
        return OrtCall(self._session, binding, [*inputs.values(), *outputs.values()])


class OrtCall:
    """Keeps the bound arrays alive for as long as the binding points at them."""

    def __init__(self, session: Any, binding: Any, arrays: list[np.ndarray]) -> None:
        self._session, self._binding, self._arrays = session, binding, arrays

    def run(self) -> None:
        self._session.run_with_iobinding(self._binding)
