"""Imports TensorRT-RTX or TensorRT to compile with it: the library of the backends, with Polygraphy pointed at it."""

from __future__ import annotations

import importlib.util
import os
import sys

from ...runtime.backends.tensorrt_library import Library, import_library
from ...runtime.errors import CascadeError
from ...runtime.plans import RTX, installed_version, version_numbers

__all__ = ["Flavour", "import_tensorrt", "installed_version", "require_polygraphy", "version_numbers"]

Flavour = Library
_POLYGRAPHY_SWITCH = "POLYGRAPHY_USE_TENSORRT_RTX"


def import_tensorrt(backend: str) -> Flavour:
    """Imports the package behind `backend` ("tensorrt-rtx" or "tensorrt") and points Polygraphy at it.

    Raises CascadeError when the package is missing, does not load, or is too old. Polygraphy decides once per
    process which of the two it serves, so a process uses one flavour.
    """
    wanted = "1" if backend == RTX else "0"
    if "polygraphy.config" in sys.modules and os.environ.get(_POLYGRAPHY_SWITCH, "0") != wanted:
        raise CascadeError(f"this process already uses the other TensorRT: use {backend} in a process of its own.")
    os.environ[_POLYGRAPHY_SWITCH] = wanted
    return import_library(backend)


def require_polygraphy() -> None:
    """Raises CascadeError when Polygraphy is missing."""
    # Only looked for: Polygraphy reads at import which TensorRT to use, so `import_tensorrt` comes first.
    if importlib.util.find_spec("polygraphy") is None:
        raise CascadeError("Polygraphy is not installed: run `pip install 'cascade-trt[rtx]'` (or [tensorrt]).")
