"""The tables of `cascade-trt eval`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..evaluation.format import interval, number, percent, points
from ..evaluation.report import DISTANCES, Row
from ..evaluation.score import QUESTIONS
from .tables import Rows

# Images that a Fréchet distance needs for each feature. Of the judge's 64, real images are 5 away from other real ones
# where there are 100 of them, and 1 where there are 400; Inception's 2048 are used with 10000 images and more.
_IMAGES_A_FEATURE = 5


def show(rows: Sequence[Row], pairs: Sequence[dict[str, Any]], apart: dict[str, Any] | None) -> None:
    """The tables, on stdout. Accuracies in per cent."""
    _figures_table(rows).print()
    if any(row.figures["groups"] for row in rows):
        _groups_table(rows).print()
    drawn = [row for row in rows if row.kind == "drawn"]
    if drawn:
        _speed_table(drawn).print()
    if apart is not None:
        _spread_table(apart).print()
    if pairs:
        _paired_table(pairs).print()


def doubts(rows: Sequence[Row]) -> list[str]:
    """What the rows' distances cannot say, in a sentence each: too few images, or another number than other rows."""
    measured = [(row.name, row.scores.features) for row in rows if row.figures["frechet"] is not None]
    shapes = [(name, *of.shape) for name, of in measured if of is not None]
    said, by_count = [], {count: name for name, count, _ in reversed(shapes)}
    fewest, features = min((shape[1:] for shape in shapes), default=(0, 0))
    if fewest < (least := _IMAGES_A_FEATURE * features):
        said.append(
            f"a Fréchet distance of {fewest} images is due more to their number than to what they show: with "
            f"{features} features it takes at least {least} images to be stable."
        )
    if len(by_count) > 1:
        numbers = ", ".join(f"{name} {count}" for count, name in reversed(by_count.items()))
        said.append(
            f"distances compare only between rows of equally many images, and here are {numbers}: --num-images sets "
            "how many real and drawn ones are judged."
        )
    return said


def _figures_table(rows: Sequence[Row]) -> Rows:
    columns = ("images", "n", "concept", "top 5", "nearest", "style", "background", "Fréchet", "precision", "recall")
    table = Rows(columns, title="figures")
    for row in rows:
        f = row.figures
        table.add(row.name, str(f["images"]), *(percent(f[name]) for name in QUESTIONS), number(f["frechet"]),
                      number(f["precision"]), number(f["recall"]))  # fmt: skip
    return table


def _groups_table(rows: Sequence[Row]) -> Rows:
    groups = sorted({group for row in rows for group in row.figures["groups"]})
    table = Rows(("concept / nearest", *groups, "Fréchet, held-out"), title="by group of prompts")
    for row in rows:
        of = row.figures["groups"]
        table.add(row.name, *(_group(of.get(group)) for group in groups), number(row.figures["frechet_held_out"]))
    return table


def _group(of: dict[str, Any] | None) -> str:
    return "-" if of is None else f"{percent(of['concept'])} / {percent(of['nearest'])} of {of['images']}"


def _speed_table(rows: Sequence[Row]) -> Rows:
    table = Rows(("rule", "tree", "tau", "images/s"), title="speed of this run")
    for row in rows:
        f = row.figures
        table.add(row.name, f.get("tree") or "-", number(f.get("tau")), number(f.get("images_per_second")))
    return table


def _spread_table(apart: dict[str, Any]) -> Rows:
    names = (*QUESTIONS, *DISTANCES)
    title = f"spread: {apart['first']} and {apart['second']}"
    table = Rows(tuple(name.replace("_", " ") for name in names), title, keys=0)
    table.add(*(points(apart[n]) if n in QUESTIONS else number(apart[n]) for n in names))
    return table


def _paired_table(pairs: Sequence[dict[str, Any]]) -> Rows:
    names = (*QUESTIONS, *DISTANCES)
    table = Rows(("second - first", *(name.replace("_", " ") for name in names)),
                 title="paired by prompt and seed: points, 95 % bootstrap interval")  # fmt: skip
    for pair in pairs:
        table.add(f"{pair['second']} - {pair['first']}", *(interval(pair[n]) for n in QUESTIONS),
                      *(number(pair[n], sign="+") for n in DISTANCES))  # fmt: skip
    return table
