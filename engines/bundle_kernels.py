"""Adds compiled kernels to a bundle, as `compile.py` adds TensorRT engines: what is missing is compiled, the new bundle
takes the old one's place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..runtime.backends.kernels.info import ARCHITECTURES, SPELT, KernelInfo, kernel_problem, kernel_source
from ..runtime.bundle import MANIFEST, Manifest, read_manifest
from ..runtime.errors import CascadeError
from .kernels import FOLDER, compile_kernels, compiler
from .publish import linked_copy, staged_bundle, write_new
from .taken import kernels_gone, told
from .tensorrt.target import NAMES, Target, parse_target

KERNELS = "cuda"  # the target that stands for the kernels, for all of `ARCHITECTURES`; cuda:sm90 is one of them
Progress = Callable[[str, int, int], None]  # what is being done, architectures compiled, architectures in all


@dataclass(frozen=True)
class AddedKernels:
    """The bundle's manifest, and of the architectures that were asked for those that were compiled and those that were
    good already; `dropped` says in sentences which kernels went, and why."""

    manifest: Manifest
    built: list[KernelInfo]
    kept: list[KernelInfo]
    dropped: list[str]


def split_targets(texts: Iterable[str]) -> tuple[list[Target], list[str]]:
    """What to compile TensorRT engines for, and the architectures to compile kernels for, each once.

    Raises CascadeError for an unknown name.
    """
    targets: dict[str, Target] = {}
    architectures: dict[str, None] = {}
    for text in texts:
        kind, colon, architecture = text.partition(":")
        if kind == KERNELS and (not colon or SPELT.fullmatch(architecture)):
            architectures |= dict.fromkeys([architecture] if colon else ARCHITECTURES)
        elif text in NAMES or kind == "rtx":
            targets[text] = parse_target(text)
        else:
            known = ", ".join((KERNELS, *(f"{KERNELS}:{name}" for name in ARCHITECTURES), *NAMES))
            raise CascadeError(f"unknown target {text!r}: choose one of {known}.")
    return list(targets.values()), list(architectures)


def add_kernels(bundle: Path, architectures: Sequence[str], progress: Progress) -> AddedKernels:
    """Compiles the kernels for `architectures` and publishes the bundle with them.

    Those of the same source and compiler are kept; when all are, nothing is written. Those of another version's source
    go. Raises CascadeError when NVRTC is missing or refuses, or there is no room; the bundle is as before then.
    """
    manifest = read_manifest(bundle)
    missing, kept = _missing(bundle, manifest, architectures)
    if not missing:
        return AddedKernels(manifest, [], kept, [])
    with staged_bundle(bundle) as stage:
        manifest = read_manifest(bundle)  # once more: another build may have ended before the lock was ours
        missing, kept = _missing(bundle, manifest, architectures)
        if (bundle / FOLDER).is_symlink():
            raise CascadeError(f"{bundle / FOLDER} is a link, and kernels lie in the bundle itself: remove it.")
        linked_copy(bundle, stage)
        added = _compile(stage, bundle, manifest, missing, kept, progress)
        write_new(stage / MANIFEST, added.manifest.to_json())
    return added


def kernels_of_new_bundle(
    stage: Path, manifest: Manifest, architectures: Sequence[str], progress: Progress
) -> AddedKernels:
    """Kernels for a bundle that is being built in `stage`, beside those that it took over (`taken.py`). Raises as
    `add_kernels` does."""
    missing, kept = _missing(stage, manifest, architectures) if architectures else ([], [])
    if not missing:
        return AddedKernels(manifest, [], kept, [])
    return _compile(stage, stage, manifest, missing, kept, progress)


def _missing(
    folder: Path, manifest: Manifest, architectures: Sequence[str]
) -> tuple[list[str], list[KernelInfo]]:
    """Those that must be compiled, and the entries of those that are good already."""
    by, source = compiler(architectures), kernel_source()
    good = {info.architecture: info for info in manifest.kernels
            if info.compiler == by and kernel_problem(folder, info, source) is None}  # fmt: skip
    return [name for name in architectures if name not in good], [good[name] for name in architectures if name in good]


def _compile(
    stage: Path, bundle: Path, manifest: Manifest, missing: list[str], kept: list[KernelInfo], progress: Progress
) -> AddedKernels:
    """Compiles into `stage`, which the new manifest describes; files that it does not name any more are removed."""
    made = compile_kernels(
        stage, missing, lambda name: progress(f"kernels for {name}", missing.index(name), len(missing))
    )
    source, old = kernel_source(), [info for info in manifest.kernels if info.architecture not in missing]
    stay = [info for info in old if info.source == source]
    kernels = sorted([*stay, *made], key=lambda info: info.capability)
    named = {info.file for info in kernels}
    for info in manifest.kernels:
        if info.file not in named:
            (stage / info.file).unlink(missing_ok=True)
    gone = kernels_gone(bundle, [info for info in old if info not in stay])
    return AddedKernels(replace(manifest, kernels=kernels), made, kept, told(gone))
