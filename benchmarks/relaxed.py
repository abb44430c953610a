"""`python -m cascade_trt.benchmarks.relaxed`: relaxed rules on several trees, quality beside accepted length.

Every setting draws the same prompts with the same seeds; the demo's judge says what the images are worth, paired with
those of plain decoding. Plain decoding is drawn with several sets of seeds: how far these lie apart is what chance
alone does. Workers with one thread each draw a setting at a time into a folder; images that are there already, from
the same bundle, are not drawn again, so a second call goes on where the first one stopped. Speed is measured afterwards
in one process, images in turn (`--speed 0` leaves it out: on a busy machine it says nothing).

    cascade-trt build emoji --tree mixed_24 --tree chain_7 --tree small_6 --out build/emoji-relaxed
    python -m cascade_trt.benchmarks.relaxed
"""

from __future__ import annotations

import json
import multiprocessing
import os
from itertools import combinations
from pathlib import Path
from typing import Any

import click

from ..evaluation.draw import OTHER_SEED, Drawing, draw, open_image, speed
from ..evaluation.means import Means, captions_to_draw, load_means
from ..evaluation.report import Row, make_row, paired, spread
from ..evaluation.score import score_images
from ..runtime.pipeline import Pipeline
from ..runtime.rules.registry import PLAIN
from ..runtime.tree import get_tree
from . import RESULTS
from .gpu_costs import computed
from .machine import describe_machine
from .seeds import larger
from .timing import in_turn

_SETS = 3  # sets of seeds of plain decoding
_PAIRS = (0.95, 0.9, 0.8, 0.7)  # tau_pos and tau_seq alike
SETTINGS: tuple[tuple[str, str], ...] = (
    *((f"cascade:children=coupled,tau_pos={tau},tau_seq={tau}", "mixed_20x4") for tau in _PAIRS),
    ("cascade:children=coupled,tau_pos=off,tau_seq=0.8", "mixed_24"),
    ("strict", "small_6"),
    *((f"cascade:tau_pos={tau},tau_seq={tau}", "small_6") for tau in _PAIRS),
    ("lantern:children=coupled,delta=0.2", "mixed_24"),
    ("cool:children=coupled,delta=1.1", "mixed_24"),
    ("cool:children=coupled,delta=1.1,lookahead=on", "mixed_24"),
    *((f"swap:tau_draw={tau},balance=0.2", "mixed_24") for tau in (0.8, 0.68)),
)


@click.command()
@click.option("--bundle", type=click.Path(path_type=Path), default=Path("build/emoji-relaxed"), show_default=True)
@click.option("--prompts", type=int, default=500, show_default=True)
@click.option("--workers", type=int, default=os.cpu_count() or 1, show_default=True)
@click.option("--speed", type=int, default=12, show_default=True, help="Images of each setting that are timed.")
@click.option("--images", type=click.Path(path_type=Path), default=Path("outputs/relaxed"), show_default=True)
@click.option("--json", "file", default="relaxed.json", show_default=True, help="File in benchmarks/results.")
def main(bundle: Path, prompts: int, workers: int, speed: int, images: Path, file: str) -> None:
    """Draws and judges all settings."""
    plain = [Drawing(PLAIN, None, OTHER_SEED * number, f"{PLAIN}, seeds {number}") for number in range(_SETS)]
    drawings = [*plain, *(Drawing(rule, tree, 0, f"{rule} {tree}") for rule, tree in SETTINGS)]
    given = [(bundle, drawing, prompts, images / drawing.folder_name) for drawing in drawings]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for number, name in enumerate(pool.imap(_draw, given, chunksize=1), 1):
            click.echo(f"{number} of {len(drawings)} drawn: {name}")
    means = load_means(None)
    judged = [_judge(means, drawing, prompts, folder) for _, drawing, _, folder in given]
    rows = judged[: len(plain)], judged[len(plain) :]
    assert means.reference is not None  # the demo's
    features = {row.name: row.scores.features for row in judged if row.scores.features is not None}
    farther = larger(features, judged[0].name, means.reference.features)
    timed = _timed(bundle, means, speed) if speed else {}
    content = {
        "machine": describe_machine(None), "bundle": bundle.name, "prompts": prompts, "speed_images": speed,
        "plain": [_figures(row) for row in rows[0]],
        "spread": [spread(a, b) for a, b in combinations(rows[0], 2)],
        "rows": [
            {"rule": rule, "tree": tree} | _figures(row) | timed.get(row.name, {})
            | {"computed": _computed(row, tree)}
            | {"against_plain": paired(judged[0], row) | {"frechet_interval": farther[row.name]["more"]}}
            for (rule, tree), row in zip(SETTINGS, rows[1], strict=True)
        ],
    }  # fmt: skip
    (RESULTS / file).write_text(json.dumps(content, indent=1) + "\n")
    for row in judged:
        of = row.figures
        click.echo(f"tau {of['tau']:.2f} concept {of['concept']:.3f} Fréchet {of['frechet']:.2f} {row.name}")


def _draw(given: tuple[Path, Drawing, int, Path]) -> str:
    bundle, drawing, prompts, folder = given
    with Pipeline.load(bundle, threads=1) as pipe:
        draw(pipe, drawing, captions_to_draw(None, load_means(None), prompts), folder, lambda _done: None)
    return drawing.name


def _timed(bundle: Path, means: Means, count: int) -> dict[str, dict[str, Any]]:
    """Speed of every setting, with all threads."""
    with Pipeline.load(bundle) as pipe:
        settings: dict[str, tuple[str, str | None]] = {f"{rule} {tree}": (rule, tree) for rule, tree in SETTINGS}
        return in_turn(pipe, settings, [caption.prompt for caption in captions_to_draw(None, means, count)])


def _judge(means: Means, drawing: Drawing, prompts: int, folder: Path) -> Row:
    images = [open_image(folder / f"{number:05d}.png") for number in range(prompts)]
    scores = score_images(images, captions_to_draw(None, means, prompts), means.judge, means.maker, means.gallery)
    return make_row(drawing.name, "drawn", scores, means.reference, speed(images))


def _computed(row: Row, tree: str) -> dict[str, float]:
    """What the tokens a call would bring on an H200, the rule's own work left out."""
    shape = get_tree(tree)
    levels = 0 if shape.drafted is None else shape.drafted.depth
    return computed(row.figures["tau"], shape.size, levels)


def _figures(row: Row) -> dict[str, Any]:
    return {name: value for name, value in row.figures.items() if name != "images_per_second"}


if __name__ == "__main__":
    main()
