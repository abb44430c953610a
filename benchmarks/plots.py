"""Images of a comparison of rules: where on the image tokens were accepted, and speed against tau."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..commands.tables import wrapped
from ..runtime.plan import TokenPlan
from ..runtime.rules.base import Cause
from ..runtime.staging import write_file

_SIDE, _ACROSS, _LETTERS = 2.4, 5, 30  # inches of a map, maps beside each other, letters in a line above one


def plot_accepts(causes: Mapping[str, np.ndarray], plan: TokenPlan, file: Path) -> None:
    """For each setting, two maps of the image: the share of tokens that were accepted drafts, and of relaxed ones.

    causes int8 [images, rows * columns], as in `Output.causes`, by the setting's name.
    """
    relaxed = [cause for cause in Cause if cause.relaxed]
    maps = (("accepted", lambda c: c != Cause.DRAWN), ("relaxed", lambda c: np.isin(c, relaxed)))
    across = min(_ACROSS, len(causes))
    bands = -(-len(causes) // across)  # of settings; each has a row for each map
    titles = [wrapped(name, _LETTERS) for name in causes]
    lines = max(title.count("\n") for title in titles)
    size = (_SIDE * across + 1.2, bands * (2 * _SIDE + 0.3 + 0.15 * lines))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(maps) * bands, across, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for number, values in enumerate(causes.values()):
        for row, (what, choose) in enumerate(maps):
            axis = axes[len(maps) * (number // across) + row, number % across]
            share = choose(values).mean(0).reshape(plan.rows, plan.columns)
            shown = axis.imshow(share, vmin=0, vmax=1, cmap="viridis")
            said = f"{what} {100 * share.mean():.0f} %"
            axis.set_title(f"{titles[number]}\n{said}" if row == 0 else said, fontsize=8)
    figure.colorbar(shown, ax=axes, shrink=min(1, 1.5 / bands), label="share of the images")
    _save(figure, file)


def plot_speed(rows: Sequence[Mapping[str, float | str]], file: Path) -> None:
    """Speed-up over plain decoding against tau, a numbered point for each row of the table."""
    names = [wrapped(f"{row['rule']} {row['tree'] or ''}".strip(), 2 * _LETTERS) for row in rows]
    lines = sum(name.count("\n") + 1 for name in names)
    figure = Figure(figsize=(10, max(4.5, 0.2 * lines)), layout="constrained")
    axis = figure.subplots()
    for number, (row, name) in enumerate(zip(rows, names, strict=True), start=1):
        axis.plot([row["tau"]], [row["speed_up"]], "o", color=f"C{number - 1}", label=f"{number}  {name}")
        axis.annotate(f"{number}", (row["tau"], row["speed_up"]), textcoords="offset points", xytext=(5, 3))
    axis.axhline(1, color="gray", lw=0.8)
    axis.set_xlabel("tau, tokens per target call")
    axis.set_ylabel("speed-up over plain decoding, same run")
    figure.legend(loc="outside right upper", fontsize=8)
    _save(figure, file)


def plot_quality(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Accuracy lost against plain decoding, with its 95 % interval, over tau and over speed-up; a colour for each rule.

    The first row is plain decoding itself.
    """
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    kinds = list(dict.fromkeys(row["rule"].split(":")[0] for row in rows[1:]))
    for axis, over in zip(figure.subplots(1, 2, sharey=True), ("tau", "speed_up"), strict=True):
        for kind in kinds:
            mine = sorted((row for row in rows[1:] if row["rule"].split(":")[0] == kind), key=lambda row: row[over])
            lost = [row["quality"]["against_plain"]["concept"] for row in mine]
            if any(value is None for value in lost):
                continue
            means = np.array([100 * value["mean"] for value in lost])
            bars = np.abs(np.array([[100 * value[end] for value in lost] for end in ("low", "high")]) - means)
            x = [row[over] for row in mine]
            axis.errorbar(x, means, bars, fmt="o-", ms=4, lw=1, capsize=2, label=kind, color=f"C{kinds.index(kind)}")
        axis.axhline(0, color="gray", lw=0.8)
        axis.set_xlabel("tau, tokens per target call" if over == "tau" else "speed-up over plain decoding, same run")
    figure.axes[0].set_ylabel("concept accuracy - plain decoding's, points")
    figure.axes[0].legend(fontsize=8)
    _save(figure, file)


def _save(figure: Figure, file: Path) -> None:
    drawn = BytesIO()
    FigureCanvasAgg(figure).print_figure(drawn, dpi=110, format="png")
    write_file(file, drawn.getvalue())
