"""The evaluation's report: rows of figures, paired differences and the spread between seeds; as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .paired import compare
from .score import QUESTIONS, Reference, Scores, figures

DISTANCES = ("frechet", "frechet_held_out", "precision", "recall")
SPEED = ("tau", "images_per_second")


@dataclass(frozen=True)
class Row:
    """One set of images. `kind` is real, images or drawn; `run` tells drawn sets of other seeds apart."""

    name: str
    kind: str
    scores: Scores
    figures: dict[str, Any]


def make_row(name: str, kind: str, scores: Scores, reference: Reference | None, more: dict[str, Any]) -> Row:
    return Row(name, kind, scores, figures(scores, reference) | more)


def paired(first: Row, second: Row) -> dict[str, Any]:
    """Second - first for every accuracy over pairs of images, with bootstrap bounds; distances as they are."""
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
