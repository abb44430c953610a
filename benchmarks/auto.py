"""`python -m cascade_trt.benchmarks.auto`: `auto` against plain decoding and every fixed tree, by images at a time.

The same images through batches of 1, 2, 4 and 8 slots, settings in turn. Costs are the bundle's (run `calibrate costs`
first), else those that `auto` measures when it begins. Then what `auto` would choose with the costs of an H200
(benchmarks/results/nodes_gpu.json) and the accepted lengths of the demo (benchmarks/results/lossless.json): computed.
Rows of other bundles, measured on the same machine before, stay in the file.

    python -m cascade_trt.benchmarks.auto --bundle build/emoji --bundle build/llamagen-t2i-b
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import click
import numpy as np

from ..runtime.auto import Auto
from ..runtime.bundle import CostInfo, TreeInfo
from ..runtime.costs import Costs
from ..runtime.pipeline import Pipeline
from ..runtime.tree import AUTO, Tree, get_tree
from . import RESULTS, gpu_costs
from .machine import describe_machine
from .timing import served, through

SLOTS = (1, 2, 4, 8)
TREES = ("jacobi_8", "jacobi_16", "mixed_8", "mixed_16", "mixed_24", "chain_7", "small_6")
PLAIN = "none"


@click.command()
@click.option("--bundle", "bundles", type=click.Path(path_type=Path), multiple=True, default=(Path("build/emoji"),),
              help="Repeatable. [default: build/emoji]")
@click.option("--slots", "sizes", type=int, multiple=True, default=SLOTS, show_default=True)
@click.option("--tree", "trees", multiple=True, default=TREES, help="Fixed trees beside auto; repeatable.")
@click.option("--images", type=int, default=1, show_default=True, help="Of each slot.")
@click.option("--repeats", type=int, default=8, show_default=True)
@click.option("--threads", type=int)
@click.option("--json", "file", default="auto.json", show_default=True, help="File in benchmarks/results.")
def main(
    bundles: tuple[Path, ...], sizes: tuple[int, ...], trees: tuple[str, ...], images: int, repeats: int,
    threads: int | None, file: str,
) -> None:  # fmt: skip
    """Images a second of auto over those of plain decoding, and over those of the best fixed tree."""
    rows = []
    for bundle in bundles:
        with Pipeline.load(bundle, threads=threads) as pipe:
            for slots in sizes:
                rows.append({"bundle": bundle.name} | measure(pipe, slots, trees, images, repeats))
                show(rows[-1])
    gpu = [choose_on_gpu(model, count) for model, count in gpu_costs.settings()]
    machine = describe_machine(threads)
    content = {"machine": machine, "rows": [*_others(RESULTS / file, rows, machine), *rows], "computed_h200": gpu}
    (RESULTS / file).write_text(json.dumps(content, indent=1) + "\n")
    for one in gpu:
        click.echo(f"H200, computed: {one['model']} x{one['images']}: {one['why']}")


def _others(file: Path, rows: list[dict[str, Any]], machine: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of other bundles that an earlier run on this machine has left in the file."""
    before = json.loads(file.read_text()) if file.is_file() else {"machine": None, "rows": []}
    measured = {row["bundle"] for row in rows}
    return [row for row in before["rows"] if row["bundle"] not in measured] if before["machine"] == machine else []


def measure(pipe: Pipeline, slots: int, trees: tuple[str, ...], images: int, repeats: int) -> dict[str, Any]:
    """Seconds of every setting, in turn; one batch of each setting draws all of its images."""
    settings = {PLAIN: {"rule": "ar"}, AUTO: {"rule": "exact", "tree": AUTO}} | {
        tree: {"rule": "exact", "tree": tree} for tree in served(pipe, trees)
    }  # fmt: skip
    batches = {name: pipe.batch(slots, **options) for name, options in settings.items()}  # type: ignore[arg-type]
    seconds: dict[str, list[float]] = {name: [] for name in settings}
    codes: dict[str, list[np.ndarray]] = {}
    for repeat in range(-1, repeats):
        for name, batch in batches.items():
            first = max(repeat, 0) * slots * images  # other images each time
            taken, codes[name] = through(pipe, batch, range(first, first + slots * images))
            if repeat >= 0:  # the first warms up
                seconds[name].append(taken)
    same = {name: all((a == b).all() for a, b in zip(own, codes[PLAIN], strict=True)) for name, own in codes.items()}
    speed_ups = {
        name: statistics.median(plain / own for plain, own in zip(seconds[PLAIN], taken, strict=True))
        for name, taken in seconds.items()
    }
    best = max((name for name in settings if name != AUTO), key=lambda name: speed_ups[name])
    stats = batches[AUTO].stats
    return {
        "slots": slots, "images": slots * images, "repeats": repeats, "speed_ups": speed_ups, "best_fixed": best,
        "auto_against_best": statistics.median(b / a for a, b in zip(seconds[AUTO], seconds[best], strict=True)),
        "tau": {name: batch.stats.tau for name, batch in batches.items()}, "same_images": same,
        "auto_rounds": stats.trees, "why": stats.why,
    }  # fmt: skip


def show(row: dict[str, Any]) -> None:
    """One line of a measure."""
    ups = ", ".join(f"{name} {value:.2f}" for name, value in row["speed_ups"].items())
    click.echo(f"{row['bundle']} x{row['slots']}: {ups}; auto {row['auto_against_best']:.3f} of {row['best_fixed']}")


# computed ---------------------------------------------------------------------------------------------------
def choose_on_gpu(model: str, images: int) -> dict[str, Any]:
    """What auto would take on an H200 for a model with the demo's accepted lengths."""
    report = json.loads((RESULTS / "lossless.json").read_text())["rows"]
    taus = {one["tree"]: one["tau"] for one in report if one["tree"] != AUTO}
    nodes, target = gpu_costs.target_ms(model, images)
    shapes = {name: tree for name in taus if isinstance(tree := get_tree(name), Tree)}
    levels = {name: 0 if tree.drafted is None else tree.drafted.depth for name, tree in shapes.items()}
    level = gpu_costs.level_ms(model, images)
    draft = {f"draft.{count}": [count * level] for count in set(levels.values()) if count}
    info = CostInfo(
        "pytorch", "", "an H200", 1, [images], nodes, [target], draft, host=1e-6, token=1e-6, accepted=taus, images=1
    )
    candidates = {
        name: TreeInfo.of(tree, f"draft.{levels[name]}" if levels[name] else None) for name, tree in shapes.items()
    }
    choice = Auto(Costs(info), candidates, taus).choose(images, 0, None)
    speed_up = 1.0
    if choice.tree in taus:
        speed_up = gpu_costs.speed_up(model, images, taus[choice.tree], shapes[choice.tree].size, levels[choice.tree])
    return {"model": model, "images": images, "tree": choice.tree, "speed_up": speed_up, "why": choice.why}


if __name__ == "__main__":
    main()
