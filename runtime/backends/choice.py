"""Which backend draws, and why: the one that was asked for, else ONNX Runtime on a GPU, else on the CPU."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import CascadeError, CascadeWarning
from ..schema import short
from . import BACKEND_NAMES, CUDA_PROVIDER, Backend, open_backend

AUTO = "auto"
_CPU, _CUDA = "ort-cpu", "ort-cuda"
CHOICES = (AUTO, *BACKEND_NAMES)


@dataclass(frozen=True)
class Chosen:
    """A backend, its name, and the reason for it in a few words."""

    backend: Backend
    name: str
    why: str


def choose_backend(
    name: str, support: Mapping[str, str], threads: int | None = None, device: int | None = None
) -> Chosen:
    """The backend for a bundle; `support` says for each one "yes", or why it cannot take the bundle (the manifest's).

    `name` is a backend's, or "auto": the GPU where ONNX Runtime has a CUDA provider and one can be used, else the CPU.
    `threads` are those of an engine on the CPU, `device` is the number of a GPU among those that CUDA shows (None: the
    first). Raises CascadeError for a name that is unknown, a backend that cannot be used here, and for `threads` or
    `device` where the backend has no use for them.
    """
    if name not in CHOICES:
        raise CascadeError(f"unknown backend {short(name)}: choose one of {', '.join(CHOICES)}.")
    if device is not None and (isinstance(device, bool) or not isinstance(device, int) or device < 0):
        raise CascadeError(f"device must be the number of a GPU, 0 or more, not {short(device)}.")
    if name != AUTO:
        return Chosen(_opened(name, support, threads, device), name, "asked for")
    if threads is not None and device is None:
        why = "threads were asked for, which belong to the CPU"
        return Chosen(_opened(_CPU, support, threads, None), _CPU, why)
    missing = _no_gpu(support)
    installed = missing is None
    if missing is None:
        try:
            backend = _opened(_CUDA, support, threads, device)
            return Chosen(backend, _CUDA, f"a GPU can be used: {backend.identity.machine}")
        except CascadeError as error:
            missing = f"{_CUDA} cannot be used here: {str(error).rstrip('.')}"
    if device is not None:
        raise CascadeError(f"device {device} was asked for, but {missing}.")
    backend = _opened(_CPU, support, threads, None, f", and {missing}")
    if installed:  # who has installed it for a GPU does not expect the CPU
        warnings.warn(f"{missing}: images are drawn on the CPU.", CascadeWarning, stacklevel=3)
    return Chosen(backend, _CPU, missing)


def _opened(
    name: str, support: Mapping[str, str], threads: int | None, device: int | None, besides: str = ""
) -> Backend:
    """Raises CascadeError where the backend cannot take the bundle, or has no use for `threads` or `device`."""
    if (problem := support.get(name, "yes")) != "yes":
        raise CascadeError(f"{name} cannot draw this bundle{besides}: {problem}")
    if name == _CPU and device is not None:
        raise CascadeError(f"{_CPU} runs on no GPU: leave device away, or take the backend {_CUDA}.")
    if name != _CPU and threads is not None:
        raise CascadeError(f"threads belong to {_CPU}, not to {name}: leave them away.")
    return open_backend(name, threads=threads, device=device)


def _no_gpu(support: Mapping[str, str]) -> str | None:
    """Why ONNX Runtime cannot take the bundle to a GPU, as far as that shows without asking the driver."""
    if (problem := support.get(_CUDA, "yes")) != "yes":
        return f"{_CUDA} cannot take this bundle: {problem}"
    try:
        import onnxruntime

        providers: Any = onnxruntime.get_available_providers()
    except (ImportError, AttributeError):  # the CPU's backend says in full what is missing
        return "ONNX Runtime is not whole"
    return None if CUDA_PROVIDER in providers else "the installed ONNX Runtime is the one for CPUs"
