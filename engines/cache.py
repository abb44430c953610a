"""When a compiled engine may be used again: its key covers everything that went into it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ..runtime.bundle import MANIFEST, Manifest, PlanInfo
from ..runtime.errors import CascadeError
from ..runtime.plans import this_platform
from .tensorrt.header import plan_problem, rtx_version
from .tensorrt.profiles import engine_profiles
from .tensorrt.target import Target, architectures_in, parse_target

_LAYOUT = 1  # raised when plans of an older cascade-trt must not be used again
_HASHED_ALWAYS = 256 << 20  # bytes; larger plans are hashed when they are younger than the manifest


def plan_key(
    manifest: Manifest, engine: str, target: Target, version: str, architecture: str, options: dict[str, Any]
) -> str:
    """Hex digest over graph and weights (by their hashes), precision, backend and its full version, GPU (or GPUs,
    "8.6+8.9", of one plan), platform, profiles and builder options. Trees are in it as far as they decide profiles."""
    info = manifest.engines[engine]
    parts = {
        "layout": _LAYOUT,
        "files": {name: manifest.files[name].sha256 for name in [info.file, *info.weights]},
        "precision": info.precision,
        "backend": target.backend,
        "version": version,
        "architecture": architecture,
        "platform": this_platform(),
        "profiles": engine_profiles(manifest, engine, options),
        "options": options,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def reusable(folder: Path, manifest: Manifest, engine: str, target: Target, key: str) -> PlanInfo | None:
    """The plan of an earlier build with the same key whose file is unharmed, or None."""
    for plan in manifest.plans:
        if plan.engine == engine and plan.target == target.name and plan.key == key:
            return plan if plan_damage(folder, plan, _worth_hashing(folder, plan)) is None else None
    return None


def still_valid(manifest: Manifest, plan: PlanInfo) -> bool:
    """Whether `plan` is what its graph, which `manifest` has, would be compiled into again."""
    # One plan may have been compiled for several GPUs, of which some have others by now: its folder names them all.
    capabilities = architectures_in(plan.file.rpartition("/")[0]) or [plan.compute_capability]
    try:
        target = parse_target(plan.target)
    except CascadeError:  # of a cascade-trt that knows more GPUs
        return False
    key = plan_key(manifest, plan.engine, target, plan.backend_version, "+".join(capabilities), plan.options)
    return key == plan.key


def _worth_hashing(folder: Path, plan: PlanInfo) -> bool:
    """A large plan that nobody touched since the manifest was written is not read again: a build that has nothing
    to do takes no time."""
    path, manifest = folder / plan.file, folder / MANIFEST
    if plan.bytes <= _HASHED_ALWAYS or not path.is_file() or not manifest.is_file():
        return True
    return path.stat().st_mtime_ns > manifest.stat().st_mtime_ns


def plan_damage(folder: Path, plan: PlanInfo, thorough: bool = False) -> str | None:
    """What is wrong with a plan's file ("is missing", ...), or None. `thorough` compares its hash as well."""
    path = folder / plan.file
    if not path.is_file() or not (folder / plan.report).is_file():
        return "is missing"
    if path.stat().st_size != plan.bytes:
        return f"has {path.stat().st_size} bytes instead of {plan.bytes}"
    problem = plan_problem(path)
    if problem:
        return problem
    written = rtx_version(path)
    if written is not None and written != plan.backend_version:
        return f"says TensorRT-RTX {written} and the manifest {plan.backend_version}"
    if thorough:
        with open(path, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != plan.sha256:
                return "has changed since it was built"
    return None
