"""Judges this machine and bundles on it, in sentences.

Every verdict is one of: "usable", "rebuild" (with the command), "cannot tell" (no GPU here), "damaged", "not for here"
(the bundle is as it should be, this part of it serves other machines), and "none" (the bundle has no kernels).
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from ..runtime.backends import CUDA_PROVIDER, refusal
from ..runtime.backends.device import LEAST_CAPABILITY, LEAST_CUDA
from ..runtime.backends.kernels.info import kernel_problem, kernel_source, kernels_for
from ..runtime.backends.ort import version_problem
from ..runtime.backends.ort_cuda import LEAST_VERSION as LEAST_ON_CUDA
from ..runtime.backends.ort_cuda import NEEDS_BFLOAT16
from ..runtime.bundle import Manifest, PlanInfo, read_manifest
from ..runtime.errors import CascadeError
from ..runtime.files import check_files
from ..runtime.machine import free_memory
from ..runtime.plans import (
    EXTRAS,
    REBUILD,
    UNKNOWN,
    USABLE,
    Here,
    fit,
    installed_version,
    this_platform,
    version_numbers,
)
from .cache import plan_damage
from .gpu import Gpu, find_gpu

DAMAGED, ELSEWHERE, NONE = "damaged", "not for here", "none"
_ROOM = 1.3  # memory that ONNX Runtime takes for weights, as a share of their files


@dataclass(frozen=True)
class Machine:
    """What matters of this machine. `versions` maps "tensorrt-rtx" and "tensorrt" to installed versions; `onnxruntime`
    is that of ONNX Runtime, None where it does not say; `runtimes` are the distributions that hold it. `bindings`:
    cuda-bindings is installed."""

    platform: str
    gpu: Gpu | None
    versions: dict[str, str | None]
    providers: list[str]
    free_memory: int
    free_disk: int
    onnxruntime: str | None = None
    runtimes: tuple[str, ...] = ()
    bindings: bool = False


@dataclass(frozen=True)
class Verdict:
    """About `what` (a backend or target of a bundle): the verdict, and a sentence that explains it."""

    what: str
    verdict: str
    sentence: str


def look_around(folder: Path = Path()) -> Machine:
    """This machine; `folder` is where free disk space counts."""
    versions = {backend: installed_version(backend) for backend in ("tensorrt-rtx", "tensorrt")}
    providers, version = _onnx_runtime()
    free_disk = shutil.disk_usage(folder).free
    memory, runtimes = free_memory() or 0, onnx_runtimes()
    bindings = importlib.util.find_spec("cuda") is not None and importlib.util.find_spec("cuda.bindings") is not None
    return Machine(this_platform(), find_gpu(), versions, providers, memory, free_disk, version, runtimes, bindings)


def onnx_runtimes() -> tuple[str, ...]:
    """The installed distributions that hold the module `onnxruntime`: onnxruntime, onnxruntime-gpu, ..."""
    return tuple(sorted(set(metadata.packages_distributions().get("onnxruntime", ()))))


def _onnx_runtime() -> tuple[list[str], str | None]:
    """Its providers and its version."""
    try:
        import onnxruntime

        return list(onnxruntime.get_available_providers()), onnxruntime.__version__
    except (ImportError, AttributeError):  # an empty module is left where one of two distributions was removed
        return [], None


def machine_sentences(machine: Machine) -> list[str]:
    """What is here and what is missing."""
    gpu = machine.gpu
    sentences = [f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} cores."]
    if gpu is None:
        sentences.append("No NVIDIA GPU or driver: engines can be compiled ahead of time (rtx:sm..) but not run here.")
    else:
        capability = ".".join(map(str, gpu.compute_capability))
        memory = f"{gpu.free >> 30} of {gpu.memory >> 30} GiB free" if gpu.memory else "memory shared with the CPU"
        cuda = f" (CUDA {gpu.cuda})" if gpu.cuda else ""
        sentences.append(f"{gpu.name}, compute capability {capability}, driver {gpu.driver}{cuda}, {memory}.")
    for backend, version in machine.versions.items():
        extra = "rtx" if backend == "tensorrt-rtx" else "tensorrt"
        missing = f"{backend} is not installed (pip install 'cascade-trt[{extra}]')."
        sentences.append(f"{backend} {version} is installed." if version else missing)
    both = [version for version in machine.versions.values() if version]
    if len(both) == 2:
        sentences.append("Both TensorRTs are installed: each process uses one, and plans are never exchanged.")
    if importlib.util.find_spec("polygraphy") is not None:
        sentences.append(f"Polygraphy {metadata.version('polygraphy')} is installed.")
    else:
        sentences.append("Polygraphy is not installed: compiling needs it (pip install 'cascade-trt[rtx]').")
    providers = ", ".join(machine.providers).replace("ExecutionProvider", "")
    if (version := machine.onnxruntime) is not None:
        sentences.append(f"ONNX Runtime {version_problem(version) or f'{version} is installed'}.")
    if len(machine.runtimes) > 1:
        sentences.append(
            f"{' and '.join(machine.runtimes)} are installed together and overwrite each other's files: run `pip "
            f"uninstall {' '.join(machine.runtimes)}`, then `pip install 'cascade-trt[cpu]'`, or [cuda] for a GPU."
        )
    if gpu is not None and machine.providers and CUDA_PROVIDER not in machine.providers:
        sentences.append(
            "The installed ONNX Runtime is the one for CPUs: to draw on the GPU run `pip uninstall onnxruntime`, then "
            "`pip install 'cascade-trt[cuda]'`."
        )
    sentences.append(f"ONNX Runtime providers: {providers or 'none (pip install cascade-trt[cpu])'}.")
    sentences.append(f"{machine.free_memory / 2**30:.1f} GiB memory and {machine.free_disk >> 30} GiB disk are free.")
    return sentences


def judge_bundle(bundle: Path, machine: Machine) -> list[Verdict]:
    """A verdict for ONNX Runtime, for the kernels and for each TensorRT target of `bundle`."""
    try:
        manifest = read_manifest(bundle)
        check_files(bundle, manifest)
    except CascadeError as error:
        return [Verdict("bundle", DAMAGED, f"{error}")]
    verdicts = [_judge_ort(manifest, machine), *_judge_cuda(manifest, machine)]
    verdicts += _judge_kernels(bundle, manifest, machine)
    damage = _damage(bundle, manifest)
    targets = list(dict.fromkeys(plan.target for plan in manifest.plans))
    judged = [_judge_target(bundle, manifest, target, damage, machine) for target in targets]
    return [*verdicts, *_set_aside(judged, manifest, machine)]


def _judge_ort(manifest: Manifest, machine: Machine) -> Verdict:
    if not machine.providers:
        return Verdict("ort-cpu", REBUILD, "ONNX Runtime is not installed: run `pip install 'cascade-trt[cpu]'`.")
    if machine.onnxruntime is not None and (problem := version_problem(machine.onnxruntime)) is not None:
        return Verdict("ort-cpu", REBUILD, f"ONNX Runtime {problem}.")
    if (problem := refusal(manifest.backends, "ort-cpu")) is not None:
        return Verdict("ort-cpu", ELSEWHERE, problem)
    needed = _ROOM * sum(file.bytes for name, file in manifest.files.items() if name.endswith(".data"))
    if machine.free_memory and needed > machine.free_memory:
        sizes = f"{needed / 2**30:.1f} GiB for the weights, and {machine.free_memory / 2**30:.1f} GiB are free"
        return Verdict("ort-cpu", UNKNOWN, f"needs about {sizes}: close other programs, or build with fp16.")
    return Verdict("ort-cpu", USABLE, "runs on this CPU.")


def _judge_cuda(manifest: Manifest, machine: Machine) -> list[Verdict]:
    """Nothing where ONNX Runtime has no CUDA provider."""
    if CUDA_PROVIDER not in machine.providers:
        return []
    gpu = machine.gpu
    if (problem := refusal(manifest.backends, "ort-cuda")) is not None:
        return [Verdict("ort-cuda", ELSEWHERE, problem)]
    if machine.onnxruntime and (problem := version_problem(machine.onnxruntime, "cuda", LEAST_ON_CUDA)) is not None:
        return [Verdict("ort-cuda", REBUILD, f"ONNX Runtime {problem}.")]
    if not machine.bindings:
        return [Verdict("ort-cuda", REBUILD, "cuda-bindings is not installed: run `pip install 'cascade-trt[cuda]'`.")]
    if gpu is None:
        return [Verdict("ort-cuda", UNKNOWN, "the provider is installed, but there is no GPU here.")]
    if (problem := _too_old(gpu)) is not None:
        return [Verdict("ort-cuda", ELSEWHERE, problem)]
    if manifest.engines["target"].precision == "bf16" and gpu.compute_capability < NEEDS_BFLOAT16:
        sentence = f"{gpu.name} does not compute in bfloat16: build with --precision fp16."
        return [Verdict("ort-cuda", ELSEWHERE, sentence)]
    return [Verdict("ort-cuda", USABLE, f"runs on {gpu.name}.")]


def _too_old(gpu: Gpu) -> str | None:
    """What keeps a card, or its driver, from drawing with any backend (`runtime/backends/device.py`)."""
    if gpu.compute_capability < LEAST_CAPABILITY:
        here, least = (".".join(map(str, numbers)) for numbers in (gpu.compute_capability, LEAST_CAPABILITY))
        return f"{gpu.name} has compute capability {here}, {least} is needed (Turing or newer)."
    if gpu.cuda and version_numbers(gpu.cuda) < (LEAST_CUDA // 1000,):
        needs = f"CUDA {LEAST_CUDA // 1000}.0 is needed: install NVIDIA's driver 580 or newer."
        return f"the driver {gpu.driver} knows CUDA {gpu.cuda}, {needs}"
    return None


def _judge_kernels(bundle: Path, manifest: Manifest, machine: Machine) -> list[Verdict]:
    """What a backend will find when it loads the kernels; nothing where there is neither a GPU nor a kernel."""
    if machine.gpu is not None:
        gpu = machine.gpu
        found = kernels_for(bundle, manifest.kernels, gpu.compute_capability)
        if found.code is not None and (problem := _too_old(gpu)) is not None:
            return [Verdict("kernels", ELSEWHERE, problem)]
        if found.code is not None:
            return [Verdict("kernels", USABLE, f"those for {found.architecture} run on {gpu.name}.")]
        verdict = ELSEWHERE if gpu.compute_capability < LEAST_CAPABILITY else REBUILD if manifest.kernels else NONE
        return [Verdict("kernels", verdict, found.why)]
    source = kernel_source()
    for info in manifest.kernels:
        if (problem := kernel_problem(bundle, info, source)) is not None:
            return [Verdict("kernels", REBUILD, problem)]
    held = ", ".join(info.architecture for info in manifest.kernels)
    sentence = f"those for {held} are whole, but there is no GPU here to tell whether one of them fits."
    return [Verdict("kernels", UNKNOWN, sentence)] if held else []


def _damage(bundle: Path, manifest: Manifest) -> dict[str, str]:
    """What is wrong with plan files, by file; targets that share a plan have it read once."""
    files = {plan.file: plan for plan in manifest.plans}
    found = {file: plan_damage(bundle, plan, thorough=True) for file, plan in files.items()}
    return {file: damage for file, damage in found.items() if damage}


def _judge_target(
    bundle: Path, manifest: Manifest, target: str, damage: Mapping[str, str], machine: Machine
) -> Verdict:
    again = f"run `cascade-trt compile {bundle} --target {target}`."
    plans = [plan for plan in manifest.plans if plan.target == target]
    missing = [engine for engine in manifest.engines if engine not in {plan.engine for plan in plans}]
    if missing:
        return Verdict(target, REBUILD, f"lacks the engine {missing[0]}: {again}")
    for plan in plans:
        if plan.file in damage:
            return Verdict(target, DAMAGED, f"{plan.file} {damage[plan.file]}: {again}")
    return judge_plan(plans[0], machine, again)


def _set_aside(verdicts: list[Verdict], manifest: Manifest, machine: Machine) -> list[Verdict]:
    """Targets for other GPUs need no rebuilding where one for this GPU is usable."""
    if machine.gpu is None or not any(verdict.verdict == USABLE for verdict in verdicts):
        return verdicts
    here = ".".join(map(str, machine.gpu.compute_capability))
    other = {plan.target: plan.compute_capability for plan in manifest.plans if plan.compute_capability != here}
    return [
        Verdict(v.what, ELSEWHERE, f"for GPUs of compute capability {other[v.what]}, this one has {here}.")
        if v.verdict == REBUILD and v.what in other else v
        for v in verdicts
    ]  # fmt: skip


def judge_plan(plan: PlanInfo, machine: Machine, again: str) -> Verdict:
    """Whether an unharmed plan runs on `machine`; `again` says how to build it anew."""
    gpu = machine.gpu
    here = Here(machine.platform, machine.versions, None if gpu is None else (gpu.name, gpu.compute_capability))
    found = fit(plan, here, again)
    if found.verdict == USABLE and gpu is not None and (problem := _too_old(gpu)) is not None:
        return Verdict(plan.target, ELSEWHERE, problem)
    if found.verdict == USABLE and not machine.bindings:
        sentence = f"drawing with it needs cuda-bindings: run `pip install 'cascade-trt[{EXTRAS[plan.backend]}]'`"
        return Verdict(plan.target, REBUILD, sentence)
    return Verdict(plan.target, found.verdict, found.sentence)
