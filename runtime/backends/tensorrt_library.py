"""TensorRT-RTX and TensorRT as Python modules, what their engines share, and what they say when they refuse."""

from __future__ import annotations

import importlib
from collections import deque
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ..errors import CascadeError
from ..plans import CLASSIC, EXTRAS, RTX, version_numbers
from .device import CudaDevice, DeviceMemory, Held

_MODULES = {RTX: "tensorrt_rtx", CLASSIC: "tensorrt"}
_OLDEST = {RTX: (1, 7), CLASSIC: (10, 15)}  # the first with KV cache updates from ONNX
_KEPT = 8  # messages


@dataclass(frozen=True)
class Library:
    """An imported TensorRT: its Python module and full version ("1.7.1.116")."""

    backend: str
    trt: Any
    version: str


def import_library(backend: str) -> Library:
    """The module of `backend`. Raises CascadeError when it is missing, does not load, or is too old."""
    module, extra = _MODULES[backend], EXTRAS[backend]
    try:
        trt = importlib.import_module(module)
    except ModuleNotFoundError:
        raise CascadeError(f"{module} is not installed: run `pip install 'cascade-trt[{extra}]'`.") from None
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CascadeError(
            f"{module} is installed but does not load ({reason}): install it again with "
            f"`pip install --force-reinstall {backend}` and check the CUDA libraries."
        ) from error
    version = str(getattr(trt, "__version__", "")) or "unknown"
    if not hasattr(trt, "Builder"):
        raise CascadeError(
            f"{module} is installed without its libraries: run `pip install --force-reinstall {backend}`."
        )
    oldest = _OLDEST[backend]
    if version_numbers(version)[:2] < oldest:
        raise CascadeError(
            f"{module} {version} is too old for in-place KV updates: install "
            f"{oldest[0]}.{oldest[1]} or newer with `pip install 'cascade-trt[{extra}]'`."
        )
    return Library(backend, trt, version)


def new_log(trt: Any) -> Any:
    """A logger of TensorRT's that prints nothing and keeps the newest errors in `errors`, a deque of strings."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=_KEPT)

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(msg)

    return Log()


def refused(what: str, log: Any, advice: str) -> CascadeError:
    """TensorRT cannot do `what` ("load target.plan"): the error with the reason that it gave, or `advice`."""
    said = " ".join(log.errors)
    log.errors.clear()
    if "out of memory" in said.lower() or "outofmemory" in said.lower():
        return CascadeError(
            f"the GPU has not enough memory to {what}: draw fewer images at a time, build the bundle with a smaller "
            "--batch or in half precision, or end other programs on the GPU."
        )
    reason = next((line.strip() for line in said.splitlines() if line.strip()), "it gives no reason")
    return CascadeError(f"TensorRT on this GPU cannot {what} ({reason[:200].rstrip('.')}): {advice}.")


class Scratch:
    """Memory that all contexts of a stream compute in, one after the other. It grows with what is loaded; a captured
    graph keeps what it was captured with."""

    def __init__(self, device: CudaDevice) -> None:
        self.device = device
        self._memory = device.allocate(0, "TensorRT's scratch")

    def at_least(self, size: int) -> DeviceMemory:
        if size > self._memory.size:
            self._memory = self.device.allocate(size, "TensorRT's scratch")
        return self._memory


@dataclass(frozen=True)
class Parts:
    """What all engines of a stream share; `log` and `runtime` are TensorRT's, and the same for both."""

    library: Library
    log: Any
    runtime: Any
    scratch: Scratch

    @classmethod
    def of(cls, library: Library, device: CudaDevice) -> Parts:
        device.make_current()
        log = new_log(library.trt)
        return cls(library, log, library.trt.Runtime(log), Scratch(device))

    @cached_property
    def beside(self) -> Parts:
        """Those of the second stream."""
        return replace(self, scratch=Scratch(self.scratch.device.beside))


class Context:
    """TensorRT's execution context, and the scratch that it works in."""

    def __init__(self, held: Held, memory: DeviceMemory) -> None:
        self._held, self.memory = held, memory

    @property
    def context(self) -> Any:
        return self._held.thing

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.context.get_tensor_shape(name))
