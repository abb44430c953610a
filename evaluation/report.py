"""The evaluation's report: rows of figures, paired differences and the spread between seeds; as JSON and as tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..runtime.errors import CascadeError
from .format import interval, number, percent, points
from .paired import compare
from .score import QUESTIONS, Reference, Scores, figures

DISTANCES = ("frechet", "frechet_held_out", "precision", "recall")
SPEED = ("tau", "images_per_second")


@dataclass(frozen=True)
class Row:
    """One set of pictures. `kind` is real, images or drawn; `run` tells drawn sets of other seeds apart."""

    name: str
    kind: str
    scores: Scores
    figures: dict[str, Any]


def make_row(name: str, kind: str, scores: Scores, reference: Reference | None, more: dict[str, Any]) -> Row:
    return Row(name, kind, scores, figures(scores, reference) | more)


def paired(first: Row, second: Row) -> dict[str, Any]:
    """Second - first for every accuracy over pairs of pictures, with bootstrap bounds; distances as they are."""
    content: dict[str, Any] = {"first": first.name, "second": second.name}
    for name in QUESTIONS:
        difference = compare(getattr(first.scores, name), getattr(second.scores, name))
        content[name] = None if difference is None else asdict(difference)
    return content | {name: _minus(second, first, name) for name in DISTANCES}


def spread(first: Row, second: Row) -> dict[str, Any]:
    """How far two sets of the same rule with other seeds lie apart: |difference| of every figure."""
    names = (*QUESTIONS, *DISTANCES, *SPEED)
    content: dict[str, Any] = {"first": first.name, "second": second.name}
    for name in names:
        change = _minus(second, first, name)
        content[name] = None if change is None else abs(change)
    return content


def _minus(second: Row, first: Row, name: str) -> float | None:
    a, b = first.figures.get(name), second.figures.get(name)
    return None if a is None or b is None else b - a


def to_json(
    rows: Sequence[Row], pairs: Sequence[dict[str, Any]], apart: dict[str, Any] | None, about: dict[str, Any]
) -> str:
    content = about | {
        "rows": [{"name": row.name, "kind": row.kind} | row.figures for row in rows],
        "paired": list(pairs),
        "spread": apart,
    }
    return json.dumps(content, indent=1) + "\n"


def write_text(file: Path, text: str) -> None:
    """Staged and renamed. Raises CascadeError when the file cannot be written."""
    staged = file.with_name(f".{file.name}.part")
    try:
        staged.write_text(text)
        staged.replace(file)
    except OSError as error:
        raise CascadeError(f"cannot write {file} ({error.strerror}): choose another --out.") from None


def show(rows: Sequence[Row], pairs: Sequence[dict[str, Any]], apart: dict[str, Any] | None, console: Console) -> None:
    """The tables. Accuracies in percent."""
    console.print(_figures_table(rows))
    if any(row.figures["groups"] for row in rows):
        console.print(_groups_table(rows))
    drawn = [row for row in rows if row.kind == "drawn"]
    if drawn:
        console.print(_speed_table(drawn))
    if apart is not None:
        console.print(_spread_table(apart))
    if pairs:
        console.print(_paired_table(pairs))


def _figures_table(rows: Sequence[Row]) -> Table:
    table = Table("pictures", "n", "concept", "top 5", "nearest", "style", "background", "Fréchet",
                  "precision", "recall", title="figures")  # fmt: skip
    for row in rows:
        f = row.figures
        table.add_row(row.name, str(f["images"]), *(percent(f[name]) for name in QUESTIONS), number(f["frechet"]),
                      number(f["precision"]), number(f["recall"]))  # fmt: skip
    return table


def _groups_table(rows: Sequence[Row]) -> Table:
    groups = sorted({group for row in rows for group in row.figures["groups"]})
    table = Table("concept / nearest", *groups, "Fréchet, held-out", title="by group of prompts")
    for row in rows:
        of = row.figures["groups"]
        table.add_row(row.name, *(_group(of.get(group)) for group in groups), number(row.figures["frechet_held_out"]))
    return table


def _group(of: dict[str, Any] | None) -> str:
    return "-" if of is None else f"{percent(of['concept'])} / {percent(of['nearest'])} of {of['images']}"


def _speed_table(rows: Sequence[Row]) -> Table:
    table = Table("rule", "tree", "tau", "images/s", title="speed of this run")
    for row in rows:
        f = row.figures
        table.add_row(row.name, f.get("tree") or "-", number(f.get("tau")), number(f.get("images_per_second")))
    return table


def _spread_table(apart: dict[str, Any]) -> Table:
    names = (*QUESTIONS, *DISTANCES)
    table = Table(*(name.replace("_", " ") for name in names), title=f"spread: {apart['first']} and {apart['second']}")
    table.add_row(*(points(apart[n]) if n in QUESTIONS else number(apart[n]) for n in names))
    return table


def _paired_table(pairs: Sequence[dict[str, Any]]) -> Table:
    names = (*QUESTIONS, *DISTANCES)
    table = Table("second - first", *(name.replace("_", " ") for name in names),
                  title="paired by prompt and seed: points, 95 % bootstrap interval")  # fmt: skip
    for pair in pairs:
        table.add_row(f"{pair['second']} - {pair['first']}", *(interval(pair[n]) for n in QUESTIONS),
                      *(number(pair[n], sign="+") for n in DISTANCES))  # fmt: skip
    return table
