"""Images of a calibration: similarities by place in the tree, and speed against quality."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..runtime.staging import write_file
from .thresholds import Point
from .watch import Similarities

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = {"none": "black", "breadth": "tab:blue", "depth": "tab:orange", "both": "tab:green", "draw": "tab:red"}


def plot_similarities(seen: Similarities, file: Path) -> None:
    """Histograms of each kind of cosines over all depths, and heat maps by depth (after the paper's figure 3).

    1 - price has no lower end: what is below -1 is shown at -1.
    """
    plt = _pyplot()
    kinds = {"cosines of siblings": seen.breadth, "cosines of parent and child": seen.depth}
    if seen.draw:
        kinds["1 - price of the draw's stand-in"] = seen.draw
    figure, axes = plt.subplots(len(kinds), 2, figsize=(9, 3 * len(kinds)))
    for row, (name, values) in enumerate(kinds.items()):
        depths = sorted(values)
        shown = {depth: np.maximum(values[depth], -1.0) for depth in depths}
        every = [value for depth in depths for value in shown[depth]]
        axes[row, 0].hist(every, bins=60, color="tab:blue")
        axes[row, 0].set_title(f"{name} ({len(every)})")
        bins = np.linspace(min(every, default=0), 1, 41)
        shares = [np.histogram(shown[d], bins)[0] / max(1, len(shown[d])) for d in depths]
        if shares:
            extent = (float(bins[0]), float(bins[-1]), depths[-1] + 0.5, depths[0] - 0.5)
            axes[row, 1].imshow(np.array(shares), aspect="auto", extent=extent, cmap="viridis")
        axes[row, 1].set_title(f"{name}, by depth")
        axes[row, 1].set_xlabel("similarity" if values is not seen.draw else "1 - price")
        axes[row, 1].set_ylabel("depth in the tree")
    figure.tight_layout()
    _save(figure, file)
    plt.close(figure)


def plot_curve(points: Sequence[Point], chosen: Point | None, file: Path) -> None:
    """Speed-up (or tau, without a judge) against accuracy; the operating point is circled."""
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(6.5, 4.5))
    for signals, colour in _COLOURS.items():
        line = [point for point in points if point.signals == signals]
        if not line:
            continue
        x = [point.speed_up for point in line]
        y = [point.tau if point.accuracy is None else point.accuracy for point in line]
        axis.plot(x, y, "o-", color=colour, label=signals)
        for point, where in zip(line, zip(x, y, strict=True), strict=True):
            label = "" if point.quantile is None else f"q {point.quantile:g}"
            axis.annotate(label, where, textcoords="offset points", xytext=(4, 4), fontsize=7)
    if chosen is not None and chosen.accuracy is not None:
        axis.plot([chosen.speed_up], [chosen.accuracy], "o", ms=14, mfc="none", color="tab:red",
                  label="operating point")  # fmt: skip
    axis.set_xlabel("speed-up over plain decoding, same run")
    axis.set_ylabel("tau" if all(point.accuracy is None for point in points) else "accuracy by the judge")
    axis.legend()
    figure.tight_layout()
    _save(figure, file)
    plt.close(figure)


def _save(figure: Figure, file: Path) -> None:
    drawn = BytesIO()
    figure.savefig(drawn, dpi=110, format="png")
    write_file(file, drawn.getvalue())


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
