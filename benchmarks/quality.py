"""What a benchmark's images are worth: the judge's figures beside the speed, paired with plain decoding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from ..commands.progress import progress
from ..commands.tables import Rows
from ..evaluation.draw import OTHER_SEED, Drawing, draw, speed
from ..evaluation.format import interval, number, percent
from ..evaluation.paired import interval as bootstrap_interval
from ..evaluation.report import make_row, paired, spread
from ..evaluation.score import score_images
from ..runtime.pipeline import Pipeline
from ..runtime.rules.registry import PLAIN

if TYPE_CHECKING:
    from ..evaluation.captions import Caption
    from ..evaluation.means import Means


def judge_rows(
    pipe: Pipeline, means: Means, rows: Sequence[dict[str, Any]], asked: Sequence[Caption], seed: int, folder: Path,
) -> dict[str, Any]:  # fmt: skip
    """Draws every setting's images of `asked` into `folder`, judges them and adds the figures to its row.

    The first row is plain decoding; it is also drawn with other seeds, which tells how far apart equal settings lie.
    Images that are there from an earlier call are not drawn again. Returns what belongs beside the rows.
    """
    drawings = [Drawing(row["rule"], row["tree"], seed, _name(row)) for row in rows]
    drawings.append(Drawing(PLAIN, None, seed + OTHER_SEED, f"{PLAIN}, other seeds"))
    judged = []
    with progress() as bar:
        total = len(asked) * pipe.manifest.model.plan.length
        tasks = [bar.add_task(drawing.name, total=total) for drawing in drawings]
        for drawing, task in zip(drawings, tasks, strict=True):
            images = draw(
                pipe, drawing, asked, folder / drawing.folder_name,
                lambda done, task=task: bar.update(task, completed=done),
            )  # fmt: skip
            scores = score_images(images, asked, means.judge, means.maker, means.gallery)
            judged.append(make_row(drawing.name, "drawn", scores, means.reference, speed(images)))
    for row, one in zip(rows, judged[:-1], strict=True):
        row |= {name: one.figures[name] for name in ("tau", "tau_interval", "relaxed_share")}
        row["speed_up_interval"] = list(bootstrap_interval(np.array(row["speed_ups"]), np.median))
        row["quality"] = one.figures | {"against_plain": paired(judged[0], one)}
    add_flat_cost(rows)
    return {"judged": len(asked), "spread": spread(judged[0], judged[-1])}


def add_flat_cost(rows: Sequence[dict[str, Any]]) -> None:
    """Adds `flat_cost_speed_up`, computed, not measured: what tau would give if verifying a tree cost as much as
    decoding one token, as it nearly does on a large GPU. Drafting and host keep their measured cost."""
    one = rows[0]["ms_per_round"]
    for row in rows:
        rest = row["ms_per_round"] - row["ms_per_stage"]["verify"]
        row["flat_cost_speed_up"] = row["tau"] * one / (rows[0]["ms_per_stage"]["verify"] + rest)


def _name(row: dict[str, Any]) -> str:
    return row["rule"] if row["tree"] is None else f"{row['rule']} {row['tree']}"


def show(rows: Sequence[dict[str, Any]]) -> None:
    """The table of quality, on stdout; `rows` are those of the benchmark, each with its `quality`."""
    columns = ("rule", "tree", "speed-up", "flat cost", "tau", "relaxed", "concept", "- ar (95 %)", "nearest",
               "- ar (95 %)", "Fréchet", "precision", "recall")  # fmt: skip
    table = Rows(columns, keys=2)
    for row in rows:
        q = row["quality"]
        low, high = row["tau_interval"]
        table.add(
            row["rule"], row["tree"] or "-", f"{row['speed_up']:.2f}x", f"{row['flat_cost_speed_up']:.2f}x",
            f"{row['tau']:.2f} ({low:.2f} to {high:.2f})", f"{100 * row['relaxed_share']:.1f} %",
            percent(q["concept"]), interval(q["against_plain"]["concept"]),
            percent(q["nearest"]), interval(q["against_plain"]["nearest"]),
            *(number(q[name]) for name in ("frechet", "precision", "recall")),
        )  # fmt: skip
    table.print()
    click.echo(
        "accuracies in per cent; differences in points, paired by prompt and seed; flat cost: computed, not measured, "
        "for verification as cheap as decoding one token"
    )  # fmt: skip
