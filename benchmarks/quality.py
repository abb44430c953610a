"""What a benchmark's pictures are worth: the judge's figures beside the speed, paired with plain decoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ..evaluation.paired import interval
from ..evaluation.report import Row, make_row, paired
from ..evaluation.score import score_images
from ..runtime.stats import Stats

if TYPE_CHECKING:
    from PIL import Image

    from ..evaluation.captions import Caption
    from ..evaluation.means import Means


def judged(means: Means, name: str, images: Sequence[Image.Image], asked: Sequence[Caption]) -> Row:
    """The row of one setting's pictures; `asked` are the captions of all of them, in order."""
    scores = score_images(images, asked, means.judge, means.maker, means.gallery)
    return make_row(name, "drawn", scores, means.reference, {})


def quality(plain: Row, row: Row) -> dict[str, Any]:
    """A setting's figures, and its paired differences from plain decoding with the same prompts and seeds."""
    return row.figures | {"against_plain": paired(plain, row)}


def intervals(plain: Sequence[Stats], runs: Sequence[Stats]) -> dict[str, Any]:
    """95 % bootstrap intervals over pictures of tau and of the speed-up (median of the ratios picture by picture)."""
    rounds = np.array([run.rounds / run.tokens for run in runs])  # its mean is 1 / tau, all pictures being equally long
    ratios = np.array([a.total_seconds / b.total_seconds for a, b in zip(plain, runs, strict=True)])
    low, high = interval(rounds, np.mean)
    return {"tau_interval": [1 / high, 1 / low], "speed_up_interval": list(interval(ratios, np.median))}


def show(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """The table of quality; `rows` are those of the benchmark, each with its `quality`."""
    table = Table("rule", "tree", "speed-up", "tau", "concept", "- ar (95 %)", "nearest", "- ar (95 %)", "Fréchet",
                  "precision", "recall")  # fmt: skip
    for row in rows:
        q = row["quality"]
        low, high = row["tau_interval"]
        table.add_row(
            row["rule"], row["tree"] or "-", f"{row['speed_up']:.2f}x", f"{row['tau']:.2f} ({low:.2f} to {high:.2f})",
            _percent(q["concept"]), _difference(q["against_plain"]["concept"]),
            _percent(q["nearest"]), _difference(q["against_plain"]["nearest"]),
            *("-" if q[name] is None else f"{q[name]:.3f}" for name in ("frechet", "precision", "recall")),
        )  # fmt: skip
    console.print(table)
    console.print("accuracies in per cent; differences in points, paired by prompt and seed", highlight=False)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _difference(value: dict[str, float] | None) -> str:
    if value is None:
        return "-"
    mean, low, high = (100 * value[name] for name in ("mean", "low", "high"))
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"
