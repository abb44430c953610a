"""The results of `gpu.py` as one page: a section for each GPU, beside the aims of docs/gpu.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .markdown import table

Entry = dict[str, Any]
MOST_GAP, MOST_WIDE, LEAST_DEMO = 0.03, 1.3, 3.5  # the aims: share of a round, calls on one node, times plain decoding
WIDE = 60


def page(entries: Sequence[Entry]) -> str:
    """Markdown. `entries` are those of gpu.json."""
    parts = ["# What a GPU does", "Written by `python -m cascade_trt.benchmarks.gpu page` from gpu.json."]
    for gpu in dict.fromkeys(entry["gpu"] for entry in entries):
        parts.append(f"## {gpu or 'No GPU'}")
        for part, section in SECTIONS.items():
            found = [entry for entry in entries if (entry["gpu"], entry["part"]) == (gpu, part)]
            for entry in found:
                rounds = f", rounds of the {entry['rounds']}" if "rounds" in entry else ""
                parts += [f"### {part}: {entry['subject']}, {entry['backend']}{rounds}", section(entry)]
    return "\n\n".join(parts) + "\n"


def _parity(entry: Entry) -> str:
    rows = [["`ar`, four at a time", "`ar`, alone", *_shares(entry["ar_in_batches"])]]
    rows += [[f"`exact`, `{tree}`", "`ar`", *_shares(found)] for tree, found in entry["exact"].items()]
    if "cpu" in entry:
        rows.append(["`ar`", "`ar` of ort-cpu", *_shares(entry["cpu"])])
    return f"{entry['precision']}\n\n" + table(("drawn", "against", "equal images", "equal tokens"), rows)


def _shares(found: dict[str, float]) -> list[str]:
    return [f"{100 * found[name]:.1f} %" for name in ("images", "tokens")]


def _speed(entry: Entry) -> str:
    rows = [[f"`{row['tree']}`", str(row["slots"]), f"{row['images_per_second']:.2f}", f"{row['speed_up']:.2f}x",
             f"{row['tau']:.2f}", f"{100 * row['host_share']:.1f} %"] for row in entry["rows"]]  # fmt: skip
    said = table(("tree", "images at a time", "images/s", "speed-up", "tokens a call", "host"), rows)
    best = max((row for row in entry["rows"] if row["slots"] == 1), key=lambda row: row["speed_up"], default=None)
    if best is None:
        return said
    aim = f", aim {LEAST_DEMO}" if entry["subject"] == "emoji" else ""
    return f"{said}\n\nFastest alone: `{best['tree']}`, {best['speed_up']:.2f} times plain decoding{aim}."


def _calls(entry: Entry) -> str:
    rows, wide = [], []
    for row in entry["rows"]:
        for nodes, ms in zip(row["nodes"], row["ms"], strict=True):
            rows.append([str(row["slots"]), str(nodes), f"{ms:.2f}", f"{ms / row['ms'][0]:.2f}",
                         f"{ms / row['roofline_ms']:.1f}"])  # fmt: skip
            if nodes == WIDE and row["slots"] == 1:
                wide.append(f"\n\n{WIDE} nodes: {ms / row['ms'][0]:.2f} times one node, aim {MOST_WIDE} at most.")
    columns = "images", "nodes", "ms", "in calls on one node", "in readings of weights and cache"
    return f"A copy moves {entry['copy_gb_per_second']:.0f} GB/s.\n\n{table(columns, rows)}" + "".join(wide)


def _stages(entry: Entry) -> str:
    rows = []
    for row in entry["rows"]:
        longest = ", ".join(f"{name.removeprefix('kernel ')} {ms:.3f}" for name, ms in row["ms_by_stage"].items())
        rows.append([f"`{row['tree']}`", str(row["slots"]), f"{row['ms_a_round']:.3f}", f"{100 * row['gap']:.1f} %",
                     longest, f"{row['target_gb_per_second']:.0f}"])  # fmt: skip
    columns = (
        "tree",
        "images",
        "ms a round",
        f"waits for the host (aim: {MOST_GAP:.0%})",
        "ms by stage",
        "target's GB/s",
    )
    return f"Timed by {entry['clock']}.\n\n{table(columns, rows)}"


def _torch(entry: Entry) -> str:
    names = "eager_ms", "eager_in_a_graph_ms", "compiled_ms"
    rows = [[str(row["images"]), *(f"{row[name]:.2f}" for name in names)] for row in entry["rows"]]
    said = table(("images", "eager, ms", "eager in a CUDA graph, ms", "torch.compile, ms"), rows)
    return f"PyTorch {entry['torch']}, one node.\n\n{said}"


SECTIONS: dict[str, Callable[[Entry], str]] = {
    "parity": _parity, "speed": _speed, "calls": _calls, "stages": _stages, "torch": _torch,
}  # fmt: skip
