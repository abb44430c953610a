"""One graph to one plan, through Polygraphy's loaders."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...runtime.bundle import FIXED_NODES, FIXED_PAIRS
from ...runtime.errors import CascadeError
from .attention import AttentionForm
from .grouping import double_query_heads, nodes_as_query_heads
from .loader import Flavour
from .profiles import Dims
from .report import LayerReport, parse_log
from .target import Target, joint_name


@dataclass(frozen=True)
class Plan:
    """A compiled engine: its bytes, TensorRT's layer report, and how it was built."""

    data: Any  # a buffer: trt.IHostMemory
    report: LayerReport
    network: dict[str, int]  # layers of the parsed network that matter here, by type
    seconds: float


def builder_options(form: AttentionForm, fixed: str, size: int) -> dict[str, Any]:
    """Every option that changes the plan: part of the cache key and of the manifest.

    `fixed` (FIXED_NODES or FIXED_PAIRS) is there where every call of the engine must have `size` of them.
    """
    options = {"profiling_verbosity": "detailed", "strongly_typed": True, "tf32": False, "attention": form.value,
               "user_allocation": True}  # fmt: skip
    return options | {fixed: size} if form is AttentionForm.NODES else options


def build_plan(
    flavour: Flavour, onnx: Path, precision: str, targets: Sequence[Target], profiles: list[Dims],
    options: Mapping[str, Any],
) -> Plan:  # fmt: skip
    """Compiles `onnx` into one plan for all `targets` (more than one for TensorRT-RTX only).

    `options` are those of `builder_options`. Precision is in the ONNX file; fp32 attention is allowed to decompose,
    because only half precisions have fused kernels. Raises CascadeError with TensorRT's own reason when it refuses.
    """
    from polygraphy.backend.trt import EngineBytesFromNetwork, SetDecomposableAttentions
    from polygraphy.exception import PolygraphyException
    from polygraphy.logger import G_LOGGER

    G_LOGGER.module_severity = G_LOGGER.CRITICAL  # its reports go to our log instead
    start = time.perf_counter()
    log = _listen(flavour)
    builder, network, parser = _parse(flavour, log, onnx)
    _rewrite_attention(flavour.trt, network, options)
    parsed: Any = (builder, network, parser)
    if precision == "fp32":
        parsed = SetDecomposableAttentions(parsed)
    config = _config(flavour, targets, [_profile(network, dims) for dims in profiles])
    try:
        data = EngineBytesFromNetwork(parsed, config=config)()
    except PolygraphyException:
        raise CascadeError(refusal(onnx.name, targets, precision, log.errors)) from None
    kinds = [str(network.get_layer(i).type).rpartition(".")[2] for i in range(network.num_layers)]
    wanted = ("KV_CACHE_UPDATE", "ATTENTION_INPUT", "ATTENTION_OUTPUT")
    counts = {kind: kinds.count(kind) for kind in wanted if kind in kinds}
    return Plan(data, parse_log(log.report), counts, time.perf_counter() - start)


def _rewrite_attention(trt: Any, network: Any, options: Mapping[str, Any]) -> None:
    form = AttentionForm(options["attention"])
    if form is AttentionForm.DOUBLED:
        double_query_heads(trt, network)
    elif form is AttentionForm.NODES:
        for fixed, dimension in ((FIXED_NODES, "N"), (FIXED_PAIRS, "M")):
            if fixed in options:
                nodes_as_query_heads(trt, network, dimension, options[fixed])


def _listen(flavour: Flavour) -> Any:
    """A TensorRT logger that keeps errors and the layer report, and drops the rest."""
    trt = flavour.trt

    class Listener(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.report: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(msg)
            elif "LayerType: " in msg or "IOMode: " in msg:
                self.report.append(msg)

    return Listener()


def _parse(flavour: Flavour, log: Any, onnx: Path) -> tuple[Any, Any, Any]:
    """(builder, network, parser), the form in which Polygraphy's loaders take a network.

    Polygraphy's own NetworkFromOnnxPath would use its global logger, which forgets the layer report.
    """
    trt = flavour.trt
    builder = trt.Builder(log)
    flags = 0
    if hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED") and flavour.backend == "tensorrt":
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)  # 11.x does this by itself
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx)):
        first = parser.get_error(0)
        reason = first.desc().strip().splitlines()[-1] if first.desc().strip() else "no reason given"
        raise CascadeError(
            f"TensorRT cannot read {onnx.name} (node {first.node_name() or '?'}: {reason}): build the bundle again, "
            "and use ONNX Runtime if it stays so."
        )
    return builder, network, parser


def _profile(network: Any, dims: Dims) -> Any:
    """A Polygraphy profile in which every open dimension has the one size that its name stands for."""
    from polygraphy.backend.trt import Profile

    profile = Profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = [
            dims[tensor.get_dimension_name(axis)] if size < 0 else size for axis, size in enumerate(tensor.shape)
        ]
        if -1 in tuple(tensor.shape):
            profile.add(tensor.name, min=shape, opt=shape, max=shape)
    return profile


def _config(flavour: Flavour, targets: Sequence[Target], profiles: list[Any]) -> Any:
    # No timing cache: TensorRT-RTX would ask for a GPU and gain nothing.
    verbosity = flavour.trt.ProfilingVerbosity.DETAILED
    common: dict[str, Any] = {"profiles": profiles, "profiling_verbosity": verbosity}
    if flavour.backend == "tensorrt-rtx":
        from polygraphy.backend.tensorrt_rtx import CreateConfigRTX
        from polygraphy.backend.trt import PostprocessConfig

        rtx = CreateConfigRTX(compute_capabilities=[t.compute_capability for t in targets], **common)
        # Without it TensorRT-RTX allocates in the middle of a call, and no CUDA graph can be made of that.
        flag = flavour.trt.BuilderFlag.REQUIRE_USER_ALLOCATION
        return PostprocessConfig(rtx, func=lambda builder, network, config: config.set_flag(flag))  # noqa: ARG005
    from polygraphy.backend.trt import CreateConfig

    return CreateConfig(**common)


def refusal(graph: str, targets: Sequence[Target], precision: str, errors: list[str]) -> str:
    """One sentence from TensorRT's error messages."""
    text, name = "\n".join(errors), joint_name(targets)
    if "Attention operation was not supported by a dedicated kernel" in text:
        return (
            f"{name} has no attention kernel for the head dimension and dtype of {graph} ({precision}): "
            "build with --precision fp16, or use ONNX Runtime for this model."
        )
    if "FP32 GEMM is not supported" in text:
        return (
            f"{name} (Turing) has no fp32 matrix products in TensorRT-RTX, which {graph} needs for the cosines of its "
            "states: use ONNX Runtime with CUDA, or TensorRT, on this GPU."
        )
    if "bf16" in text.lower() and targets[0].architecture == "sm75":
        return f"{name} has no bfloat16 kernels: build the bundle with --precision fp16 for it."
    if "out of memory" in text.lower() or "OutOfMemory" in text:
        return f"memory ran out while {graph} was compiled for {name}: free some, or build on a larger machine."
    reason = next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")
    return f"{name} cannot compile {graph} in {precision} ({reason[:200]}): use ONNX Runtime for this model."
