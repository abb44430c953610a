"""`python -m cascade_trt.benchmarks.refill`: what refilling slots is worth, against batches that wait for the slowest.

Images need different numbers of rounds where guesses are accepted. Three ways of drawing the same images through the
same slots, in turn within one process:

* lock-step: a batch of as many images as there are slots; calls keep their size until the last of them is done.
* waves: the same batches, but a slot that is done costs nothing: calls shrink, and its cache's place is closed.
* refilled: a slot that is done takes the next image (`Batch`, what `Pipeline.generate` does).
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from ..calibration.subjects import PROMPTS, request
from ..runtime.batch import Batch
from ..runtime.options import DrawOptions
from ..runtime.pipeline import Pipeline
from . import RESULTS
from .machine import describe_machine


class LockStep(Batch):
    """A batch that begins when all its slots are free, and keeps every slot in its calls until all are done."""

    def _seat(self) -> None:
        if any(slot is not None for slot in self._slots):
            return
        self._slots.clear()
        super()._seat()


def submit(pipe: Pipeline, batch: Batch, prompts: tuple[str, ...], numbers: range, seed: int) -> list[Any]:
    """Jobs of images `numbers`: prompt i (from the first again after the last), seed + i."""
    return [batch.submit(request(pipe.manifest, prompts, i, seed + i)) for i in numbers]


def run(
    pipe: Pipeline, kind: type[Batch], waves: bool, slots: int, images: int, prompts: tuple[str, ...], seed: int,
    options: DrawOptions,
) -> tuple[float, int, list[np.ndarray]]:  # fmt: skip
    """Seconds, calls of the target and the codes of all images, drawn through a batch of `kind`."""
    batch = pipe.batch(slots, options=options)
    batch.__class__ = kind  # its scheduling is the only difference
    submit(pipe, batch, prompts, range(1), seed)[0].result()  # warms up
    before, started = batch.stats.target_calls, time.perf_counter()
    jobs = []
    size = slots if waves else images
    for begin in range(0, images, size):
        jobs += submit(pipe, batch, prompts, range(begin, min(begin + size, images)), seed)
        while not batch.idle:
            batch.step()
    seconds = time.perf_counter() - started
    return seconds, batch.stats.target_calls - before, [job.result().codes for job in jobs]


def _share_of_equal(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    return float(np.mean([(a == b).all() for a, b in zip(one, other, strict=True)]))


WAYS: dict[str, tuple[type[Batch], bool]] = {
    "lock-step": (LockStep, True), "waves": (Batch, True), "refilled": (Batch, False),
}  # fmt: skip


@click.command()
@click.option("--bundle", type=click.Path(path_type=Path), default=Path("build/emoji"), show_default=True)
@click.option("--rule", default="exact", show_default=True, help="One that accepts guesses: images differ in rounds.")
@click.option("--tree", default="mixed_16", show_default=True, help="The same in every round, so that calls compare.")
@click.option("--slots", type=int, default=8, show_default=True)
@click.option("--images", type=int, default=64, show_default=True)
@click.option("--repeats", type=int, default=3, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--threads", type=int)
@click.option("--json", "file", default="refill.json", show_default=True, help="File in benchmarks/results.")
def main(
    bundle: Path, rule: str, tree: str, slots: int, images: int, repeats: int, seed: int, threads: int | None,
    file: str,
) -> None:  # fmt: skip
    """Images per second of the three ways; the images are the same."""
    options = DrawOptions(rule=rule, tree=tree)
    with Pipeline.load(bundle, threads=threads) as pipe:
        found: dict[str, list[tuple[float, int]]] = {name: [] for name in WAYS}
        drawn: dict[str, list[np.ndarray]] = {}
        for _ in range(repeats):
            for name, (kind, waves) in WAYS.items():
                seconds, calls, codes = run(pipe, kind, waves, slots, images, PROMPTS, seed, options)
                found[name].append((seconds, calls))
                drawn[name] = codes
        manifest = pipe.manifest
    same = [_share_of_equal(codes, drawn["refilled"]) for codes in drawn.values()]
    rows = [
        {"way": name, "images_per_second": images / statistics.median(s for s, _ in runs), "target_calls": runs[0][1],
         "against_lock_step": statistics.median(b / a for (a, _), (b, _) in zip(runs, found["lock-step"], strict=True)),
         "same_images": share}
        for (name, runs), share in zip(found.items(), same, strict=True)
    ]  # fmt: skip
    content = {
        "machine": describe_machine(threads), "bundle": manifest.name, "rule": rule,
        "tree": tree, "slots": slots, "images": images, "repeats": repeats, "rows": rows,
    }  # fmt: skip
    (RESULTS / file).write_text(json.dumps(content, indent=1) + "\n")
    for row in rows:
        click.echo(
            f"{row['way']:>10}: {row['images_per_second']:.3f} images/s, {row['against_lock_step']:.2f} of lock-step, "
            f"{row['target_calls']} target calls, same images {100 * row['same_images']:.0f} %"
        )


if __name__ == "__main__":
    main()
