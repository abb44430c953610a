"""`cascade-trt compile`, and `build --target`: TensorRT engines and kernels for a bundle."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..runtime.errors import CascadeError
from .hints import program, usable
from .info import human
from .progress import progress

if TYPE_CHECKING:
    from ..engines.bundle_kernels import AddedKernels
    from ..engines.compile import Added
    from ..engines.tensorrt.target import Target


def run(bundle: Path, targets: tuple[str, ...], one_plan: bool = False, plain_attention: bool = False) -> None:
    """Compiles what is missing and says what it took. Raises CascadeError as `add_plans` and `add_kernels` do."""
    from ..engines.bundle_kernels import add_kernels, split_targets
    from ..engines.compile import add_plans, require_packages

    if not targets:
        raise CascadeError(
            "say what to compile for: --target rtx:sm89 (repeatable), --target tensorrt, or --target cuda."
        )
    if one_plan and not any(target.startswith("rtx:") for target in targets):
        raise CascadeError("--one-plan is for targets of TensorRT-RTX: add --target rtx:smNN, or leave it away.")
    chosen, architectures = split_targets(targets)
    built = False
    if architectures:
        require_packages(chosen)  # what is wrong is told before the work
        start = time.perf_counter()
        with _bar() as note:
            kernels = add_kernels(bundle, architectures, note)
        report_kernels(bundle, kernels, time.perf_counter() - start)
        built = bool(kernels.built)
    if chosen:
        start = time.perf_counter()
        with _bar() as note:
            added = add_plans(bundle, chosen, note, one_plan, plain_attention)
        report(bundle, added, chosen, time.perf_counter() - start)
        built = built or bool(added.built)
    if built:
        say_next(bundle)


@contextmanager
def _bar() -> Iterator[Callable[[str, int, int], None]]:
    """What is being compiled, how much is done and how much there is."""
    with progress() as bar:
        task = bar.add_task("compiling", total=None)

        def note(what: str, done: int, total: int) -> None:
            bar.update(task, description=f"compiling {what}", completed=done, total=total)

        yield note


def report(bundle: Path, added: Added, targets: list[Target], seconds: float) -> None:
    """Says what was compiled, what it took, and what to do next."""
    names = [target.name for target in targets]
    plans = [plan for plan in added.manifest.plans if plan.target in names]
    files = {plan.file: plan for plan in plans}
    if not added.built:
        click.echo(f"{bundle}: all {len(files)} TensorRT engines are up to date")
        return
    size, peak = sum(plan.bytes for plan in files.values()), max(plan.peak_memory for plan in plans)
    kept = f", {added.kept} kept" if added.kept else ""
    click.echo(
        f"{bundle}: {added.built} TensorRT engines compiled{kept} for {', '.join(names)}, "
        f"{human(size)}, {seconds:.0f} s, peak memory {human(peak)}"
    )


def report_kernels(bundle: Path, added: AddedKernels, seconds: float) -> None:
    """The same for kernels, of the architectures that were asked for."""
    built, kept = (", ".join(info.architecture for info in infos) for infos in (added.built, added.kept))
    for sentence in added.dropped:
        click.echo(usable(sentence))
    if added.built:
        size, by = human(sum(info.bytes for info in added.built)), added.built[0].compiler
        more = f"; up to date: {kept}" if kept else ""
        click.echo(f"{bundle}: kernels compiled for {built}, {size}, {by}, {seconds:.0f} s{more}")
    elif kept:
        click.echo(f"{bundle}: the kernels for {kept} are up to date")


def say_next(bundle: Path) -> None:
    click.echo(f"next: {program()} info {bundle}; {program()} doctor {bundle}")
