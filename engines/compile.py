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

from ..runtime.backends import refusal
from ..runtime.bundle import FIXED_NODES, FIXED_PAIRS, MANIFEST, Manifest, PlanInfo, read_manifest
from ..runtime.engine_info import PLAN_SUFFIX, REPORT_SUFFIX
from ..runtime.errors import CascadeError
from .cache import plan_key, reusable, this_platform
from .gpu import find_gpu
from .publish import linked_copy, make_folder, staged_bundle, write_new
from .script import SCRIPT, build_script
from .tensorrt.attention import AttentionForm, attention_form
from .tensorrt.build import builder_options
from .tensorrt.loader import installed_version
from .tensorrt.profiles import Dims, engine_profiles, steady_pairs
from .tensorrt.target import Target, check_head_dims, joint_name, plan_folder, sharing

Progress = Callable[[str, int, int], None]  # what is being done, plans compiled, plans in all


@dataclass(frozen=True)
class Added:
    """What `add_plans` did: the bundle's manifest, plans compiled and plans that were good already."""

    manifest: Manifest
    built: int
    kept: int


def add_plans(
    bundle: Path, targets: list[Target], progress: Progress, one_plan: bool = False, plain_attention: bool = False
) -> Added:
    """Compiles every graph of `bundle` for `targets` and publishes the bundle with the new engines.

    With `one_plan`, targets that one plan can serve get one: a smaller bundle. With `plain_attention`, attention
    stays as the graphs have it (`tensorrt/attention.py`). Plans whose key is unchanged are kept; when all are,
    nothing is written. Raises CascadeError when a target cannot take the bundle, TensorRT is missing or refuses, or
    there is no room; the bundle is as before then.
    """
    manifest = read_manifest(bundle)
    groups = _groups(manifest, targets, one_plan)
    work, kept = _open_work(bundle, manifest, groups, plain_attention)
    if not work:
        return Added(manifest, 0, kept)
    with staged_bundle(bundle) as stage:
        manifest = read_manifest(bundle)  # once more: another build may have ended before the lock was ours
        work, kept = _open_work(bundle, manifest, groups, plain_attention)
        linked_copy(bundle, stage)
        manifest = _compile(stage, manifest, work, progress)
        write_new(stage / MANIFEST, manifest.to_json())
    return Added(manifest, sum(map(len, work)), kept)


def plans_of_new_bundle(
    stage: Path, manifest: Manifest, targets: list[Target], progress: Progress, one_plan: bool
) -> Added:
    """Engines for a bundle that is being built in `stage`; those that it took over (`taken.py`) are kept where they are
    what would be compiled. Raises as `add_plans` does."""
    groups = _groups(manifest, targets, one_plan)
    work, kept = _open_work(stage, manifest, groups, False)
    return Added(_compile(stage, manifest, work, progress), sum(map(len, work)), kept)


def _groups(manifest: Manifest, targets: list[Target], one_plan: bool) -> list[tuple[Target, ...]]:
    """Targets that share plans, after the check that they can take the bundle."""
    if targets:
        check_head_dims(head_dims(manifest))
    for target in targets:
        if (problem := refusal(manifest.backends, target.backend)) is not None:
            raise CascadeError(f"{target.backend} cannot take this bundle: {problem}")
    return sharing(targets) if one_plan else [(target,) for target in targets]


def _compile(stage: Path, manifest: Manifest, work: list[list[Work]], progress: Progress) -> Manifest:
    """Compiles into `stage`, which the new manifest describes; files that it does not name are removed."""
    made: list[PlanInfo] = []
    built, total = 0, sum(map(len, work))
    for batch in work:
        made += _build(stage, manifest, batch, lambda name, n: progress(name, n, total), built)
        built += len(batch)
    replaced = {(plan.target, plan.engine) for plan in made}
    old = [p for p in manifest.plans if (p.target, p.engine) not in replaced and p.engine in manifest.engines]
    after = replace(manifest, plans=[*old, *made])
    _drop_unused(stage, manifest, after)
    return after


def head_dims(manifest: Manifest) -> tuple[int, ...]:
    """Head dimensions of every attention in the bundle's cached engines."""
    dims = [manifest.model.head_dim]
    if manifest.drafter is not None:
        dims.append(manifest.drafter.head_dim)
    return tuple(dims)


@dataclass(frozen=True)
class Work:
    """One plan to compile: a graph, the targets that the plan serves, and the key of each."""

    engine: str
    targets: tuple[Target, ...]
    keys: tuple[str, ...]
    version: str
    architectures: tuple[str, ...]
    options: dict[str, Any]
    profiles: list[Dims]


def _open_work(
    bundle: Path, manifest: Manifest, groups: list[tuple[Target, ...]], plain_attention: bool
) -> tuple[list[list[Work]], int]:
    """What must be compiled, in batches of the same targets (a process each), and how many plans are good already.

    Each group of targets shares its plans. Raises CascadeError when the package is missing, or a target needs a
    GPU and there is none.
    """
    kept, batches = 0, []
    for group in groups:
        version = _version(bundle, group[0])
        architectures = tuple(_architecture(bundle, target) for target in group)
        batch = []
        for engine in manifest.engines:
            options = _options(manifest, engine, group, plain_attention)
            keys = tuple(
                plan_key(manifest, engine, target, version, "+".join(architectures), options) for target in group
            )
            pairs = zip(group, keys, strict=True)
            if all(reusable(bundle, manifest, engine, target, key) for target, key in pairs):
                kept += 1
            else:
                profiles = engine_profiles(manifest, engine, options)
                batch.append(Work(engine, group, keys, version, architectures, options, profiles))
        if batch:
            batches.append(batch)
    return batches, kept


def _options(manifest: Manifest, engine: str, group: tuple[Target, ...], plain_attention: bool) -> dict[str, Any]:
    fixed, size, form = FIXED_NODES, manifest.most_nodes, AttentionForm.PLAIN
    if pairs := steady_pairs(manifest, engine):
        fixed, size = FIXED_PAIRS, max(count for count, _ in pairs)
    if (engine == "target" or pairs) and not plain_attention:
        form = attention_form(group, manifest.engines[engine].precision, size)
    return builder_options(form, fixed, size)


def require_packages(targets: list[Target]) -> None:
    """Raises CascadeError, before any work, when TensorRT-RTX is wanted and missing."""
    for target in targets:
        if target.compute_capability is not None:
            _version(Path(), target)


def _version(bundle: Path, target: Target) -> str:
    version = installed_version(target.backend)
    if version is None:
        extra = "rtx" if target.backend == "tensorrt-rtx" else "tensorrt"
        raise CascadeError(
            f"the package {target.backend} is not installed: run `pip install 'cascade-trt[{extra}]'`."
            + _carry(bundle, target)
        )
    return version


def _architecture(bundle: Path, target: Target) -> str:
    """As "8.9": the target's, or that of this machine's GPU."""
    capability = target.compute_capability
    if capability is None:
        gpu = find_gpu()
        if gpu is None:
            raise CascadeError(
                "target tensorrt compiles for the GPU of the machine it runs on, and there is none here: "
                "use --target rtx:sm89 (any machine)." + _carry(bundle, target)
            )
        capability = gpu.compute_capability
    return f"{capability[0]}.{capability[1]}"


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


def _drop_unused(stage: Path, before: Manifest, after: Manifest) -> None:
    """Removes plans and reports that the manifest named before and names no more. Others are the user's."""
    named, unused = ({file for plan in one.plans for file in plan.files} for one in (after, before))
    for file in unused - named:
        (stage / file).unlink(missing_ok=True)
    for folder in {(stage / file).parent for file in unused - named}:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _build(
    stage: Path, manifest: Manifest, batch: list[Work], started: Callable[[str, int], None], before: int
) -> list[PlanInfo]:
    """Compiles a batch in one process; `before` plans were compiled earlier."""
    targets = batch[0].targets
    folder, name = stage / plan_folder(targets), joint_name(targets)
    make_folder(stage, plan_folder(targets))
    jobs, own = [], {stage / file for plan in manifest.plans for file in plan.files}
    for work in batch:
        paths = {"plan": plan_path(folder, work.engine), "report": report_path(folder, work.engine)}
        for path in paths.values():
            if path.is_file() and path not in own:
                raise CascadeError(f"the bundle's {path.relative_to(stage)} was not written by it: move it away.")
            path.unlink(missing_ok=True)  # a link to the published file
        info = manifest.engines[work.engine]
        jobs.append(
            {"engine": work.engine, "onnx": str(stage / info.file), "precision": info.precision,
             "options": work.options, "profiles": work.profiles}
            | {key: str(path) for key, path in paths.items()}
        )  # fmt: skip
    plans: list[PlanInfo] = []
    started(f"{name} {batch[0].engine}", before)
    answers = _worker({"targets": [target.name for target in targets], "jobs": jobs}, name)
    for done, (work, answer) in enumerate(zip(batch, answers, strict=True), start=1):
        plans += _describe(stage, folder, manifest, work, answer)
        if done < len(batch):
            started(f"{name} {batch[done].engine}", before + done)
    return plans


def plan_path(folder: Path, engine: str) -> Path:
    return folder / f"{engine}{PLAN_SUFFIX}"


def report_path(folder: Path, engine: str) -> Path:
    return folder / f"{engine}{REPORT_SUFFIX}"


def _describe(stage: Path, folder: Path, manifest: Manifest, work: Work, answer: dict[str, Any]) -> list[PlanInfo]:
    """An entry for each target of the plan; they name the same file."""
    plan, report = plan_path(folder, work.engine), report_path(folder, work.engine)
    with open(plan, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return [
        PlanInfo(
            engine=work.engine, target=target.name, file=str(plan.relative_to(stage)),
            report=str(report.relative_to(stage)), key=key, backend=target.backend, backend_version=work.version,
            compute_capability=architecture, platform=this_platform(),
            precision=manifest.engines[work.engine].precision, options=work.options,
            profiles=work.profiles, network=answer["network"],
            bytes=plan.stat().st_size, sha256=sha256, seconds=round(answer["seconds"], 2),
            peak_memory=answer["peak_memory"],
        )
        for target, key, architecture in zip(work.targets, work.keys, work.architectures, strict=True)
    ]  # fmt: skip


def _worker(request: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    """Runs the build process for the targets `name` and yields its answers; kills it when the caller stops (Ctrl-C).

    Raises CascadeError with its sentence, or with what ended it.
    """
    command = [sys.executable, "-m", f"{__package__}.tensorrt.worker", json.dumps(request), str(os.getpid())]
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
                f"the build for {name} was killed, most likely because memory ran out: free some, or build "
                "on a larger machine."
            )
        errors.seek(0)
        last = errors.read().decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        what = signal.Signals(-code).name if code < 0 else f"code {code}"
        raise CascadeError(
            f"TensorRT ended with {what} while compiling for {name} ({last[0][:200]}): try another version "
            "of the package, or use ONNX Runtime."
        )
