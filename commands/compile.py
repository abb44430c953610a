"""`cascade-trt compile`, and `build --target`: TensorRT engines for a bundle."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..runtime.errors import CascadeError
from .hints import program
from .info import human
from .progress import progress

if TYPE_CHECKING:
    from ..engines.compile import Added
    from ..engines.tensorrt.target import Target


def run(bundle: Path, targets: tuple[str, ...], one_plan: bool = False, plain_attention: bool = False) -> None:
    """Compiles what is missing and says what it took. Raises CascadeError as `add_plans` does."""
    from ..engines.compile import add_plans
    from ..engines.tensorrt.target import parse_target

    if not targets:
        raise CascadeError("say what to compile for: --target rtx:sm89 (repeatable), or --target tensorrt.")
    chosen = [parse_target(text) for text in dict.fromkeys(targets)]
    start = time.perf_counter()
    with progress() as bar:
        task = bar.add_task("compiling", total=None)

        def note(what: str, done: int, total: int) -> None:
            bar.update(task, description=f"compiling {what}", completed=done, total=total)

        added = add_plans(bundle, chosen, note, one_plan, plain_attention)
    report(bundle, added, chosen, time.perf_counter() - start)


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
    click.echo(f"next: {program()} info {bundle}; {program()} doctor {bundle}")
