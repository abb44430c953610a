"""`cascade-trt eval`: draws or reads images, and says how good they are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from ..runtime.errors import CascadeError
from ..runtime.pipeline import Pipeline
from ..runtime.rules.registry import PLAIN
from ..runtime.staging import write_file
from .counts import check_count
from .demo import bundle_or_demo
from .files import check_writable
from .judge import judge_with
from .loader import Loader
from .progress import progress

if TYPE_CHECKING:
    from PIL import Image

    from ..evaluation.captions import Caption
    from ..evaluation.means import Means
    from ..evaluation.report import Row

_IN_SHEET = 24


def run(
    *, bundle: Path | None, rules: tuple[str, ...], tree: str | None, num_images: int, seed: int,
    prompts: Path | None, images: tuple[Path, ...], captions: tuple[Path, ...], judge: str | None,
    features: Path | None, reference: Path | None, spread: bool, out: Path, loader: Loader, as_json: bool,
) -> None:  # fmt: skip
    """Sets of images one after the other; the report is written when all of them are there."""
    try:
        import torch

        from ..evaluation import report
        from ..evaluation.sheet import write_sheet
        from .eval_tables import doubts, show
    except ImportError as error:
        raise CascadeError(
            f"{error.name} is not installed: run `pip install 'cascade-trt[eval]'` to evaluate images."
        ) from None
    check_count("--num-images", num_images)
    if len(captions) > len(images):
        raise CascadeError("--captions belongs to --images: give a folder of images for each.")
    check_writable(out)
    if loader.threads:
        torch.set_num_threads(loader.threads)
    means = judge_with(judge, features, reference)
    rows, shown = _real(means, num_images), []
    for number, folder in enumerate(images):
        _read(means, folder, captions[number] if number < len(captions) else folder / "captions.jsonl", rows, shown)
    drawn: list[Row] = []
    if bundle is not None or not images:
        from ..evaluation.means import captions_to_draw

        asked = captions_to_draw(prompts, means, num_images)
        bundle = bundle_or_demo(bundle)
        pipe = loader.load(bundle)
        drawn = _draw(pipe, means, asked, rules or (PLAIN,), tree, seed, spread, out, shown)
    rows += drawn
    first = drawn[: len(drawn) - spread]
    pairs = [report.paired(a, b) for a, b in combinations(first, 2)]
    apart = report.spread(next(r for r in drawn if r.name == PLAIN), drawn[-1]) if spread and drawn else None
    about = {"bundle": str(bundle) if drawn else None, "seed": seed, "judge": str(means.judge_file)}
    text = report.to_json(rows, pairs, apart, about)
    write_file(out / "report.json", text.encode())
    write_sheet(out / "sheet.png", shown, _IN_SHEET)
    if as_json:
        click.echo(text, nl=False)
    else:
        show(rows, pairs, apart)
        click.echo(f"{out / 'report.json'}\n{out / 'sheet.png'}")
    for sentence in doubts(rows):
        click.echo(f"Warning: {sentence}", err=True)


def _real(means: Means, count: int) -> list[Row]:
    """Rows of the real images and their reconstructions that came with the judge."""
    from ..evaluation.real import judge_prompts, load_real, real_scores
    from ..evaluation.report import make_row

    real = load_real(means.judge_file) if means.judge_file is not None else None
    if real is None or means.judge is None or means.judge_file is None:
        return []
    scores = real_scores(real, judge_prompts(means.judge_file), means.judge, count, means.maker is None)
    return [make_row(name, "real", answers, means.reference, {}) for name, answers in scores.items()]


def _read(means: Means, folder: Path, captions: Path, rows: list[Row], shown: list[Any]) -> None:
    """Adds the row of a folder of images."""
    from ..evaluation.captions import read_captions, understand
    from ..evaluation.images import read_images

    asked = read_captions(captions, with_files=True)
    asked = understand(asked, means.judge.config) if means.judge is not None else asked
    _add(means, folder.name or str(folder), "images", read_images(folder, asked), asked, {}, rows, shown)


def _add(
    means: Means, name: str, kind: str, images: Sequence[Image.Image], asked: Sequence[Caption], more: dict[str, Any],
    rows: list[Row], shown: list[Any],
) -> None:  # fmt: skip
    """Judges a set, and adds its row and its section of the contact sheet."""
    from ..evaluation.report import make_row
    from ..evaluation.score import score_images
    from ..evaluation.sheet import Section

    scores = score_images(images, asked, means.judge, means.maker, means.gallery)
    rows.append(make_row(name, kind, scores, means.reference, more))
    right = scores.concept if np.isnan(scores.nearest).all() else scores.nearest  # the fairer one to held-out pairs
    shown.append(Section(name, images[:_IN_SHEET], [c.prompt for c in asked[:_IN_SHEET]], right))


def _draw(
    pipe: Pipeline, means: Means, asked: list[Caption], rules: tuple[str, ...], tree: str | None, seed: int,
    spread: bool, out: Path, shown: list[Any],
) -> list[Row]:  # fmt: skip
    """Rows of all drawn sets, the second one of --spread last."""
    from ..evaluation.draw import draw, speed

    rows: list[Row] = []
    drawings = _drawings(rules, tree, seed, spread)
    tokens = len(asked) * pipe.manifest.model.plan.length
    with progress() as bar:
        tasks = [bar.add_task(drawing.name, total=tokens) for drawing in drawings]
        for drawing, task in zip(drawings, tasks, strict=True):

            def advance(done: int, task: Any = task) -> None:
                bar.update(task, completed=done)

            folder = out / drawing.folder_name
            try:
                images = draw(pipe, drawing, asked, folder, advance)
            except KeyboardInterrupt:
                kept = len(list(folder.glob("*.png")))
                click.echo(f"{kept} images are kept in {folder}; the same command goes on from there.", err=True)
                raise
            more = speed(images) | {"tree": pipe.tree_for(drawing.rule, drawing.tree)}
            _add(means, drawing.name, "drawn", images, asked, more, rows, shown)
    return rows


def _drawings(rules: tuple[str, ...], tree: str | None, seed: int, spread: bool) -> list[Any]:
    from ..evaluation.draw import OTHER_SEED, Drawing

    chosen = dict.fromkeys((PLAIN, *rules) if spread else rules)  # each rule once, in the order given
    drawings = [Drawing(rule, tree, seed, rule) for rule in chosen]
    if spread:
        other = seed + OTHER_SEED
        drawings.append(Drawing(PLAIN, None, other, f"{PLAIN}, seed {other}"))
    return drawings
