"""What a bundle's TensorRT engines contain, read back and compared with the manifest and the graphs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ..runtime.bundle import Manifest, PlanInfo
from ..runtime.errors import CascadeError
from .tensorrt.report import LayerReport


@dataclass(frozen=True)
class PlanSummary:
    """One engine in numbers.

    `cache_copies` counts, for each profile, layers that copy a KV cache: docs/tensorrt.md says why there are any.
    """

    plan: PlanInfo
    layers: int
    inputs: int
    outputs: int
    aliases: dict[str, str]  # output -> the input whose memory it shares
    attention: int
    cache_updates: int
    cache_copies: dict[int, int]
    precisions: dict[str, int]

    @property
    def copies(self) -> str:
        """Cache copies of every profile, "8+8+0" for a prefix, a tree and plain decoding."""
        return "+".join(str(self.cache_copies.get(index, 0)) for index in range(len(self.plan.profiles)))


def read_report(bundle: Path, plan: PlanInfo) -> LayerReport:
    """The layer report that was saved with `plan`. Raises CascadeError when it is missing or damaged."""
    try:
        return LayerReport.from_json((bundle / plan.report).read_text())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CascadeError(
            f"{bundle / plan.report} cannot be read ({type(error).__name__}): "
            f"run `cascade-trt compile {bundle} --target {plan.target}`."
        ) from None


def summarise(bundle: Path, plan: PlanInfo) -> PlanSummary:
    """Raises CascadeError as `read_report` does."""
    report = read_report(bundle, plan)
    modes = Counter(tensor.mode for tensor in report.io)
    copied = Counter(layer.profile for layer, _ in [*report.cache_rewrites(), *report.cache_reformats()])
    return PlanSummary(
        plan, len(report.layers), modes["input"], modes["output"], aliases(report), len(report.attention()),
        len(report.cache_updates()), dict(copied), report.precision_mix(),
    )  # fmt: skip


def aliases(report: LayerReport) -> dict[str, str]:
    """present_x -> past_x for every cache that the engine updates in place."""
    inputs = {tensor.name for tensor in report.io if tensor.mode == "input"}
    updated = {name for _, name in report.cache_updates()}
    pairs = {name: name.replace("present_", "past_", 1) for name in sorted(updated)}
    return {output: source for output, source in pairs.items() if source in inputs}


@dataclass(frozen=True)
class TensorRow:
    """I/O tensors of one engine that differ in their number only: "past_key.0..35". `alias` names their memory."""

    name: str
    mode: str
    dtype: str
    shape: tuple[int, ...]  # -1 where profiles differ
    alias: str


def tensor_rows(report: LayerReport) -> list[TensorRow]:
    """The engine's inputs and outputs in their order, those of equal kind and successive numbers in one row."""
    shared = aliases(report)
    groups: dict[tuple[object, ...], list[str]] = {}
    seen: Counter[tuple[object, ...]] = Counter()
    for tensor in report.io:
        stem = tensor.name.rstrip("0123456789")
        kind = (stem, tensor.mode, tensor.dtype, tensor.shape, tensor.name in shared)
        run = int(tensor.name[len(stem):] or 0) - seen[kind]  # stays the same while numbers follow each other
        seen[kind] += 1
        groups.setdefault((*kind, run), []).append(tensor.name)
    found = {tensor.name: tensor for tensor in report.io}
    rows = []
    for names in groups.values():
        one = found[names[0]]
        alias = _span([shared[name] for name in names]) if names[0] in shared else ""
        rows.append(TensorRow(_span(names), one.mode, one.dtype, one.shape, alias))
    return rows


def _span(names: list[str]) -> str:
    """["past_key.0", ..., "past_key.35"] -> "past_key.0..35"."""
    last = names[-1][len(names[-1].rstrip("0123456789")):]
    return names[0] if len(names) == 1 else f"{names[0]}..{last}"


def io_problems(report: LayerReport, manifest: Manifest, engine: str) -> list[str]:
    """How the engine's I/O differs from what the manifest says of names, dtypes and shapes of its caches."""
    problems = []
    tensors = {tensor.name: tensor for tensor in report.io}
    precision = manifest.engines[engine].precision
    model, drafter = manifest.model, manifest.drafter
    if engine == "target":
        layers, heads, slots, dim = model.n_layer, model.n_kv_head, manifest.target.slots, model.head_dim
    elif drafter is not None and (tree := manifest.tree_of(engine)) is not None:
        layers, heads, slots, dim = tree.depth, drafter.n_kv_head, drafter.slots, drafter.head_dim
    else:
        return problems
    paired = aliases(report)
    for index in range(layers):
        for kind in ("key", "value"):
            for name, mode in ((f"past_{kind}.{index}", "input"), (f"present_{kind}.{index}", "output")):
                tensor = tensors.get(name)
                if tensor is None:
                    problems.append(f"{engine} has no {mode} {name}")
                elif (tensor.mode, tensor.dtype, tensor.shape[1:]) != (mode, precision, (heads, slots, dim)):
                    problems.append(f"{engine}: {name} is {tensor.mode} {tensor.dtype} {list(tensor.shape)}")
            if f"present_{kind}.{index}" not in paired:
                problems.append(f"{engine}: present_{kind}.{index} does not share the memory of past_{kind}.{index}")
    return problems
