"""`python -m cascade_trt.benchmarks.gpu PART BUNDLE`: what a GPU does with a bundle, one part a call, minutes each.

| part | says |
|---|---|
| `parity` | whether the GPU draws what ONNX Runtime draws on the CPU, and whether `exact` draws the image of `ar` |
| `speed` | plain decoding and `exact` by tree and images at a time: ms a round, the host's share, images a second |
| `calls` | ms of a target call by nodes and images, and what reading weights and cache takes at a copy's bandwidth |
| `stages` | ms a round of each engine and kernel by the device's clock, and how long it waits for the host |
| `torch` | the same target call on one node in PyTorch: eager in a CUDA graph, and torch.compile |

Every part replaces its own entry in benchmarks/results/gpu.json, and `page` writes gpu.md from them. `torch` takes the
name of a preset. Rounds run on the device where the bundle has kernels; `--rounds host` shows what that gains, and
draws with the noise of the host.

    cascade-trt build llamagen-t2i-b --dummy-weights --precision fp16 --batch 8 --max-nodes 61 --out build/gpt_b
    cascade-trt compile build/gpt_b --target cuda
    python -m cascade_trt.benchmarks.gpu speed build/gpt_b
    python -m cascade_trt.benchmarks.gpu torch llamagen-t2i-b
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from ..runtime.backends import refusal
from ..runtime.costs import measure
from ..runtime.lane import Lane
from ..runtime.pipeline import Pipeline
from ..runtime.tree import NO_TREE
from . import gpu_results
from .gpu_page import page
from .gpu_results import BACKEND, BUNDLE, ROUNDS, load, show, store
from .gpu_stages import stages
from .rounding import agreement
from .timing import served, through

SLOTS = (1, 2, 4, 8)
NODES = (1, 8, 17, 33, 60)
TREES = ("jacobi_8", "jacobi_16", "jacobi_32", "jacobi_59", "mixed_8", "mixed_16", "mixed_32", "mixed_59", "small_6",
         "chain_7")  # fmt: skip


@click.group()
def main() -> None:
    """Measures one part on this machine's GPU."""


# whether it is right -----------------------------------------------------------------------------------------
@main.command()
@BUNDLE
@BACKEND
@ROUNDS
@click.option("--images", type=int, default=8, show_default=True)
def parity(bundle: Path, backend: str, rounds: str, images: int) -> None:
    """Codes of `ar` against the CPU's, and of `exact` against the GPU's own `ar`, with each tree."""
    with load(bundle, backend, rounds) as pipe:
        plain = _drawn(pipe, 1, {"rule": "ar"}, images)
        trees = {tree: agreement(_drawn(pipe, 1, {"rule": "exact", "tree": tree}, images), plain)
                 for tree in served(pipe, TREES)}  # fmt: skip
        together = agreement(_drawn(pipe, min(images, 4), {"rule": "ar"}, images), plain)
        precision = pipe.manifest.engines["target"].precision
        on_cpu = refusal(pipe.manifest.backends, "ort-cpu") is None
    row: dict[str, Any] = {"precision": precision, "exact": trees, "ar_in_batches": together}
    if on_cpu:
        with Pipeline.load(bundle, "ort-cpu") as pipe:
            row["cpu"] = agreement(plain, _drawn(pipe, 1, {"rule": "ar"}, images))
    store("parity", bundle.name, backend, {"rounds": rounds, **row})


# how fast it is ----------------------------------------------------------------------------------------------
@main.command()
@BUNDLE
@BACKEND
@ROUNDS
@click.option("--slots", "sizes", type=int, multiple=True, default=SLOTS, show_default=True)
@click.option("--tree", "trees", multiple=True, help="Repeatable. [default: all that the bundle serves]")
@click.option("--repeats", type=int, default=3, show_default=True)
def speed(
    bundle: Path, backend: str, rounds: str, sizes: tuple[int, ...], trees: tuple[str, ...], repeats: int
) -> None:
    """Whole images, all settings in turn."""
    with load(bundle, backend, rounds) as pipe:
        chosen = trees or served(pipe, TREES)
        settings = {NO_TREE: {"rule": "ar"}} | {tree: {"rule": "exact", "tree": tree} for tree in chosen}
        rows = [row for slots in sizes for row in _speeds(pipe, slots, settings, repeats)]
    store("speed", bundle.name, backend, {"rounds": rounds, "repeats": repeats, "rows": rows})


def _speeds(pipe: Pipeline, slots: int, settings: dict[str, dict[str, Any]], repeats: int) -> list[dict[str, Any]]:
    batches = {name: pipe.batch(slots, **options) for name, options in settings.items()}
    seconds: dict[str, list[float]] = {name: [] for name in settings}
    for repeat in range(-1, repeats):
        for name, batch in batches.items():
            first = max(repeat, 0) * slots
            taken, _ = through(pipe, batch, range(first, first + slots))
            if repeat >= 0:
                seconds[name].append(taken)
    rows = []
    for name, batch in batches.items():
        stats, ratios = batch.stats, [p / own for p, own in zip(seconds[NO_TREE], seconds[name], strict=True)]
        calls = stats.target_calls
        rows.append({
            "tree": name, "slots": slots, "images_per_second": slots / statistics.median(seconds[name]),
            "speed_up": statistics.median(ratios), "tau": stats.tau, "host_share": stats.host_share,
            "ms_a_round": {stage: 1e3 * stats.seconds[stage] / calls
                           for stage in ("draft", "verify", "accept", "commit", "emit")},
            "ms_an_image": {stage: 1e3 * stats.seconds[stage] / stats.images
                            for stage in ("condition", "prefill", "decode")},
        })  # fmt: skip
        show(rows[-1])
    return rows


def _drawn(pipe: Pipeline, slots: int, options: dict[str, Any], images: int) -> list[np.ndarray]:
    """Codes of images 0 ... images - 1 through a batch of their own."""
    return through(pipe, pipe.batch(slots, **options), range(images))[1]


# what a call takes -------------------------------------------------------------------------------------------
@main.command()
@BUNDLE
@BACKEND
@click.option("--slots", "sizes", type=int, multiple=True, default=SLOTS, show_default=True)
@click.option("--bandwidth", type=float, help="GB/s of a copy. [default: measured with PyTorch]")
def calls(bundle: Path, backend: str, sizes: tuple[int, ...], bandwidth: float | None) -> None:
    """Target calls, and the least that reading weights and cache would take."""
    rate = bandwidth or copy_bandwidth()
    with Pipeline.load(bundle, backend) as pipe:
        manifest = pipe.manifest
        workspace = pipe.workspace(manifest.sampling.guidance_scale != 1, max(sizes))
        nodes = sorted({min(count, manifest.most_nodes) for count in NODES})
        found = measure(partial(Lane, workspace), list(sizes), nodes, {})
        cache = workspace.memory.target.nbytes / workspace.memory.slots
        weights = sum(manifest.files[name].bytes for name in manifest.engines["target"].weights)
    rows = [
        {"slots": slots, "nodes": nodes, "ms": times, "roofline_ms": 1e-6 * (weights + slots * cache) / rate}
        for slots, times in zip(sizes, found.target, strict=True)
    ]
    for row in rows:
        show(row)
    store("calls", bundle.name, backend, {"copy_gb_per_second": rate, "rows": rows})


def copy_bandwidth() -> float:
    """GB/s, read and written together, of a copy of 1 GiB on the GPU: the median of ten."""
    torch = _torch()
    one = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    other = torch.empty_like(one)
    return 2 * one.numel() / 1e6 / _median(lambda: other.copy_(one))


@main.command("torch")
@click.argument("model")
@click.option("--images", "sizes", type=int, multiple=True, default=(1, 8), show_default=True)
def with_torch(model: str, sizes: tuple[int, ...]) -> None:
    """The baselines: a decoding step of a preset's target in half precision, random weights, a full cache."""
    torch = _torch()
    from ..export.families.llamagen.family import preset_config
    from ..export.families.llamagen.model import LlamaGen
    from .nodes_gpu import capture, target_call

    rows = []
    with torch.inference_mode(), torch.device("cuda"):
        target = LlamaGen(preset_config(model)).half().eval()
        target.rope = target.rope.float()
        for images in sizes:
            call = target_call(target, 2 * images, 1)
            fast = torch.compile(call, mode="reduce-overhead")
            graph = capture(call)
            rows.append({"images": images, "eager_in_a_graph_ms": _median(graph.replay), "compiled_ms": _median(fast),
                         "eager_ms": _median(call)})  # fmt: skip
            show(rows[-1])
    store("torch", model, "pytorch", {"torch": torch.__version__, "rows": rows})


def _median(call: Callable[[], Any]) -> float:
    """Milliseconds of a call on the GPU: the median of ten, after three that warm up."""
    from .nodes_gpu import milliseconds

    return statistics.median([milliseconds(call) for _ in range(13)][3:])


def _torch() -> Any:
    import torch

    if not torch.cuda.is_available():
        raise click.UsageError("PyTorch sees no CUDA GPU here: run this on a machine that has one.")
    return torch


main.add_command(stages)


@main.command("page")
def write_page() -> None:
    """Writes gpu.md beside the results: one page of all that was measured."""
    file = gpu_results.FILE.with_suffix(".md")
    file.write_text(page(json.loads(gpu_results.FILE.read_text())["entries"]))
    click.echo(file)


if __name__ == "__main__":
    main()
