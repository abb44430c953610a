"""`python -m cascade_trt.benchmarks.rounding BUNDLE`: what a call's number of nodes does to images.

Libraries choose another order of sums for another number of rows, and half precision rounds more than float32. So a
node may get other numbers in a call of 60 nodes than alone, and `exact` may draw another image of the same
distribution than plain decoding. This says how often:

| entry | compares |
|---|---|
| `alone` | `ar` in calls of a tree's size with `ar` in calls of one node |
| `within` | `exact` with a tree with `ar` in calls of that tree's size |
| `plain` | `exact` with a tree with `ar` in calls of one node |
| `together` | `ar` drawn four images at a time with `ar` drawn one at a time |
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from ..runtime.batch import Batch
from ..runtime.options import DrawOptions
from ..runtime.pipeline import Pipeline
from ..runtime.rules.registry import PLAIN
from . import RESULTS
from .machine import describe_machine
from .timing import served, through

FILE = RESULTS / "rounding.json"
TREES = "chain_7", "mixed_8", "jacobi_16", "mixed_32", "mixed_59"
TOGETHER = 4


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--backend", default="ort-cpu", show_default=True)
@click.option("--images", type=click.IntRange(min=1), default=16, show_default=True)
def main(bundle: Path, backend: str, images: int) -> None:
    """Compares images of BUNDLE, and replaces the entry of the same bundle, precision, backend and machine."""
    with Pipeline.load(bundle, backend) as pipe:
        precision, here = pipe.manifest.engines["target"].precision, pipe.identity
        found = compared(pipe, images)
    subject = {"bundle": bundle.name, "precision": precision, "backend": backend, "on": here.machine}
    entries = json.loads(FILE.read_text())["entries"] if FILE.is_file() else []
    kept = [one for one in entries if any(one[name] != value for name, value in subject.items())]
    entry = {**subject, "version": here.version, "machine": describe_machine(None), **found}
    FILE.write_text(json.dumps({"entries": [*kept, entry]}, indent=1) + "\n")
    for row in found["trees"]:
        said = ", ".join(f"{name} {row[name]['images']:.0%}" for name in ("alone", "within", "plain"))
        click.echo(f"{row['tree']} ({row['nodes']} nodes): images that are equal: {said}")
    click.echo(f"{TOGETHER} together: {found['together']['images']:.0%} of {images} images are equal")


def compared(pipe: Pipeline, images: int, trees: Sequence[str] = TREES) -> dict[str, Any]:
    """Agreement of images 0 ... images - 1, each with its number as its seed, for every tree that the bundle serves."""
    alone = drawn(pipe, pipe.batch(1, rule=PLAIN), PLAIN, images)
    rows = []
    for tree in served(pipe, trees):
        batch = pipe.batch(1, rule="exact", tree=tree)
        plain, exact = (drawn(pipe, batch, rule, images) for rule in (PLAIN, "exact"))
        rows.append({
            "tree": tree, "nodes": pipe.manifest.tree(tree).tree().size, "alone": agreement(plain, alone),
            "within": agreement(exact, plain), "plain": agreement(exact, alone),
        })  # fmt: skip
    several = drawn(pipe, pipe.batch(TOGETHER, rule=PLAIN), PLAIN, images)
    return {"images": images, "trees": rows, "together": agreement(several, alone)}


def drawn(pipe: Pipeline, batch: Batch, rule: str, images: int) -> list[np.ndarray]:
    """Codes of images 0 ... images - 1 of a rule. In a batch that has a tree, all calls of `ar` have the tree's nodes,
    too; it takes the root's token alone."""
    return through(pipe, batch, range(images), DrawOptions(rule=rule))[1]


def agreement(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> dict[str, float]:
    """Shares of images and of tokens that are equal; behind the first other token images go ways of their own."""
    equal = [a == b for a, b in zip(found, wanted, strict=True)]
    return {"images": float(np.mean([e.all() for e in equal])), "tokens": float(np.mean([e.mean() for e in equal]))}


if __name__ == "__main__":
    main()
