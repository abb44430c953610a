"""Inference backends behind one contract: who owns memory, how an engine is bound to it, how a cache is moved.

| thing | owner | rule |
|---|---|---|
| memory of a buffer or cache | the backend that made it | freed with the last reference to it |
| `Buffer.host` | the caller writes inputs, reads fetched outputs | valid for as long as the buffer |
| aliasing | by buffer | one buffer (or the same view) as input and output is updated in place |
| what a call uploads | `BoundCall.run` | every bound "in" buffer |
| what a call brings back | `BoundCall.run(fetch=...)` | the named outputs; `host` of the others may hold anything |
| how often a call computes | the backend | once or more: the second time must write what the first wrote |

`tests/backends/contract.py` is this page as tests; every backend passes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from ..errors import CascadeError
from .kernels import Kernels
from .kernels.info import KernelInfo

if TYPE_CHECKING:
    from ..plans import Plans

BACKEND_NAMES: tuple[str, ...] = ("ort-cpu", "ort-cuda", "tensorrt-rtx", "tensorrt")
CUDA_PROVIDER = "CUDAExecutionProvider"  # what ONNX Runtime calls its part for NVIDIA GPUs


def refusal(support: Mapping[str, str], backend: str) -> str | None:
    """Why a backend cannot take a bundle, in a sentence; None where it can. `support` is the manifest's `backends`: for
    each backend "yes" or that sentence, and a backend that it does not name is one that may try."""
    said = support.get(backend, "yes")
    return None if said == "yes" else said


Kind = Literal["in", "out", "device"]
"""What a buffer is for: the host writes it ("in"), the host reads it ("out"), or engines alone use it ("device")."""


class Buffer(Protocol):
    """A contiguous tensor that engines read or write. `dtype` is a string ("float16", "bfloat16", "int64", "bool")."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> str: ...

    @property
    def host(self) -> np.ndarray:
        """The numpy view: the memory itself on a CPU, memory beside it on a GPU. bfloat16 shows as uint16."""
        ...

    @property
    def address(self) -> int:
        """Where engines and kernels find it."""
        ...

    def send(self) -> None:
        """Queues what `host` holds now to where engines find it, for a buffer that kernels write, too ("device")."""
        ...

    def view(self, start: int, stop: int) -> Buffer:
        """Places start ... stop - 1 of the first axis; shares memory. Raises ValueError outside of the buffer."""
        ...

    def move(self, source: int, to: int, count: int) -> None:
        """Copies `count` places of the first axis from `source` to `to`, wherever the content is newest."""
        ...


class BoundCall(Protocol):
    """One engine bound once to buffers."""

    def run(self, fetch: Sequence[str] = ()) -> None:
        """Runs the engine; afterwards `host` of the outputs in `fetch` is theirs. Raises ValueError for a name that
        is not a bound output."""
        ...


class Engine(Protocol):
    """A loaded graph."""

    def dtype(self, name: str) -> str:
        """dtype of an input or output. Raises KeyError for a name that the graph does not have."""
        ...

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> BoundCall:
        """Binds buffers by name; outputs that nobody wants may be left out.

        Raises ValueError for a name that the graph does not have, an input that is missing, or another dtype.
        """
        ...


class Cache(Protocol):
    """Keys and values of one engine, [layers, 2, rows, heads, slots, head_dim]. It knows no lengths."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def nbytes(self) -> int: ...

    @property
    def address(self) -> int:
        """Of its one contiguous block."""
        ...

    def bindings(self, start: int, stop: int, steps: int = 1) -> tuple[Mapping[str, Buffer], Mapping[str, Buffer]]:
        """Inputs past_key.i, past_value.i and outputs present_key.i, present_value.i of rows start ... stop - 1,
        [rows, heads, slots, head_dim] each; the same memory, so updates are in place.

        A graph that updates each layer's cache in several steps has `steps` names for it.
        """
        ...

    def move(self, rows: Sequence[int], start: int, path: Sequence[int]) -> None:
        """Moves the entries of an accepted path to the front of the tree region, for all layers and `rows`.

        path holds node numbers from the root (0) on, increasing, so path[j] >= j; entry j ends in slot start + j.
        """
        ...

    def copy_rows(self, source: int, to: int, count: int, slots: int) -> None:
        """Copies the first `slots` slots of `count` rows from row `source` on to row `to` on."""
        ...

    def clear(self, start: int, stop: int) -> None:
        """Zeroes rows start ... stop - 1: a NaN in a slot that is masked would still be NaN times zero."""
        ...


@dataclass(frozen=True)
class Identity:
    """What costs depend on: the backend's name and full version, the processor or GPU, the threads of an engine."""

    backend: str
    version: str
    machine: str
    threads: int


class Backend(Protocol):
    """Loads engines and owns their memory."""

    @property
    def identity(self) -> Identity:
        """What figures that are measured with it belong to."""
        ...

    @property
    def captures(self) -> bool:
        """Whether a call's second run makes a graph of it, which is how it runs from then on."""
        ...

    def load(self, path: Path) -> Engine:
        """Raises CascadeError when the backend refuses the graph."""
        ...

    def load_merged(self, path: Path, files: Mapping[str, Path]) -> Mapping[str, Engine]:
        """The engines of a file that `export/graphs/merge.py` wrote: `files` are the graphs in it, in their order, each
        with the file that it has for itself.

        A backend loads the one file or the others, whichever holds shared weights in its memory fewer times. The
        engines behave the same either way. Raises CascadeError when the backend refuses a file that it loads, or the
        merged one holds other graphs.
        """
        ...

    def buffer(self, shape: Sequence[int], dtype: str, kind: Kind) -> Buffer:
        """A zeroed buffer."""
        ...

    def cache(self, layers: int, rows: int, heads: int, slots: int, head_dim: int, dtype: str) -> Cache:
        """A zeroed cache, committed to memory: the first image should not pay for page faults."""
        ...

    def check_slots(self, slots: int) -> None:
        """Raises CascadeError where engines draw fewer images at a time."""
        ...

    def sizes(self, slots: int) -> tuple[int, ...]:
        """For how many slots a call is bound, rising, `slots` the last: all of 1 ... slots where a shape costs
        nothing, else 1, 2, 4, ..."""
        ...

    def kernels(self, bundle: Path, compiled: Sequence[KernelInfo]) -> Kernels | None:
        """The kernels of a round, where engines compute in memory that the host does not reach; else None, and rounds
        are the host's. Warns where there should be some, and `compiled`, those in the bundle, cannot be used."""
        ...


def open_backend(
    name: str, threads: int | None = None, device: int | None = None, plans: Plans | None = None
) -> Backend:
    """The backend called `name`; its library is imported here and nowhere earlier. `threads` are those of an engine on
    the CPU, `device` is the number of a GPU (None: the first), `plans` those of the bundle for TensorRT's backends.

    Raises CascadeError for an unknown name, a library that is not installed, or plans that this machine cannot run.
    """
    if name == "ort-cpu":
        from .ort import OrtBackend

        return OrtBackend(threads)
    if name == "ort-cuda":
        from .ort_cuda import OrtCudaBackend

        return OrtCudaBackend(device or 0)
    if name in BACKEND_NAMES:
        from .tensorrt import TensorRtBackend

        if plans is None:
            raise CascadeError(f"{name} runs the engines of a bundle: name it to `Pipeline.load`.")
        return TensorRtBackend(name, plans, device or 0)
    raise CascadeError(f"unknown backend {name!r}: choose one of {', '.join(BACKEND_NAMES)}.")
