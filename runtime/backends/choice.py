"""Which backend draws, and why: the one that was asked for, else TensorRT where the bundle has engines that fit, else
ONNX Runtime on a GPU, else on the CPU."""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import CascadeError, CascadeWarning
from ..plans import BACKENDS as TENSORRT
from ..plans import Plans
from ..schema import short
from . import BACKEND_NAMES, CUDA_PROVIDER, Backend, open_backend, refusal

AUTO = "auto"
_CPU, _CUDA = "ort-cpu", "ort-cuda"
CHOICES = (AUTO, *BACKEND_NAMES)


@dataclass(frozen=True)
class Chosen:
    """A backend, its name, and the reason for it in a few words."""

    backend: Backend
    name: str
    why: str


@dataclass(frozen=True)
class Offer:
    """What a bundle brings: `support` says for each backend "yes", or why it cannot take the bundle (the manifest's);
    `plans` are its TensorRT engines, None where nobody says."""

    support: Mapping[str, str]
    plans: Plans | None = None


def choose_backend(name: str, offer: Offer, threads: int | None = None, device: int | None = None) -> Chosen:
    """The backend for a bundle.

    `name` is a backend's, or "auto": TensorRT where the bundle has engines that fit this machine, else the GPU where
    ONNX Runtime has a CUDA provider and one can be used, else the CPU. Engines that do not fit the GPU that is here are
    warned of, with what to do. `threads` are those of an engine on the CPU, `device` is the number of a GPU among those
    that CUDA shows (None: the first). Raises CascadeError for a name that is unknown, a backend that cannot be used
    here, and for `threads` or `device` where the backend has no use for them.
    """
    if name not in CHOICES:
        raise CascadeError(f"unknown backend {short(name)}: choose one of {', '.join(CHOICES)}.")
    if device is not None and (isinstance(device, bool) or not isinstance(device, int) or device < 0):
        raise CascadeError(f"device must be the number of a GPU, 0 or more, not {short(device)}.")
    if name != AUTO:
        return Chosen(_opened(name, offer, threads, device), name, "asked for")
    if threads is not None and device is None:
        why = "threads were asked for, which belong to the CPU"
        return Chosen(_opened(_CPU, offer, threads, None), _CPU, why)
    found, problem = _of_plans(offer, threads, device)
    if found is not None:
        return found
    chosen = _of_onnx_runtime(offer, threads, device, problem)
    if problem and _has_driver():  # without one, the engines are for other machines
        warnings.warn(f"{problem}: images are drawn with {chosen.name}.", CascadeWarning, stacklevel=3)
    return chosen


def _of_plans(offer: Offer, threads: int | None, device: int | None) -> tuple[Chosen | None, str]:
    """TensorRT on the bundle's engines, or why not ("" where it has none)."""
    held = [name for name in TENSORRT if offer.plans is not None and offer.plans.has(name)]
    if held and not _has_driver():
        return None, "the bundle's TensorRT engines wait for a machine with NVIDIA's driver"
    problems = []
    for name in held:
        try:
            backend = _opened(name, offer, threads, device)
            return Chosen(backend, name, f"the bundle has engines for this GPU: {backend.identity.machine}"), ""
        except CascadeError as error:
            problems.append(str(error).rstrip("."))  # it says of itself what cannot be used
    return None, "; ".join(dict.fromkeys(problems))


def _of_onnx_runtime(offer: Offer, threads: int | None, device: int | None, problem: str) -> Chosen:
    """`problem` is what keeps TensorRT from being used, where the bundle has engines for it."""
    missing = _no_gpu(offer)
    installed = missing is None
    if missing is None:
        try:
            backend = _opened(_CUDA, offer, threads, device)
            why = f"a GPU can be used: {backend.identity.machine}"
            return Chosen(backend, _CUDA, f"{problem}; {why}" if problem else why)
        except CascadeError as error:
            missing = f"{_CUDA} cannot be used here: {str(error).rstrip('.')}"
    told = bool(problem) and missing.endswith(problem)  # by TensorRT: both stumble over the same
    why = f"{problem}; {missing}" if problem and not told else missing
    if device is not None:
        away = "leave device away to draw on the CPU"
        if "driver" not in why and not _has_driver():
            why = f"this machine has no NVIDIA driver, and {why}"
        raise CascadeError(f"device {device} was asked for, but {why}{', or' if ': ' in why else ':'} {away}.")
    backend = _opened(_CPU, offer, threads, None, f", and {why}")
    if installed and not told:  # who has installed it for a GPU does not expect the CPU
        warnings.warn(f"{missing}: images are drawn on the CPU.", CascadeWarning, stacklevel=4)
    return Chosen(backend, _CPU, why)


def _opened(name: str, offer: Offer, threads: int | None, device: int | None, besides: str = "") -> Backend:
    """Raises CascadeError where the backend cannot take the bundle, or has no use for `threads` or `device`."""
    if (problem := refusal(offer.support, name)) is not None:
        raise CascadeError(f"{name} cannot draw this bundle{besides}: {problem}")
    if name == _CPU and device is not None:
        raise CascadeError(f"{_CPU} runs on no GPU: leave device away, or take the backend {_CUDA}.")
    if name != _CPU and threads is not None:
        raise CascadeError(f"threads belong to {_CPU}, not to {name}: leave them away.")
    return open_backend(name, threads=threads, device=device, plans=offer.plans)


def _no_gpu(offer: Offer) -> str | None:
    """Why ONNX Runtime cannot take the bundle to a GPU, as far as that shows without asking the driver."""
    if (problem := refusal(offer.support, _CUDA)) is not None:
        return f"{_CUDA} cannot take this bundle: {problem}"
    try:
        import onnxruntime

        providers: Any = onnxruntime.get_available_providers()
    except (ImportError, AttributeError):  # the CPU's backend says in full what is missing
        return "ONNX Runtime is not whole"
    return None if CUDA_PROVIDER in providers else "the installed ONNX Runtime is the one for CPUs"


def _has_driver() -> bool:
    """Whether this machine has NVIDIA's driver."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True
