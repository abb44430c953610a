"""cascade-trt: speculative decoding of autoregressive image models on exported engines.

from cascade_trt import DrawOptions, Pipeline, Request
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .runtime.batch import Batch
    from .runtime.errors import CascadeError, CascadeWarning
    from .runtime.job import CancelledError, Job, TimedOutError
    from .runtime.options import DrawOptions
    from .runtime.output import Interrupted, Output, UnfinishedError
    from .runtime.pipeline import Pipeline
    from .runtime.request import Request

__version__ = "0.1.0"
__all__ = [
    "Batch",
    "CancelledError",
    "CascadeError",
    "CascadeWarning",
    "DrawOptions",
    "Interrupted",
    "Job",
    "Output",
    "Pipeline",
    "Request",
    "TimedOutError",
    "UnfinishedError",
    "__version__",
]

_HOMES = {
    "batch": ("Batch",),
    "errors": ("CascadeError", "CascadeWarning"),
    "job": ("CancelledError", "Job", "TimedOutError"),
    "options": ("DrawOptions",),
    "output": ("Interrupted", "Output", "UnfinishedError"),
    "pipeline": ("Pipeline",),
    "request": ("Request",),
}


def __getattr__(name: str) -> object:
    """Loads the runtime on first use, so that importing the package costs nothing."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f".runtime.{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, and nothing that lies beside them."""
    return sorted(__all__)
