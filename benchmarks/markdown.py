"""A comparison of rules as Markdown, for a README or an issue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..evaluation.format import interval, number, percent
from ..runtime.rules import RULE_NAMES
from ..runtime.tree import AUTO

_NOTE = (
    "Speed-up: median over {images} images drawn in turn by every row, against `ar` in the same run. "
    "tau: tokens per target call, the bonus token included."
)
_QUALITY_NOTE = (
    " Flat cost: computed, not measured, from tau for verification as cheap as decoding one token. Quality over "
    "{judged} prompts; in brackets 95 % bootstrap intervals, of accuracies paired with `ar` by prompt and seed. "
    "Two draws of `ar` with different seeds lie {concept:.1f} points of concept accuracy, {frechet:.2f} of Fréchet "
    "distance, {precision:.3f} of precision and {recall:.3f} of recall apart."
)


def to_markdown(content: dict[str, Any]) -> str:
    """The table of a report of `cascade-trt bench` (its JSON), remarks on its rows, and how it was measured."""
    rows, machine = content["rows"], content["machine"]
    note = _NOTE.format(images=content["images"])
    if "quality" in rows[0]:
        spread = content["spread"]
        apart = {name: spread[name] or 0.0 for name in ("frechet", "precision", "recall")}
        note += _QUALITY_NOTE.format(judged=content["judged"], concept=100 * (spread["concept"] or 0.0), **apart)
        lines = table(_QUALITY, [_quality_cells(row) for row in rows])
    else:
        lines = table(_SPEED, [_speed_cells(row) for row in rows])
    where = f"{machine['processor']}, {machine['cores']} cores, onnxruntime {machine.get('onnxruntime', '-')}"
    remarked = [line for said in remarks(rows) for line in ("", f"{said}.")]
    return "\n".join([lines, *remarked, "", f"{note} Machine: {where}.", ""])


def remarks(rows: Sequence[dict[str, Any]]) -> list[str]:
    """On the rows of a report: which rules have an operating point of the bundle, and what `auto` drew with."""
    tuned = {row["rule"]: row["means"] for row in rows if row["rule"] in RULE_NAMES and row["means"] != row["rule"]}
    return [
        f"{name} means {means} in this bundle; rules without such a point have their defaults"
        for name, means in tuned.items()
    ] + [
        f"{row['rule']} {AUTO}, rounds by tree: {_counts(row['trees'])}; last choice: {row['why']}"
        for row in rows
        if row["tree"] == AUTO
    ]


def _counts(trees: dict[str, int]) -> str:
    return ", ".join(f"{tree} {count}" for tree, count in trees.items())


_SPEED = ("rule", "tree", "speed-up", "tau", "relaxed", "ms a round: draft", "verify", "accept")
_QUALITY = ("rule", "tree", "tau", "speed-up", "flat cost", "relaxed", "concept", "against `ar`", "nearest", "Fréchet",
            "precision", "recall")  # fmt: skip


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns and cells as Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (columns, ["---"] * len(columns), *rows))


def _speed_cells(row: dict[str, Any]) -> list[str]:
    stages = [f"{row['ms_per_stage'][name]:.2f}" for name in ("draft", "verify", "accept")]
    return [f"`{row['rule']}`", row["tree"] or "-", f"{row['speed_up']:.2f}x", f"{row['tau']:.2f}",
            f"{100 * row['relaxed_share']:.1f} %", *stages]  # fmt: skip


def _quality_cells(row: dict[str, Any]) -> list[str]:
    q, fast, tau = row["quality"], row["speed_up_interval"], row["tau_interval"]
    return [
        f"`{row['rule']}`", row["tree"] or "-", f"{row['tau']:.2f} [{tau[0]:.2f}, {tau[1]:.2f}]",
        f"{row['speed_up']:.2f}x [{fast[0]:.2f}, {fast[1]:.2f}]", f"{row['flat_cost_speed_up']:.2f}x",
        f"{100 * row['relaxed_share']:.1f} %", percent(q["concept"]), interval(q["against_plain"]["concept"]),
        percent(q["nearest"]), number(q["frechet"]), number(q["precision"]), number(q["recall"]),
    ]  # fmt: skip
