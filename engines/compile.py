"""Adds TensorRT engines to a bundle: what is missing is compiled, the new bundle takes the old one's place."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..runtime.bundle import MANIFEST, Manifest, PlanInfo, read_manifest
from ..runtime.errors import CascadeError
from .cache import plan_key, reusable, this_platform
from .gpu import find_gpu
from .publish import linked_copy, staged_bundle
from .script import SCRIPT, build_script
from .tensorrt.build import BUILDER_OPTIONS
from .tensorrt.loader import installed_version
from .tensorrt.target import Target, check_target

Progress = Callable[[str, int, int], None]  # what is being done, engines built, engines in all


@dataclass(frozen=True)
class Added:
    """What `add_plans` did: the bundle's manifest, engines compiled and engines that were good already."""

    manifest: Manifest
    built: int
    kept: int


def add_plans(bundle: Path, targets: list[Target], progress: Progress) -> Added:
    """Compiles every graph of `bundle` for `targets` and publishes the bundle with the new engines.

    Engines whose key is unchanged are kept; when all are, nothing is written. Raises CascadeError when a target
    cannot take the bundle, TensorRT is missing or refuses, or there is no room; the bundle is as before then.
    """
    manifest = read_manifest(bundle)
    for target in targets:
        check_target(target, manifest.engines["target"].precision, head_dims(manifest))
    work = [job for target in targets for job in _plan_work(bundle, manifest, target)]
    missing = [job for job in work if job.found is None]
    if not missing:
        return Added(manifest, 0, len(work))
    with staged_bundle(bundle) as stage:
        manifest = read_manifest(bundle)  # once more: another build may have ended before the lock was ours
        linked_copy(bundle, stage)
        made: list[PlanInfo] = []
        for target in targets:
            jobs = [job for job in missing if job.target == target]
            if jobs:
                done = len(made)
                made += _build(stage, manifest, target, jobs, lambda name, n=done: progress(name, n, len(missing)))
        replaced = {(plan.target, plan.engine) for plan in made}
        kept = [p for p in manifest.plans if (p.target, p.engine) not in replaced and p.engine in manifest.engines]
        manifest = replace(manifest, plans=[*kept, *made])
        write_new(stage / MANIFEST, manifest.to_json())
    return Added(manifest, len(made), len(work) - len(made))


def head_dims(manifest: Manifest) -> tuple[int, ...]:
    """Head dimensions of every attention in the bundle's cached engines."""
    dims = [manifest.model.head_dim]
    if manifest.drafter is not None:
        dims.append(manifest.drafter.head_dim)
    return tuple(dims)


@dataclass(frozen=True)
class Work:
    """One engine for one target, and the plan of an earlier build where there is one."""

    engine: str
    target: Target
    key: str
    version: str
    architecture: str
    found: PlanInfo | None


def _plan_work(bundle: Path, manifest: Manifest, target: Target) -> list[Work]:
    """Raises CascadeError when the package is missing, or the target needs a GPU and there is none."""
    version = installed_version(target.backend)
    if version is None:
        extra = "rtx" if target.backend == "tensorrt-rtx" else "tensorrt"
        raise CascadeError(
            f"the package {target.backend} is not installed: run `pip install 'cascade-trt[{extra}]'`."
            + _carry(bundle, target)
        )
    capability = target.compute_capability
    if capability is None:
        gpu = find_gpu()
        if gpu is None:
            raise CascadeError(
                "target tensorrt compiles for the GPU of the machine it runs on, and there is none here: "
                "use --target rtx:sm89 (any machine)." + _carry(bundle, target)
            )
        capability = gpu.compute_capability
    architecture = f"{capability[0]}.{capability[1]}"
    work = []
    for engine in manifest.engines:
        key = plan_key(manifest, engine, target, version, architecture, BUILDER_OPTIONS)
        found = reusable(bundle, manifest, engine, target, key)
        work.append(Work(engine, target, key, version, architecture, found))
    return work


def _carry(bundle: Path, target: Target) -> str:
    """Leaves a build script in the bundle for the machine that will run it; " Or ..." for the sentence."""
    if target.backend != "tensorrt":
        return ""
    try:
        script = bundle / SCRIPT
        write_new(script, build_script(read_manifest(bundle)))
        script.chmod(0o755)
    except OSError:
        return ""
    return f" Or carry the bundle to the machine that will run it and start {script} there."


def write_new(path: Path, text: str) -> None:
    """Writes a file anew: never through a hard link that the published bundle shares."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    os.replace(part, path)


def _build(
    stage: Path, manifest: Manifest, target: Target, jobs: list[Work], started: Callable[[str], None]
) -> list[PlanInfo]:
    folder = stage / target.folder
    folder.mkdir(parents=True, exist_ok=True)
    request = {"target": target.name, "jobs": []}
    by_engine = {job.engine: job for job in jobs}
    for job in jobs:
        profiles = _profiles(manifest, job.engine)
        paths = {"plan": plan_path(folder, job.engine), "report": report_path(folder, job.engine)}
        for path in paths.values():
            path.unlink(missing_ok=True)  # a link to the published file
        info = manifest.engines[job.engine]
        request["jobs"].append(
            {"engine": job.engine, "onnx": str(stage / info.file), "precision": info.precision, "profiles": profiles}
            | {name: str(path) for name, path in paths.items()}
        )
    started(f"{target.name} {jobs[0].engine}")
    plans: list[PlanInfo] = []
    for answer in _worker(request, target):
        job = by_engine[answer["engine"]]
        plans.append(_describe(stage, folder, manifest, job, answer))
        left = jobs[len(plans) :]
        if left:
            started(f"{target.name} {left[0].engine}")
    return plans


def plan_path(folder: Path, engine: str) -> Path:
    return folder / f"{engine}.plan"


def report_path(folder: Path, engine: str) -> Path:
    return folder / f"{engine}.layers.json"


def _profiles(manifest: Manifest, engine: str) -> list[dict[str, int]]:
    from .tensorrt.profiles import engine_profiles

    return engine_profiles(manifest, engine)


def _describe(stage: Path, folder: Path, manifest: Manifest, job: Work, answer: dict[str, Any]) -> PlanInfo:
    plan, report = plan_path(folder, job.engine), report_path(folder, job.engine)
    with open(plan, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return PlanInfo(
        engine=job.engine, target=job.target.name, file=str(plan.relative_to(stage)),
        report=str(report.relative_to(stage)), key=job.key, backend=job.target.backend,
        backend_version=job.version, compute_capability=job.architecture, platform=this_platform(),
        precision=manifest.engines[job.engine].precision, options=dict(BUILDER_OPTIONS),
        profiles=_profiles(manifest, job.engine), network=answer["network"], bytes=plan.stat().st_size,
        sha256=sha256, seconds=round(answer["seconds"], 2), peak_memory=answer["peak_memory"],
    )  # fmt: skip


def _worker(request: dict[str, Any], target: Target) -> Iterator[dict[str, Any]]:
    """Runs the build process and yields its answers; kills it when the caller stops (Ctrl-C).

    Raises CascadeError with its sentence, or with what ended it.
    """
    command = [sys.executable, "-m", f"{__package__}.tensorrt.worker", json.dumps(request)]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if not line.startswith("{"):
                    continue
                answer = json.loads(line)
                if "error" in answer:
                    raise CascadeError(answer["error"])
                yield answer
            code = process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if code == 0:
            return
        if code == -signal.SIGKILL:
            raise CascadeError(
                f"the build for {target.name} was killed, most likely because memory ran out: free some, or build "
                "on a larger machine."
            )
        errors.seek(0)
        last = errors.read().decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        what = signal.Signals(-code).name if code < 0 else f"code {code}"
        raise CascadeError(
            f"TensorRT ended with {what} while compiling for {target.name} ({last[0][:200]}): try another version "
            "of the package, or use ONNX Runtime."
        )
