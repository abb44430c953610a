"""`python -m cascade_trt.benchmarks.report`: writes the figures of benchmarks/results into README.md and docs/.

A document marks where: `<!-- figures: NAME -->` and `<!-- end of figures -->`; what stands between them is replaced.
So no figure is typed by hand, and a test sees one that is out of date.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import click

from ..evaluation.format import interval, percent
from ..runtime.tree import AUTO, NO_TREE
from . import RESULTS
from .markdown import table

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "docs/results.md", "docs/drafting.md", "docs/research.md", "docs/gpu.md")
_PLACE = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end of figures -->)", re.DOTALL)
_XL, _B = "llamagen-t2i-xl-stage1", "llamagen-t2i-b"
_GUESSES = {
    "chain": "the drafter's alone", "jacobi": "of the round before, no drafter",
    "mixed": "one drafted, then of the round before",
}  # fmt: skip


@click.command()
def main() -> None:
    """Replaces the figures of all documents."""
    for name in DOCUMENTS:
        file = ROOT / name
        file.write_text(filled(file.read_text(encoding="utf-8")), encoding="utf-8")
        click.echo(file)


def filled(text: str) -> str:
    """A document with its figures as they are in benchmarks/results. Raises KeyError for a name that is none."""
    return _PLACE.sub(lambda found: f"{found[1]}{FIGURES[found[2]]()}\n{found[3]}", text)


def without_figures(text: str) -> str:
    """What is left of a document: its own words, without figures, code and links' addresses."""
    text = _PLACE.sub("", text)
    text = re.sub(r"(?m)^    .*$|`[^`\n]*`|\]\([^)]*\)", "", text)
    return re.sub(r"(?s)```.*?```", "", text)


@cache
def _read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / name).read_text())


def _machine(of: dict[str, Any]) -> str:
    return f"{of['machine']['processor']}, {of['machine']['cores']} cores"


def _between(bounds: Sequence[float], digits: int = 2) -> str:
    return f"[{bounds[0]:.{digits}f}, {bounds[1]:.{digits}f}]"


# lossless ---------------------------------------------------------------------------------------------------
def lossless_short() -> str:
    """The trees of the README."""
    of = _read("lossless.json")
    rows = [["none: plain decoding", "1", "1.00", "1.00x", "1.0x"]]
    for name in ("chain_7", "jacobi_16", "jacobi_32", "mixed_16", "mixed_24", "mixed_32"):
        row = next(one for one in of["rows"] if one["tree"] == name)
        what = f"`{name}`: {_GUESSES[name.partition('_')[0]]}"
        rows.append([what, str(row["nodes"]), f"{row['tau']:.2f}", f"{row['speed_up']:.2f}x",
                     f"{row['computed'][f'{_XL} x1']:.1f}x"])  # fmt: skip
    return table(("guesses", "nodes", "tokens a call", "speed-up here", "GPT-XL, H200, computed"), rows)


def lossless() -> str:
    """All trees."""
    of = _read("lossless.json")
    rows = []
    for row in of["rows"]:
        if row["tree"] == AUTO:
            continue
        said = " / ".join(f"{100 * row['origins'][name]:.0f}" for name in ("eagle", "jacobi", "new"))
        one, eight = ([f"{row['computed'][f'{model} x{images}']:.1f}x" for model in (_B, _XL)] for images in (1, 8))
        rows.append([f"`{row['tree']}`", str(row["nodes"]), f"{row['tau']:.2f} {_between(row['tau_interval'])}",
                     f"{said} %", f"{row['speed_up']:.2f}x", ", ".join(one), ", ".join(eight)])  # fmt: skip
    columns = ("tree", "nodes", "tokens a call [95 %]", "guessed by", "speed here", "H200, 1 image", "8 images")
    return table(columns, rows)


def lossless_note() -> str:
    """How the table of all trees was measured."""
    of = _read("lossless.json")
    same = min(row["same_images"] for row in of["rows"] if "same_images" in row)
    return (
        f"{of['prompts']} prompts, each drawn with every tree; {100 * same:g} % of the images equal those of plain "
        f"decoding, token for token. Speed: median over {of['speed_images']} images drawn in turn, one at a time, "
        f"against plain decoding in the same run, on {_machine(of)}."
    )


def rounding() -> str:
    """How many images depend on the shape of calls."""
    rows = []
    for of in _read("rounding.json")["entries"]:
        for row in of["trees"]:
            shares = [f"{100 * row[name]['images']:.0f} %" for name in ("alone", "within", "plain")]
            of_tree = [of["precision"], of["backend"], f"`{row['tree']}`", str(row["nodes"])]
            rows.append([*of_tree, *shares, str(of["images"])])
    columns = ("precision", "backend", "tree", "nodes", "`ar` in calls of the tree's size is `ar` alone",
               "`exact` is `ar` in such calls", "`exact` is `ar` alone", "images")  # fmt: skip
    return table(columns, rows)


# relaxed ----------------------------------------------------------------------------------------------------
def _losses(row: dict[str, Any]) -> str:
    """What a setting loses against plain decoding: where the 95 % interval of the difference excludes 0."""
    against = row["against_plain"]
    said = ["concepts" if against["concept"]["high"] < 0 else "",
            "Fréchet" if against["frechet_interval"]["low"] > 0 else ""]  # fmt: skip
    return ", ".join(filter(None, said))


def _inside(row: dict[str, Any]) -> bool:
    """Whether its Fréchet distance is within what other seeds alone do to plain decoding's."""
    return row["frechet"] <= max(one["frechet"] for one in _read("relaxed.json")["plain"])


def relaxed() -> str:
    """Every setting of the run, numbered: what it gains."""
    rows = [
        [str(number), f"`{row['rule']}`", f"`{row['tree']}`", f"{row['tau']:.2f}", f"{row['speed_up']:.2f}x",
         f"{row['computed'][f'{_XL} x1']:.1f}x", f"{100 * row['relaxed_share']:.0f} %"]
        for number, row in enumerate(_read("relaxed.json")["rows"], start=1)
    ]  # fmt: skip
    return table(("no.", "rule", "tree", "tokens a call", "speed here", "H200", "relaxed"), rows)


def relaxed_quality() -> str:
    """The same settings by number: what it loses."""
    rows = []
    for number, row in enumerate(_read("relaxed.json")["rows"], start=1):
        more = row["against_plain"]["frechet_interval"]
        rows.append([
            str(number), interval(row["against_plain"]["concept"]), f"{row['frechet']:.2f}",
            f"{more['mean']:+.2f} [{more['low']:+.2f}, {more['high']:+.2f}]", f"{row['recall']:.2f}",
            _losses(row) or ("nothing shown" if _inside(row) else "perhaps Fréchet"),
        ])  # fmt: skip
    return table(("no.", "concepts", "Fréchet", "against `ar`", "recall", "loses"), rows)


def relaxed_short() -> str:
    """The settings of the README: of each rule the one with most tokens a call of those that lose nothing which the run
    can show; where all lose something, the one with fewest."""
    best: dict[str, dict[str, Any]] = {}
    for row in _read("relaxed.json")["rows"]:
        kind = row["rule"].partition(":")[0]
        if kind not in best or _worth(row) > _worth(best[kind]):
            best[kind] = row
    cells = [[f"`{row['rule']}` on `{row['tree']}`", f"{row['tau']:.2f}", f"{row['speed_up']:.2f}x",
              interval(row["against_plain"]["concept"]), f"{row['frechet']:.2f}"] for row in best.values()]  # fmt: skip
    columns = ("rule", "tokens a call", "speed-up here", "concepts", "Fréchet")
    return table(columns, cells)


def _worth(row: dict[str, Any]) -> float:
    return -row["tau"] if _losses(row) else row["tau"]


def relaxed_note() -> str:
    """How the run was made, and how far apart chance puts equal settings."""
    of = _read("relaxed.json")
    sets = of["plain"]
    concept, distance = ([one[name] for one in sets] for name in ("concept", "frechet"))
    return (
        f"{of['prompts']} prompts for tokens a call and quality, the same prompts and seeds for every row; speed: "
        f"median over {of['speed_images']} images drawn in turn, one at a time, against `ar` in the same run, "
        f"on {_machine(of)}. Concepts: points of accuracy by the demo's judge less those of `ar`, paired by prompt "
        f"and seed; both differences with 95 % intervals. Plain decoding with {len(sets)} sets of seeds: "
        f"{percent(min(concept))} to {percent(max(concept))} of concepts, Fréchet distances {min(distance):.2f} to "
        f"{max(distance):.2f}."
    )


# auto -------------------------------------------------------------------------------------------------------
def auto() -> str:
    """What `auto` is worth beside plain decoding and the best fixed choice."""
    rows = []
    for row in _read("auto.json")["rows"]:
        best, ups = row["best_fixed"], row["speed_ups"]
        named = "plain decoding" if best == NO_TREE else f"`{best}`, {ups[best]:.2f}x"
        rows.append([row["bundle"], str(row["slots"]), f"{ups[AUTO]:.2f}x", named, f"{row['auto_against_best']:.2f}"])
    return table(("model", "images at a time", "`auto`", "best fixed choice", "`auto` by the best"), rows)


def auto_note() -> str:
    """How it was measured."""
    of = _read("auto.json")
    repeats = {row["bundle"]: row["repeats"] for row in of["rows"]}
    counts = ", ".join(f"{name} {count}" for name, count in repeats.items())
    return (
        f"Images a second against plain decoding in the same run on {_machine(of)}, median of repeats in turn "
        f"({counts}). The best fixed choice is picked afterwards."
    )


def auto_gpu() -> str:
    """What `auto` would choose with the costs of an H200."""
    rows = [[one["model"], str(one["images"]), f"`{one['tree']}`", f"{one['speed_up']:.1f}x"]
            for one in _read("auto.json")["computed_h200"]]  # fmt: skip
    return table(("model", "images at a time", "`auto` takes", "computed speed-up"), rows)


def gpt_b() -> str:
    """Plain decoding at full size against PyTorch."""
    of = _read("gpt_b.json")
    times = of["ms_per_token"]
    return (
        f"Plain decoding with GPT-B's dims (111M weights, random): ONNX Runtime {times['onnxruntime']:.1f} ms a token, "
        f"PyTorch eager {times['pytorch']:.1f} ms, on {_machine(of)} (`make bench`)."
    )


def refill() -> str:
    """What refilling slots is worth."""
    of = _read("refill.json")
    waits, ours = (next(row for row in of["rows"] if row["way"] == way) for way in ("lock-step", "refilled"))
    ratio, fewer = ours["against_lock_step"], 1 - ours["target_calls"] / waits["target_calls"]
    return (
        f"{of['slots']} slots with refilling draw {ratio:.2f} times as many images a second as batches that wait for "
        f"their slowest image, with {100 * fewer:.0f} % fewer calls of the target (`{of['rule'].partition(':')[0]}`, "
        f"{of['images']} images, {_machine(of)})."
    )


def nodes_gpu() -> str:
    """What nodes of a tree cost on a GPU, in calls on one node."""
    found: dict[tuple[str, int], dict[tuple[str, int], dict[str, Any]]] = {}
    for one in _read("nodes_gpu.json")["rows"]:
        found.setdefault((one["model"], one["images"]), {})[one["part"], one["nodes"]] = one
    sizes = (6, 12, 26, 60, 120)
    rows = [
        [f"`{model}`", str(images), f"{calls['target', 1]['ms']:.2f} ms",
         *(f"{calls['target', size]['steps']:.2f}" for size in sizes), f"{calls['drafter', 10]['ms']:.2f} ms"]
        for (model, images), calls in found.items()
    ]  # fmt: skip
    return table(("model", "images", "1 node", *(f"{size} nodes" for size in sizes), "drafting a level of 10"), rows)


def lookahead() -> str:
    """What looking ahead brings, rule by rule and tree by tree: tokens a call and the share of relaxed tokens."""
    found: dict[str, dict[str, str]] = {}
    for row in _read("lookahead.json")["rows"]:
        if row["tree"] is not None:
            cell = f"{row['tau']:.2f} ({100 * row['relaxed_share']:.1f} %)"
            found.setdefault(row["rule"], {})[row["tree"]] = cell
    trees = list(dict.fromkeys(tree for cells in found.values() for tree in cells))
    rows = [[f"`{rule}`", *(cells.get(tree, "-") for tree in trees)] for rule, cells in found.items()]
    return table(("rule", *(f"`{tree}`" for tree in trees)), rows)


FIGURES: dict[str, Callable[[], str]] = {
    one.__name__: one
    for one in (lossless_short, lossless, lossless_note, rounding, relaxed_short, relaxed, relaxed_quality,
                relaxed_note, auto, auto_note, auto_gpu, gpt_b, refill, nodes_gpu, lookahead)
}  # fmt: skip


if __name__ == "__main__":
    main()
