"""`cascade-trt calibrate costs`: what rounds cost on this machine, so that `auto` chooses trees by it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console

from ..calibration.costs import doubt, measure_calls, measure_rounds, outside
from ..calibration.subjects import conditioning
from ..engines.publish import amend_bundle, check_replaceable
from ..runtime.auto import Auto, candidates_of
from ..runtime.bundle import MOST_SLOTS, CostInfo, Manifest, TreeInfo
from ..runtime.costs import Costs, to_info
from ..runtime.errors import CascadeError
from ..runtime.pipeline import Pipeline
from ..runtime.rules.registry import PLAIN
from ..runtime.stats import Stats
from ..runtime.tree import NO_TREE
from .counts import check_count
from .demo import bundle_or_demo
from .loader import Loader
from .progress import progress
from .tables import Rows

SLOTS = (1, 2, 4, 8)


def run(
    *, bundle: Path | None, num_images: int, slots: tuple[int, ...], repeats: int, prompts: tuple[str, ...], seed: int,
    loader: Loader, keep_doubtful: bool,
) -> None:  # fmt: skip
    """Draws images with each tree, measures rounds and calls, shows both, and writes them into the bundle.

    Raises CascadeError for figures that cannot be of an idle machine, which are written only with `keep_doubtful`.
    """
    sizes = sorted(set(slots or SLOTS))
    check_count("--num-images", num_images)
    check_count("--repeats", repeats)
    if sizes[0] < 1 or sizes[-1] > MOST_SLOTS:
        raise CascadeError(f"--slots must be from 1 to {MOST_SLOTS}, not {sizes[0] if sizes[0] < 1 else sizes[-1]}.")
    bundle = bundle_or_demo(bundle)
    pipe = loader.load(bundle)
    check_replaceable(bundle)
    candidates = candidates_of(pipe.manifest)
    info = measure(pipe, candidates, sizes, num_images, repeats, prompts, seed)
    show(info, candidates)
    if (doubted := doubt(info)) is not None:
        doubted = f"{doubted}, as no idle machine does"
        if not keep_doubtful:
            raise CascadeError(
                f"{doubted}: nothing is written; run it again when nothing else runs, or with --keep-doubtful."
            )
        click.echo(f"Warning: {doubted}: `auto` may choose wrongly by these costs.", err=True)
    amend_bundle(bundle, lambda _, manifest: with_costs(manifest, info), measured=pipe.manifest)
    click.echo(f"{bundle}: `auto` chooses by these costs on {info.machine} with {info.threads} threads")


def measure(
    pipe: Pipeline, candidates: dict[str, TreeInfo], slots: list[int], num_images: int, repeats: int,
    prompts: tuple[str, ...], seed: int,
) -> CostInfo:  # fmt: skip
    """Images of plain decoding and of `exact` with each tree in turn, whole rounds with each tree and calls of every
    size that these need, by images at the same time."""
    trees = {name: info.tree() for name, info in candidates.items()}
    drafted = {info.engine: trees[name] for name, info in candidates.items() if info.engine is not None}
    runs: dict[str, list[Stats]] = {name: [] for name in (NO_TREE, *trees)}
    with progress() as bar:
        task = bar.add_task("measuring", total=num_images * len(runs) + len(slots) + repeats + 1)
        for number in range(num_images):
            subject = conditioning(pipe.manifest, prompts, number)
            for name, images in runs.items():
                rule, tree = (PLAIN, None) if name == NO_TREE else ("exact", name)
                images.append(pipe.generate(**subject, seed=seed + number, rule=rule, tree=tree).stats)
                bar.advance(task)
        rounds: dict[str, list[float]] = {name: [] for name in runs}
        for busy in slots:
            for name, ms in measure_rounds(pipe, list(runs), busy, prompts, seed, repeats).items():
                rounds[name].append(ms)
            bar.advance(task)
        nodes = sorted({1, *(tree.size for tree in trees.values())})
        calls = measure_calls(pipe, slots, nodes, drafted, repeats, note=lambda: bar.advance(task))
    accepted = {
        name: max(1.0, sum(one.tokens for one in runs[name]) / sum(one.rounds for one in runs[name])) for name in trees
    }
    host, token = outside(list(runs.values()))
    return to_info(pipe.identity, slots, nodes, calls, host, token, accepted, num_images, rounds)


def with_costs(manifest: Manifest, info: CostInfo) -> Manifest:
    """The manifest with `info` in the place of what it knew of this backend, machine and number of threads, and without
    figures that cannot be right."""
    here = info.backend, info.machine, info.threads
    others = [
        one for one in manifest.costs if (one.backend, one.machine, one.threads) != here and one.problem() is None
    ]
    return replace(manifest, costs=[*others, info])


def show(info: CostInfo, candidates: dict[str, TreeInfo]) -> None:
    """What calls cost, then what each tree is worth, and what `auto` draws with."""
    console = Console(highlight=False)
    columns = [f"{busy} image{'s' if busy > 1 else ''}" for busy in info.slots]
    alone = [row[info.nodes.index(1)] for row in info.target]
    table = Rows(("call", *columns), "ms, and calls on 1 node, by images at the same time")
    calls = {f"target, {count} node{'s' if count > 1 else ''}": [row[at] for row in info.target]
             for at, count in enumerate(info.nodes)}  # fmt: skip
    for name, times in (calls | info.draft).items():
        table.add(name, *(f"{ms:.2f} ({ms / one:.2f})" for ms, one in zip(times, alone, strict=True)))
    table.print(console)
    console.print(f"outside the engines, of each image: {info.host:.2f} ms a round and {info.token:.2f} ms a token")
    auto = Auto(Costs(info), candidates, info.accepted)
    speeds = {busy: auto.speeds(busy) for busy in info.slots}
    table = Rows(("tree", "nodes", "tokens a round", *columns), "expected speed of exact, plain decoding being 1")
    for name, one in candidates.items():
        shown = (f"{speeds[busy][name]:.2f}x" for busy in info.slots)
        table.add(name, str(one.tree().size), f"{info.accepted[name]:.2f}", *shown)
    chosen = [auto.choose(busy, 0, None).tree for busy in info.slots]
    table.add_rule()
    table.add("auto draws with", "", "", *("plain decoding" if name == NO_TREE else name for name in chosen))
    table.print(console)
