"""`cascade-trt build`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

from ..engines.publish import check_replaceable
from ..export.families import names
from ..export.request import DEMO_MODEL, MAX_NODES, BuildRequest, check_request
from ..runtime.backends import refusal
from ..runtime.bundle import CLASS, SamplingDefaults
from ..runtime.errors import CascadeError
from ..runtime.tree import AnyTree, get_tree
from .hints import program, usable
from .progress import progress

if TYPE_CHECKING:
    from ..export.build import BuildOptions

# Trees of a build that names none, where there is a drafter: what needs no rebuild is served without being named.
# The first is the best of the mixed ones: on two cores, and by costs on an H200 for one and eight images alike.
_DEMO_TREES = ("mixed_16", "chain_7", "mixed_20x4")
_TREES = ("mixed_32", "small_6")
DEMO = Path(__file__).resolve().parent.parent / "examples" / "emoji" / "weights"


def run(model: str, *, text: str | None, **given: Any) -> None:
    """Opens the parts, builds the bundle, says what was built and what to do next. Takes the command's options."""
    without = text == "none"
    request = BuildRequest(model, text=None if without or text is None else Path(text), without_text=without, **given)
    check_request(request)
    trees, folder = chosen_trees(request), request.out or Path("build") / request.model
    check_replaceable(folder)
    origins: Mapping[str, dict[str, str]] = {}
    is_given = request.checkpoint is not None and request.model in names()
    if not (is_given or request.dummy_weights or request.model == DEMO_MODEL):
        request, origins = _located(request)
    digest = ""
    if request.targets:
        from ..engines.bundle_kernels import split_targets
        from ..engines.compile import require_packages
        from ..engines.kernels import compiler
        from ..engines.request import already_built

        targets, architectures = split_targets(request.targets)
        require_packages(targets)  # what is wrong is told before the work
        if architectures:
            compiler(architectures)
        digest = _digest(request, trees)
        if already_built(folder, digest):
            from .compile import run as compile_targets

            compile_targets(folder, request.targets, request.one_plan)
            return
    try:
        from ..export.build import build_bundle
        from ..export.open import open_parts
    except ImportError as error:
        raise _not_installed(error) from None
    parts, sampling = open_parts(request)
    parts = replace(parts, origins=origins)
    for note in parts.notes:
        click.echo(f"Note: {note}", err=True)
    if parts.drafter is None:
        drafting = [tree.name for tree in trees if tree.drafted is not None]
        trees = tuple(tree for tree in trees if tree.drafted is None)
        if request.trees and drafting:
            click.echo(f"Warning: trees that draft need --drafter; left out: {', '.join(drafting)}.", err=True)
    options = build_options(request, folder, trees, sampling, digest)
    compiled = _Compiled(folder, request.targets, request.one_plan)
    compiled.check([m.stack.head_dim for m in (parts.target, parts.drafter) if m is not None])
    told: list[str] = []
    with Bar() as bar:
        manifest = build_bundle(
            parts, options, bar.update, lambda stage, made: compiled.compile(stage, made, bar.update), told.append
        )
    _report(options.out, manifest, told)
    compiled.report()


def _located(request: BuildRequest) -> tuple[BuildRequest, Mapping[str, dict[str, str]]]:
    """The request with the published model's files, fetched where they are not here, and where they came from."""
    try:
        from ..export.families import published_of
        from ..export.hub import locate

        preset, family, published = published_of(request.model)
    except ImportError as error:
        raise _not_installed(error) from None
    with Bar() as bar:
        located = locate(request, preset, family.name, published, bar.say, bar.update)
    return located.request, located.origins


def _not_installed(error: ImportError) -> CascadeError:
    return CascadeError(f"{error.name} is not installed: run `pip install 'cascade-trt[export]'` to build bundles.")


def chosen_trees(request: BuildRequest) -> tuple[AnyTree, ...]:
    """The trees asked for, or those that suit the model. Raises CascadeError for an unknown name."""
    default = _DEMO_TREES if request.model == "emoji" else _TREES
    return tuple(get_tree(name) for name in request.trees or default)


def build_options(
    request: BuildRequest, folder: Path, trees: tuple[AnyTree, ...], sampling: SamplingDefaults, digest: str
) -> BuildOptions:
    """The request's settings, with the defaults of what it leaves open."""
    from ..export.build import BuildOptions

    return BuildOptions(
        out=folder,
        trees=trees,
        sampling=sampling,
        batch=request.batch,
        precision=request.precision,
        max_top_k=max(1000, sampling.top_k) if request.max_top_k is None else request.max_top_k,
        max_nodes=MAX_NODES if request.max_nodes is None else request.max_nodes,
        request=digest,
    )


def _digest(request: BuildRequest, trees: tuple[AnyTree, ...]) -> str:
    """Of everything that decides what the bundle holds."""
    from ..engines.request import request_digest

    files = request.files or [DEMO]
    if request.config is not None:
        files += sorted(request.config.parent.glob("*.npz"))  # a table of states lies beside it
    asked = asdict(replace(request, targets=(), one_plan=False, out=None))  # they decide nothing of it
    return request_digest(asked | {"trees": [repr(tree) for tree in trees]}, files)


class _Compiled:
    """TensorRT engines and kernels of a new bundle: those that need no GPU are in it when it takes the old one's
    place."""

    def __init__(self, folder: Path, targets: tuple[str, ...], one_plan: bool) -> None:
        from ..engines.bundle_kernels import split_targets

        self._chosen, self._architectures = split_targets(targets)
        self._folder, self._one_plan = folder, one_plan
        self._ahead = [target for target in self._chosen if target.compute_capability is not None]
        self._local = [target.name for target in self._chosen if target.compute_capability is None]
        self._added: Any = None
        self._kernels: Any = None
        self._seconds = [0.0, 0.0]  # for engines, for kernels

    def check(self, head_dims: list[int]) -> None:
        """Raises CascadeError, before the export, when there are targets and they cannot take a head dimension."""
        from ..engines.tensorrt.target import check_head_dims

        if self._chosen:
            check_head_dims(head_dims)

    def compile(self, stage: Path, manifest: Any, progress: Any) -> Any:
        """The manifest with engines and kernels, those of the old bundle that were taken over among them."""
        from ..engines.bundle_kernels import kernels_of_new_bundle
        from ..engines.compile import plans_of_new_bundle

        started = time.perf_counter()
        self._added = plans_of_new_bundle(stage, manifest, self._ahead, progress, self._one_plan)
        between = time.perf_counter()
        manifest, asked = self._added.manifest, self._architectures
        self._kernels = kernels_of_new_bundle(stage, manifest, asked, progress)
        self._seconds = [between - started, time.perf_counter() - between]
        return self._kernels.manifest

    def report(self) -> None:
        """Says what was compiled. Then compiles for this machine's GPU: where that fails, the bundle stays."""
        from .compile import report, report_kernels, run, say_next

        report_kernels(self._folder, self._kernels, self._seconds[1])
        if self._ahead:
            report(self._folder, self._added, self._ahead, self._seconds[0])
        if self._kernels.built or self._added.built:
            say_next(self._folder)
        if self._local:
            run(self._folder, tuple(self._local))


class Bar:
    """A progress bar over all weights of all parts."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        self._progress = progress(*columns)

    def __enter__(self) -> Bar:
        self._progress.start()
        self._task = self._progress.add_task("exporting", total=None)
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, sentence: str) -> None:
        """Above the bar."""
        self._progress.console.print(sentence, markup=False, highlight=False, soft_wrap=True)

    def update(self, what: str, done: int, total: int) -> None:
        self._progress.update(self._task, description=what, completed=done, total=total or None)


def _report(out: Path, manifest: Any, told: list[str]) -> None:
    size = sum(file.bytes for file in manifest.files.values())
    from .info import human

    click.echo(f"{out}: {len(manifest.engines)} engines, {human(size)}")
    for sentence in told:
        click.echo(usable(sentence))
    refused: dict[str, list[str]] = {}
    for backend in manifest.backends:
        if (problem := refusal(manifest.backends, backend)) is not None:
            refused.setdefault(problem, []).append(backend)
    for problem, backends in refused.items():  # TensorRT and TensorRT-RTX refuse for the same reasons
        click.echo(f"{', '.join(backends)}: {problem}")
    worst = [
        (output["relative"], f"{name}.{key}")
        for name, report in manifest.parity.items()
        for key, output in report.get("outputs", {}).items()
    ]
    if worst:
        click.echo(f"largest difference from PyTorch: {max(worst)[0]:.1e} of the scale, in {max(worst)[1]}")
    from ..export.overflow import fp16_advice

    for sentence in fp16_advice(manifest.parity):
        click.echo(sentence)
    classes = manifest.model.condition.kind == CLASS
    what = "--class-id 1" if classes else "--features FILE.npz" if manifest.text is None else '"a red apple"'
    on_cpu = refusal(manifest.backends, "ort-cpu") is None
    click.echo(f"next: {program()} {f'generate {what} --bundle {out}' if on_cpu else f'doctor {out}'}")


