"""`python -m cascade_trt.benchmarks.lossless`: tokens a target call of `exact`, tree by tree, every image against `ar`.

Two parts. Accepted lengths do not depend on the machine: workers with one thread each draw every prompt with every
tree and compare the codes with those of plain decoding; what is done is kept in `--state`, so a second run goes on.
Speed is measured afterwards in one process, images in turn (`--speed 0` leaves it out: on a busy machine it says
nothing). What the same accepted lengths would bring on an H200 is computed from benchmarks/results/nodes_gpu.json.

    cascade-trt build emoji --tree mixed_24 --tree chain_7 --max-nodes 57 --out build/emoji-wide
    python -m cascade_trt.benchmarks.lossless --bundle build/emoji-wide
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import numpy as np

from ..evaluation.means import captions_to_draw, load_means
from ..evaluation.paired import interval
from ..runtime.pipeline import Pipeline
from ..runtime.tree import AUTO, Tree, get_tree
from . import RESULTS
from .gpu_costs import computed
from .machine import describe_machine
from .timing import in_turn

TREES = (
    "jacobi_8", "jacobi_16", "jacobi_32", "jacobi_56", "jacobi_20x4",
    "mixed_8", "mixed_16", "mixed_24", "mixed_32", "mixed_48", "mixed_20x4", "chain_7",
)  # fmt: skip


@click.command()
@click.option("--bundle", type=click.Path(path_type=Path), default=Path("build/emoji-wide"), show_default=True)
@click.option("--tree", "trees", multiple=True, default=TREES, help="Repeatable. [default: all of the report]")
@click.option("--prompts", type=int, default=500, show_default=True)
@click.option("--workers", type=int, default=os.cpu_count() or 1, show_default=True)
@click.option("--speed", type=int, default=12, show_default=True, help="Images of each tree that are timed.")
@click.option("--state", type=click.Path(path_type=Path), default=Path("outputs/lossless.jsonl"), show_default=True)
@click.option("--json", "file", default="lossless.json", show_default=True, help="File in benchmarks/results.")
def main(
    bundle: Path, trees: tuple[str, ...], prompts: int, workers: int, speed: int, state: Path, file: str
) -> None:
    """Accepted lengths over many prompts, and speed on this machine."""
    texts = [caption.prompt for caption in captions_to_draw(None, load_means(None), prompts)]
    kept = draw_all(bundle, trees, texts, workers, state)
    timed = {}
    if speed:
        with Pipeline.load(bundle) as pipe:
            timed = in_turn(pipe, {tree: ("exact", tree) for tree in (AUTO, *trees)}, texts[:speed])
    rows = [row(tree, [one["trees"][tree] for one in kept], timed) for tree in trees]
    if AUTO in timed:
        rows.append({"tree": AUTO} | timed[AUTO])
    content = {"machine": describe_machine(None), "bundle": bundle.name, "prompts": prompts, "speed_images": speed,
               "rows": rows}  # fmt: skip
    (RESULTS / file).write_text(json.dumps(content, indent=1) + "\n")
    for one in rows:
        click.echo(" ".join(f"{name} {value}" for name, value in one.items() if name != "computed"))


# accepted lengths -------------------------------------------------------------------------------------------
def draw_all(bundle: Path, trees: tuple[str, ...], texts: list[str], workers: int, state: Path) -> list[dict[str, Any]]:
    """What each prompt's images took, in the order of the prompts; those in `state` are not drawn again."""
    state.parent.mkdir(parents=True, exist_ok=True)
    done: list[dict[str, Any]] = [{"trees": {}} for _ in texts]
    for one in _read(state):
        if one["number"] < len(texts):
            done[one["number"]]["trees"] |= one["trees"]
    left = [[tree for tree in trees if tree not in one["trees"]] for one in done]
    missing = [(number, text, left[number]) for number, text in enumerate(texts) if left[number]]
    with multiprocessing.get_context("spawn").Pool(workers, _open, (bundle,)) as pool, open(state, "a") as kept:
        for one in pool.imap_unordered(_draw, missing):
            done[one["number"]]["trees"] |= one["trees"]
            kept.write(json.dumps(one) + "\n")
            kept.flush()
    return done


def _read(state: Path) -> Iterable[dict[str, Any]]:
    return map(json.loads, state.read_text().splitlines()) if state.is_file() else ()


_WORKER: dict[str, Pipeline] = {}  # a worker's own


def _open(bundle: Path) -> None:
    _WORKER["pipe"] = Pipeline.load(bundle, threads=1)


def _draw(given: tuple[int, str, list[str]]) -> dict[str, Any]:
    """One prompt with some trees; prompt i uses seed i."""
    number, text, trees = given
    pipe = _WORKER["pipe"]
    plain = pipe.generate(text, seed=number, rule="ar").codes
    return {"number": number, "trees": {tree: _figures(pipe, text, number, tree, plain) for tree in trees}}


def _figures(pipe: Pipeline, text: str, number: int, tree: str, plain: np.ndarray) -> dict[str, Any]:
    output = pipe.generate(text, seed=number, rule="exact", tree=tree)
    stats = output.stats
    return {"rounds": stats.rounds, "tokens": stats.tokens, "origins": stats.origins,
            "same": bool((output.codes == plain).all())}  # fmt: skip


def row(tree: str, images: list[dict[str, Any]], timed: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The figures of one tree."""
    shape = get_tree(tree)
    assert isinstance(shape, Tree)
    levels = 0 if shape.drafted is None else shape.drafted.depth
    rounds, tokens = (np.array([one[name] for one in images], float) for name in ("rounds", "tokens"))
    low, high = interval(rounds / tokens, np.mean)
    origins = {name: sum(one["origins"][name] for one in images) for name in images[0]["origins"]}
    tau = tokens.sum() / rounds.sum()
    return {
        "tree": tree, "nodes": shape.size, "drafted_levels": levels, "tau": tau, "tau_interval": [1 / high, 1 / low],
        "same_images": float(np.mean([one["same"] for one in images])),
        "origins": {name: count / sum(origins.values()) for name, count in origins.items()},
        **timed.get(tree, {}), "computed": computed(tau, shape.size, levels),
    }  # fmt: skip


if __name__ == "__main__":
    main()
