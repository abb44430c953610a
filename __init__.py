"""cascade-trt: speculative decoding of autoregressive image models on exported engines.

from cascade_trt import Pipeline
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .runtime.errors import CascadeError
    from .runtime.pipeline import Output, Pipeline

__version__ = "0.1.0"
__all__ = ["CascadeError", "Output", "Pipeline", "__version__"]


def __getattr__(name: str) -> object:
    """Loads the runtime on first use, so that importing the package costs nothing."""
    if name in ("Pipeline", "Output"):
        from .runtime import pipeline

        return getattr(pipeline, name)
    if name == "CascadeError":
        from .runtime.errors import CascadeError

        return CascadeError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
