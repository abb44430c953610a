"""Inference backends: the one place that knows ONNX Runtime or TensorRT."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from ..errors import CascadeError

BACKEND_NAMES: tuple[str, ...] = ("ort-cpu",)


class BoundCall(Protocol):
    """One engine bound once to fixed buffers; running it reads and writes them in place."""

    def run(self) -> None: ...


class Engine(Protocol):
    """A loaded graph."""

    def bind(self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> BoundCall:
        """Binds buffers by name. The same array as input and output is updated in place."""
        ...

    def input_dtype(self, name: str) -> np.dtype:
        """dtype of an input."""
        ...


class Backend(Protocol):
    """Loads engines."""

    def load(self, path: Path) -> Engine: ...


def open_backend(name: str, threads: int | None = None) -> Backend:
    """The backend called `name`; its library is imported here and nowhere earlier.

    Raises CascadeError for an unknown name or a library that is not installed.
    """
    if name == "ort-cpu":
        from .ort import OrtBackend

        return OrtBackend(threads)
    raise CascadeError(f"unknown backend {name!r}: choose one of {', '.join(BACKEND_NAMES)}.")
