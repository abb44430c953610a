"""Which backends can take a bundle, decided at export from dtype and shapes."""

from __future__ import annotations

# Head dimensions for which TensorRT and TensorRT-RTX have fused attention kernels (measured with 1.7.1).
_FUSED_HEAD_DIMS = (32, 48, 64, 80, 96, 128, 256)
USABLE = "yes"


def backend_support(head_dim: int, precision: str) -> dict[str, str]:
    """For each backend "yes", or a sentence that says why it cannot take the bundle and what to do."""
    support = {"ort-cpu": USABLE, "ort-cuda": USABLE, "tensorrt": USABLE, "tensorrt-rtx": USABLE}
    if precision == "bf16":
        support["ort-cpu"] = (
            "ONNX Runtime has no bfloat16 kernels for the CPU: build with --precision fp32 or fp16 for it."
        )
    if head_dim not in _FUSED_HEAD_DIMS:
        sentence = (
            f"no attention kernel for head_dim {head_dim} (fused ones exist for "
            f"{', '.join(map(str, _FUSED_HEAD_DIMS))}): use ONNX Runtime for this model."
        )
        support["tensorrt"] = support["tensorrt-rtx"] = sentence
    return support
