"""Runs plans on this machine's GPU so that they can be compared: `PlanEngine` is an `Engine` of the runtime.

Arrays stay in the CPU's memory and are copied around every call, caches included, so this is for checking numbers
and not for speed. It has not met a GPU yet (docs/gpu.md); tests run it on a TensorRT of their own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ...runtime.backends import Buffer
from ...runtime.errors import CascadeError
from .loader import Flavour


class Device(Protocol):
    """GPU memory and one stream."""

    stream: int

    def allocate(self, size: int) -> int: ...
    def upload(self, address: int, array: np.ndarray) -> None: ...
    def download(self, address: int, array: np.ndarray) -> None: ...
    def wait(self) -> None: ...


class CudaDevice:
    """The first GPU, through Polygraphy's wrapper of the CUDA runtime; memory is freed when the process ends.

    Every method raises CascadeError when CUDA refuses.
    """

    def __init__(self) -> None:
        with _cuda_errors():
            from polygraphy import cuda

            self._cuda, self._kind = cuda.wrapper(), cuda.MemcpyKind
            self._stream = cuda.Stream()
        self.stream: int = self._stream.ptr or 0

    def allocate(self, size: int) -> int:
        with _cuda_errors():
            address = self._cuda.malloc(size)
        assert address is not None
        return address

    def upload(self, address: int, array: np.ndarray) -> None:
        with _cuda_errors():
            self._cuda.memcpy(address, array.ctypes.data, array.nbytes, self._kind.HostToDevice)

    def download(self, address: int, array: np.ndarray) -> None:
        with _cuda_errors():
            self._cuda.memcpy(array.ctypes.data, address, array.nbytes, self._kind.DeviceToHost)

    def wait(self) -> None:
        with _cuda_errors():
            self._stream.synchronize()


@contextmanager
def _cuda_errors() -> Iterator[None]:
    """CUDA's refusals as CascadeError; Polygraphy would print them as well."""
    from polygraphy.exception import PolygraphyException
    from polygraphy.logger import G_LOGGER

    try:
        with G_LOGGER.verbosity(G_LOGGER.CRITICAL + 1):
            yield
    except (PolygraphyException, OSError, AttributeError) as error:  # the latter two: no CUDA runtime to be found
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0]
        raise CascadeError(f"the GPU cannot be used ({reason}): see `cascade-trt doctor`.") from None


class PlanEngine:
    """A plan on `device`. Raises CascadeError when TensorRT does not take the file."""

    def __init__(self, flavour: Flavour, path: Path, device: Device) -> None:
        trt = flavour.trt
        self._trt, self._device, self._name = trt, device, path.name
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise CascadeError(f"{flavour.backend} {flavour.version} does not load {path}: see `cascade-trt doctor`.")

    def dtype(self, name: str) -> str:
        return _numpy_dtype(self._trt, self._engine, name).name

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> PlanCall:
        """The same buffer as input and output shares its memory on the GPU, so a cache is updated in place.

        Outputs of the engine that are not given (`scratch.i`) get memory of their own. Raises CascadeError when no
        profile has these shapes.
        """
        engine, device = self._engine, self._device
        context = engine.create_execution_context()
        context.set_optimization_profile_async(self._profile(inputs), device.stream)
        for name, buffer in inputs.items():
            context.set_input_shape(name, buffer.shape)
        addresses: dict[int, int] = {}  # of a buffer here -> of its memory on the GPU
        for name, buffer in [*inputs.items(), *outputs.items()]:
            here = buffer.host.ctypes.data
            if here not in addresses:
                addresses[here] = device.allocate(max(buffer.host.nbytes, 1))
            context.set_tensor_address(name, addresses[here])
        for name in (engine.get_tensor_name(index) for index in range(engine.num_io_tensors)):
            if name not in inputs and name not in outputs:
                size = int(np.prod(context.get_tensor_shape(name))) * _numpy_dtype(self._trt, engine, name).itemsize
                context.set_tensor_address(name, device.allocate(max(size, 1)))
        return PlanCall(context, device, addresses, inputs, outputs)

    def _profile(self, inputs: Mapping[str, Buffer]) -> int:
        """The profile whose open dimensions are those of `inputs`: each has one size for them."""
        engine = self._engine
        open_inputs = {name: buffer for name, buffer in inputs.items() if -1 in tuple(engine.get_tensor_shape(name))}
        for index in range(engine.num_optimization_profiles):
            best = {name: tuple(engine.get_tensor_profile_shape(name, index)[1]) for name in open_inputs}
            if all(best[name] == buffer.shape for name, buffer in open_inputs.items()):
                return index
        shapes = ", ".join(f"{name} {list(given.shape)}" for name, given in inputs.items()
                           if len(given.shape) > 1 and not name.startswith("past_"))  # fmt: skip
        raise CascadeError(
            f"{self._name} has no profile for {shapes}: name the tree in `build --tree`, and compile the bundle's "
            "engines again."
        )


class TimedCall(Protocol):
    """A bound call that can also say how long the GPU takes for it."""

    def run(self, fetch: Sequence[str] = ()) -> None: ...
    def seconds(self, repeats: int = 50) -> float: ...


class PlanCall:
    """One call bound to buffers; all its outputs come back. Raises CascadeError when TensorRT reports a failure."""

    def __init__(
        self, context: Any, device: Device, addresses: Mapping[int, int],
        inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer],
    ) -> None:  # fmt: skip
        self._context, self._device, self._addresses = context, device, addresses
        self._inputs, self._outputs = dict(inputs), dict(outputs)

    def run(self, fetch: Sequence[str] = ()) -> None:
        if missing := set(fetch) - self._outputs.keys():
            raise ValueError(f"{sorted(missing)} are not among the bound outputs")
        self._upload()
        self._execute(1)
        for buffer in self._outputs.values():
            self._device.download(self._addresses[buffer.host.ctypes.data], buffer.host)

    def seconds(self, repeats: int = 50) -> float:
        """Mean time of the call on the GPU, without the copies around it; the first few calls do not count."""
        self._upload()
        self._execute(5)
        start = time.perf_counter()
        self._execute(repeats)
        return (time.perf_counter() - start) / repeats

    def _upload(self) -> None:
        for buffer in self._inputs.values():
            self._device.upload(self._addresses[buffer.host.ctypes.data], buffer.host)

    def _execute(self, times: int) -> None:
        for _ in range(times):
            if not self._context.execute_async_v3(self._device.stream):
                raise CascadeError("TensorRT could not run the engine: see `cascade-trt doctor`.")
        self._device.wait()


def _numpy_dtype(trt: Any, engine: Any, name: str) -> np.dtype:
    try:
        return np.dtype(trt.nptype(engine.get_tensor_dtype(name)))
    except TypeError:
        raise CascadeError(
            f"{name} is bfloat16, which numpy does not have: compare an fp16 or fp32 bundle instead."
        ) from None
