"""What CUDA's errors mean, in a sentence each."""

from __future__ import annotations

import os

CPU_INSTEAD = "or draw with the backend ort-cpu"
DRIVER = f"install NVIDIA's driver 580 or newer, {CPU_INSTEAD}"
_SENTENCES = {
    "NO_DEVICE": f"CUDA shows no GPU{{visible}}: give it one, {CPU_INSTEAD}",
    "SYSTEM_DRIVER_MISMATCH": "the NVIDIA driver's parts are of different versions: restart this machine",
    "COMPAT_NOT_SUPPORTED_ON_DEVICE": f"the NVIDIA driver is too old for this CUDA: {DRIVER}",
    "INSUFFICIENT_DRIVER": f"the NVIDIA driver is too old for this CUDA: {DRIVER}",
    "STUB_LIBRARY": f"CUDA's stub library was found in the place of the NVIDIA driver: {DRIVER}",
    "DEVICE_UNAVAILABLE": "another process has this GPU for itself: end that process, or take another GPU",
    "NO_BINARY_FOR_GPU": "this GPU cannot run these kernels: compile them for it",
}
_LOST = (  # after any of these nothing works any more in this process
    "ILLEGAL_ADDRESS", "LAUNCH_TIMEOUT", "LAUNCH_FAILED", "ASSERT", "HARDWARE_STACK_ERROR", "ILLEGAL_INSTRUCTION",
    "MISALIGNED_ADDRESS", "INVALID_ADDRESS_SPACE", "INVALID_PC", "ECC_UNCORRECTABLE", "CONTEXT_IS_DESTROYED",
    "CONTAINED", "MPS_CLIENT_TERMINATED", "EXTERNAL_DEVICE", "UNKNOWN",
)  # fmt: skip


def sentence(name: str) -> str:
    """About an error that CUDA calls CUDA_ERROR_<name>."""
    if name in _SENTENCES:
        return f"{_SENTENCES[name].format(visible=visible())}."
    if name == "OUT_OF_MEMORY":
        return (
            "the GPU has no memory left: draw fewer images at a time, build the bundle with a smaller --batch, or end "
            "other programs on the GPU."
        )
    if name in _LOST:
        return f"the GPU has stopped working for this process ({name}): start again, and see `nvidia-smi` if it recurs."
    return f"CUDA refuses a call ({name}): start again, and see `cascade-trt doctor` if it recurs."


def visible() -> str:
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "" if chosen is None else f" (CUDA_VISIBLE_DEVICES is {chosen!r})"


def gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
