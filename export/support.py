"""Which backends can take a bundle, decided at export from dtype and shapes."""

from __future__ import annotations

# Head dimensions for which TensorRT and TensorRT-RTX have fused attention kernels (measured with 1.7.1).
_FUSED_HEAD_DIMS = (32, 48, 64, 80, 96, 128, 256)
_MOST_LOGITS = 3840  # that TensorRT's TopK sorts (1.7.1)
USABLE = "yes"


def backend_support(head_dim: int, precision: str, top_k: int) -> dict[str, str]:
    """For each backend "yes", or a sentence that says why it cannot take the bundle and what to do. `top_k` is how many
    logits of a node the target returns."""
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
    elif top_k > _MOST_LOGITS:
        support["tensorrt"] = support["tensorrt-rtx"] = (
            f"it sorts at most {_MOST_LOGITS} logits of a node, and this bundle keeps {top_k}: build it with "
            f"--max-top-k {_MOST_LOGITS} or less."
        )
    return support
