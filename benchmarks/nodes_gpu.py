"""What checking N tree nodes costs on a GPU, in decoding steps: PyTorch in half precision, replayed CUDA graphs.

    python -m cascade_trt.benchmarks.nodes_gpu

No exported engine is run. It answers what a tree may hold before its nodes stop being nearly free, which is a question
of memory bandwidth and arithmetic, not of the engine. Random weights, guidance on (two rows an image), a full cache.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from typing import Any

import click
import torch
from torch import Tensor

from ..export.families.llamagen.drafter import Drafter
from ..export.families.llamagen.family import drafter_config, preset_config
from ..export.families.llamagen.model import KVCache, LlamaGen
from . import RESULTS
from .machine import describe_machine

MODELS = ("llamagen-t2i-b", "llamagen-c2i-l-384", "llamagen-t2i-xl-stage1")
NODES = (1, 4, 6, 12, 26, 60, 120)
IMAGES = (1, 8)
LEVEL = 10  # nodes that one level of drafting expands in EAGLE-2's trees


@click.command()
@click.option("--repeats", default=30, show_default=True, help="Rounds of all sizes in turn; medians count.")
def main(repeats: int) -> None:
    """Milliseconds of a target call on N nodes, and of one level of drafting, to benchmarks/results/nodes_gpu.json."""
    if not torch.cuda.is_available():
        raise click.UsageError("there is no CUDA GPU here: run this on a machine that has one.")
    device = torch.cuda.get_device_properties(0)
    rows = [row for model in MODELS for images in IMAGES for row in measure(model, images, repeats)]
    machine = describe_machine(None) | {"gpu": device.name, "gpu_gib": round(device.total_memory / 2**30)}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "nodes_gpu.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    for row in rows:
        what = f"{row['model']} x{row['images']} {row['part']} {row['nodes']} nodes"
        click.echo(f"{what:>50}: {row['ms']:.3f} ms, {row['steps']:.2f} decoding steps")


@torch.inference_mode()
def measure(name: str, images: int, repeats: int) -> list[dict[str, Any]]:
    """One row for each number of nodes, and one for a level of drafting; all in turn, `repeats` times."""
    config = preset_config(name)
    with torch.device("cuda"):
        target = LlamaGen(config).half().eval()
        target.rope = target.rope.float()
        drafter = Drafter(drafter_config(config)).half().eval()
        drafter.rope = drafter.rope.float()
        calls = {("target", nodes): target_call(target, 2 * images, nodes) for nodes in NODES}
        calls["drafter", LEVEL] = drafter_call(target, drafter, 2 * images, LEVEL)
    graphs = {key: capture(call) for key, call in calls.items()}
    times: dict[tuple[str, int], list[float]] = {key: [] for key in graphs}
    for repeat in range(repeats + 3):
        for key, graph in graphs.items():
            taken = milliseconds(graph.replay, 5)
            if repeat >= 3:
                times[key].append(taken)
    medians = {key: statistics.median(values) for key, values in times.items()}
    return [
        {"model": name, "images": images, "part": part, "nodes": nodes, "ms": ms,
         "steps": ms / medians["target", 1]}
        for (part, nodes), ms in medians.items()
    ]  # fmt: skip


def guided_logits(target: LlamaGen, states: Tensor) -> Tensor:
    """[P, N, V] of states [2P, N, D]."""
    cond, uncond = states.chunk(2)
    return target.logits(uncond + 7.5 * (cond - uncond))


def target_call(target: LlamaGen, rows: int, nodes: int) -> Callable[[], Tensor]:
    """The target on tree nodes behind a full cache: states and the guided logits of every node."""
    config = target.config
    filled = config.prefix_len + config.image_tokens
    cache = KVCache(config, rows, filled + nodes, torch.float16)
    cache.k.normal_()
    cache.v.normal_()
    embeds = torch.randn(rows, nodes, config.dim, dtype=torch.float16)
    slots, positions = filled + torch.arange(nodes), torch.full((1, nodes), filled - 1)
    mask = torch.zeros(rows, 1, nodes, filled + nodes, dtype=torch.bool)
    mask[..., :filled] = True
    mask[..., filled:] = torch.ones(nodes, nodes, dtype=torch.bool).tril()

    def call() -> Tensor:
        return guided_logits(target, target.stack(embeds, positions, mask, cache, slots))

    return call


def drafter_call(target: LlamaGen, drafter: Drafter, rows: int, nodes: int) -> Callable[[], Tensor]:
    """One level of drafting: the drafter's layer on `nodes` nodes, the guided logits, the best tokens of each.

    Its attention over a cache is left out; it reads one layer's keys, which is 1 % of what the target reads.
    """
    hidden = torch.randn(rows, nodes, target.config.dim, dtype=torch.float16)
    ids = torch.randint(target.config.vocab_size, (rows, nodes))

    def call() -> Tensor:
        return guided_logits(target, drafter(hidden, ids)).topk(LEVEL).indices

    return call


def capture(call: Callable[[], Tensor]) -> torch.cuda.CUDAGraph:
    """`call` as a CUDA graph, after three runs on a stream of their own."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def milliseconds(call: Callable[[], Any], times: int = 1) -> float:
    """Of one call, by events around `times` of them."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(times):
        call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / times


if __name__ == "__main__":
    main()
