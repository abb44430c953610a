"""Pictures of a comparison of rules: where on the image tokens were accepted, and speed against tau."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..runtime.plan import TokenPlan
from ..runtime.rules.base import Cause


def plot_accepts(causes: Mapping[str, np.ndarray], plan: TokenPlan, file: Path) -> None:
    """For each setting, two maps of the image: the share of tokens that were accepted drafts, and of relaxed ones.

    causes int8 [images, rows * columns], as in `Output.causes`, by the setting's name.
    """
    figure = Figure(figsize=(2.3 * max(2, len(causes)), 5.2), layout="constrained")
    relaxed = [cause for cause in Cause if cause.relaxed]
    maps = (("accepted", lambda c: c != Cause.DRAWN), ("relaxed", lambda c: np.isin(c, relaxed)))
    axes = figure.subplots(len(maps), len(causes), squeeze=False)
    for column, (name, values) in enumerate(causes.items()):
        for row, (what, choose) in enumerate(maps):
            share = choose(values).mean(0).reshape(plan.rows, plan.columns)
            shown = axes[row, column].imshow(share, vmin=0, vmax=1, cmap="viridis")
            axes[row, column].set_title(f"{name}\n{what} {100 * share.mean():.0f} %", fontsize=8)
            axes[row, column].set_axis_off()
    figure.colorbar(shown, ax=axes[:, -1], shrink=0.7)
    _save(figure, file)


def plot_speed(rows: Sequence[Mapping[str, float | str]], file: Path) -> None:
    """Speed-up over plain decoding against tau, a point for each row of the table."""
    figure = Figure(figsize=(6.5, 4.5), layout="constrained")
    axis = figure.subplots()
    for row in rows:
        label = f"{row['rule']} {row['tree'] or ''}"
        axis.plot([row["tau"]], [row["speed_up"]], "o")
        axis.annotate(label, (row["tau"], row["speed_up"]), textcoords="offset points", xytext=(5, 3), fontsize=7)
    axis.axhline(1, color="gray", lw=0.8)
    axis.set_xlabel("tau, tokens per target call")
    axis.set_ylabel("speed-up over plain decoding, same run")
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
    FigureCanvasAgg(figure).print_figure(file, dpi=110)
