"""What was compiled for a bundle, when it is built again: engines and kernels that fit the new one are taken over, the
others are told by name, with the reason."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from ..runtime.backends.kernels.info import KernelInfo, kernel_problem, kernel_source
from ..runtime.backends.kernels.info import again as compile_kernels
from ..runtime.bundle import FIXED_NODES, FIXED_PAIRS, Manifest, PlanInfo
from ..runtime.plans import Plans, this_platform
from .cache import plan_damage, still_valid
from .publish import link
from .tensorrt.profiles import engine_profiles, steady_pairs

_NEEDLESS = "no tree of the new bundle needs them"


def told(lines: Iterable[str]) -> list[str]:
    """Sentences on what a bundle has no more."""
    return [f"dropped of the bundle before: {what}" for what in lines]


def take_over(stage: Path, manifest: Manifest, old: Path, before: Manifest) -> Manifest:
    """The manifest of the bundle in `stage` with the engines of `old`, whose manifest is `before`, that would come out
    the same, whatever their target, and with its kernels that are whole and of this version."""
    plans = [plan for plan in before.plans if _reason(manifest, before, plan, old) is None]
    source = kernel_source() if before.kernels else ""
    kernels = [info for info in before.kernels if kernel_problem(old, info, source) is None]
    files = [file for plan in plans for file in plan.files] + [info.file for info in kernels]
    for file in dict.fromkeys(files):
        link(old / file, stage / file)
    return replace(manifest, plans=plans, kernels=kernels)


def dropped(manifest: Manifest, old: Path, before: Manifest) -> list[str]:
    """A line for each target and reason on engines, and on kernels, of `before` without a successor in `manifest`.

    Asked while `old` is still the old bundle: a file's damage is a reason.
    """
    held = {(plan.target, plan.engine) for plan in manifest.plans}
    gone: dict[tuple[str, str], list[str]] = {}
    for plan in before.plans:
        if (plan.target, plan.engine) not in held:
            reason = _reason(manifest, before, plan, old) or "they were compiled by another version of cascade-trt"
            gone.setdefault((plan.target, reason), []).append(plan.engine)
    wanted = {target: reason for target, reason in gone if reason != _NEEDLESS}  # the last of each has the command
    lines = []
    for (target, reason), engines in gone.items():
        whole = all((target, engine) in held for engine in manifest.engines)
        needless = whole or reason != wanted.get(target)
        more = "" if needless else f": {Plans.of(old, manifest).again(target).rstrip('.')}"
        lines.append(f"the TensorRT engines for {target} of {', '.join(engines)} ({reason}{more})")
    architectures = {info.architecture for info in manifest.kernels}
    return lines + kernels_gone(old, [info for info in before.kernels if info.architecture not in architectures])


def _reason(manifest: Manifest, before: Manifest, plan: PlanInfo, old: Path) -> str | None:
    """What keeps a plan of the bundle `old` from serving the new one; None where nothing does."""
    info = manifest.engines.get(plan.engine)
    if info is None:
        return _NEEDLESS
    was = before.engines.get(plan.engine)
    read = [info.file, *info.weights]
    if was is None or [was.file, *was.weights] != read or any(before.files[f] != manifest.files[f] for f in read):
        return "their graphs or weights are others"
    if _fixed(manifest, plan) != {name: plan.options.get(name) for name in (FIXED_NODES, FIXED_PAIRS)}:
        return "the new bundle calls them with other numbers of nodes or pairs"
    if plan.profiles != engine_profiles(manifest, plan.engine, plan.options):
        return "the new bundle calls them with other shapes, those of its trees and its batch"
    if plan.platform != this_platform():
        return f"they were compiled on {plan.platform}"
    if (damage := plan_damage(old, plan)) is not None:
        return f"a file {damage}"
    return None if still_valid(manifest, plan) else "they were compiled by another version of cascade-trt"


def _fixed(manifest: Manifest, plan: PlanInfo) -> dict[str, int | None]:
    """The numbers that a plan with options like these would be compiled for now."""
    nodes = manifest.most_nodes if FIXED_NODES in plan.options else None
    pairs = max((count for count, _ in steady_pairs(manifest, plan.engine)), default=None)
    return {FIXED_NODES: nodes, FIXED_PAIRS: pairs if FIXED_PAIRS in plan.options else None}


def kernels_gone(bundle: Path, kernels: list[KernelInfo]) -> list[str]:
    """A line for each reason on kernels that the bundle has no more."""
    source, reasons = kernel_source() if kernels else "", dict[str, list[str]]()
    for info in kernels:
        other = info.source != source
        reason = "they belong to another version of cascade-trt" if other else "their file is missing or has changed"
        reasons.setdefault(reason, []).append(info.architecture)
    return [
        f"the kernels for {', '.join(names)} ({reason}: {compile_kernels(bundle)})"
        for reason, names in reasons.items()
    ]
