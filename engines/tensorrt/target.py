"""What an engine is compiled for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...runtime.errors import CascadeError

# TensorRT-RTX compiles ahead of time for these; an engine runs on the GPUs it names.
RTX_ARCHITECTURES = {
    "sm86": "Ampere (RTX 30)",
    "sm89": "Ada (RTX 40)",
    "sm120": "Blackwell (RTX 50)",
    "sm121": "Blackwell (DGX Spark)",
}
# GPUs that are asked for as if they were among them.
_DATA_CENTER = {"sm80": "A100", "sm90": "H100", "sm100": "B200", "sm103": "B300"}
_TURING = "sm75"
NAMES = ("tensorrt", *(f"rtx:{sm}" for sm in RTX_ARCHITECTURES))
# Head dimensions with a fused attention kernel in fp16 and bf16 (measured with TensorRT-RTX 1.7.1).
FUSED_HEAD_DIMS = (32, 48, 64, 80, 96, 128, 256)


@dataclass(frozen=True)
class Target:
    """`backend` is the package's flavour, `architecture` "sm89" or, for this machine's GPU, None."""

    backend: str  # "tensorrt-rtx" or "tensorrt"
    architecture: str | None

    @property
    def name(self) -> str:
        return f"rtx:{self.architecture}" if self.backend == "tensorrt-rtx" else "tensorrt"

    @property
    def compute_capability(self) -> tuple[int, int] | None:
        """(8, 9) for sm89."""
        if self.architecture is None:
            return None
        digits = self.architecture.removeprefix("sm")
        return int(digits[:-1]), int(digits[-1])


def joint_name(targets: Sequence[Target]) -> str:
    """"rtx:sm86+sm89" for targets of one plan."""
    return targets[0].name + "".join(f"+{target.architecture}" for target in targets[1:])


def plan_folder(targets: Sequence[Target]) -> str:
    """Where the bundle keeps the plans that serve `targets`."""
    names = [target.architecture or "local" for target in targets]
    return f"{targets[0].backend}/{'-'.join(names)}"


def architectures_in(folder: str) -> list[str]:
    """Of a folder that `plan_folder` has named: ["8.6", "8.9"] for "tensorrt-rtx/sm86-sm89"; none for "local"."""
    names = folder.rpartition("/")[2].split("-")
    served = [Target("tensorrt-rtx", name).compute_capability for name in names if name in RTX_ARCHITECTURES]
    return [f"{major}.{minor}" for major, minor in filter(None, served)]


def sharing(targets: Sequence[Target]) -> list[tuple[Target, ...]]:
    """The targets in groups that one plan can serve, the oldest GPU of each first.

    TensorRT-RTX compiles one plan for several GPUs, with one copy of the weights and the layers that suit the
    oldest.
    """
    groups: dict[object, list[Target]] = {}
    for target in sorted(targets, key=lambda target: target.compute_capability or (0, 0)):
        groups.setdefault(target.backend, []).append(target)
    return [tuple(group) for group in groups.values()]


def parse_target(text: str) -> Target:
    """The target called `text`. Raises CascadeError for an unknown name, or a GPU that TensorRT-RTX cannot serve."""
    if text == "tensorrt":
        return Target("tensorrt", None)
    kind, _, architecture = text.partition(":")
    if kind == "rtx" and architecture in RTX_ARCHITECTURES:
        return Target("tensorrt-rtx", architecture)
    if kind == "rtx" and architecture in _DATA_CENTER:
        raise CascadeError(
            f"TensorRT-RTX does not serve data-center GPUs such as {_DATA_CENTER[architecture]} ({text}): use "
            "--target tensorrt on that GPU."
        )
    if kind == "rtx" and architecture == _TURING:
        raise CascadeError(
            f"TensorRT-RTX has no fp32 matrix products for Turing ({text}), which the graphs need: use ONNX Runtime "
            "with CUDA, or --target tensorrt on that GPU."
        )
    raise CascadeError(f"unknown target {text!r}: choose one of {', '.join(NAMES)}.")


def attention_sentence(head_dim: int) -> str | None:
    """Why attention of this head dimension cannot be compiled, or None."""
    if head_dim in FUSED_HEAD_DIMS:
        return None
    return (
        f"TensorRT has no attention kernel for head_dim {head_dim} (fused ones exist for "
        f"{', '.join(map(str, FUSED_HEAD_DIMS))}): use ONNX Runtime for this model."
    )


def check_head_dims(head_dims: Sequence[int]) -> None:
    """Raises CascadeError, before anything is compiled, when no target can take a head dimension."""
    for head_dim in head_dims:
        sentence = attention_sentence(head_dim)
        if sentence:
            raise CascadeError(sentence)
