"""The kernels of a round on a GPU, as CUDA C++ (*.cu, *.h), and the layout of the arrays that they work on.

docs/kernels.md says what each reads and writes. `engines/kernels.py` compiles them, `on_cuda.py` launches them,
`runtime/device_rounds.py` makes rounds of them.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from .. import Buffer


class Arrival(Protocol):
    """Content of a buffer on its way to the host."""

    def wait(self) -> np.ndarray:
        """What the buffer held when it was asked for, in its shape."""
        ...


class Kernels(Protocol):
    """Kernels that were compiled for this device; they and the engines of a round take turns on one stream."""

    def launch(self, name: str, grid: tuple[int, int, int], threads: int, *arguments: ctypes.Structure) -> None:
        """Queues a kernel, which gets `arguments` by value, on `grid` blocks of `threads` threads."""
        ...

    def bring(self, buffer: Buffer) -> Arrival:
        """Queues the way of a buffer's content to the host, behind what was queued for that buffer so far."""
        ...
