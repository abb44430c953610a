"""Imports TensorRT-RTX or TensorRT, with a sentence for everything that can be wrong with it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from ...runtime.errors import CascadeError

_EXTRA = {"tensorrt-rtx": "rtx", "tensorrt": "tensorrt"}
_MODULE = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
_POLYGRAPHY_SWITCH = "POLYGRAPHY_USE_TENSORRT_RTX"
_OLDEST = {"tensorrt-rtx": (1, 7), "tensorrt": (10, 15)}  # the first with KV cache updates from ONNX


@dataclass(frozen=True)
class Flavour:
    """An imported TensorRT: its Python module and full version ("1.7.1.116")."""

    backend: str
    trt: Any
    version: str


def import_tensorrt(backend: str) -> Flavour:
    """Imports the package behind `backend` ("tensorrt-rtx" or "tensorrt") and points Polygraphy at it.

    Raises CascadeError when the package is missing, does not load, or is too old. Polygraphy decides once per
    process which of the two it serves, so a process uses one flavour.
    """
    module, extra = _MODULE[backend], _EXTRA[backend]
    wanted = "1" if backend == "tensorrt-rtx" else "0"
    if "polygraphy.config" in sys.modules and os.environ.get(_POLYGRAPHY_SWITCH, "0") != wanted:
        raise CascadeError(f"this process already uses the other TensorRT: use {backend} in a process of its own.")
    os.environ[_POLYGRAPHY_SWITCH] = wanted
    try:
        trt = importlib.import_module(module)
    except ModuleNotFoundError:
        raise CascadeError(f"{module} is not installed: run `pip install 'cascade-trt[{extra}]'`.") from None
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CascadeError(
            f"{module} is installed but does not load ({reason}): install it again with "
            f"`pip install --force-reinstall 'cascade-trt[{extra}]'` and check the CUDA libraries."
        ) from error
    version = str(getattr(trt, "__version__", "")) or "unknown"
    if not hasattr(trt, "Builder"):
        raise CascadeError(
            f"{module} is installed without its libraries: run `pip install --force-reinstall "
            f"'cascade-trt[{extra}]'`."
        )
    oldest = _OLDEST[backend]
    if version_numbers(version)[:2] < oldest:
        raise CascadeError(
            f"{module} {version} is too old for in-place KV updates: install "
            f"{oldest[0]}.{oldest[1]} or newer with `pip install --upgrade 'cascade-trt[{extra}]'`."
        )
    return Flavour(backend, trt, version)


def installed_version(backend: str) -> str | None:
    """The installed version by its package's metadata, without importing it; None when it is missing."""
    names = ("tensorrt-rtx", "tensorrt_rtx") if backend == "tensorrt-rtx" else ("tensorrt", "tensorrt-cu13")
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def version_numbers(version: str) -> tuple[int, ...]:
    """"1.7.1.116" -> (1, 7, 1, 116); stops at the first part that is not a number."""
    numbers = []
    for part in version.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def require_polygraphy() -> None:
    """Raises CascadeError when Polygraphy is missing."""
    # Only looked for: Polygraphy reads at import which TensorRT to use, so `import_tensorrt` comes first.
    if importlib.util.find_spec("polygraphy") is None:
        raise CascadeError("Polygraphy is not installed: run `pip install 'cascade-trt[rtx]'` (or [tensorrt]).")
