"""`python -m cascade_trt.benchmarks`: runs the benchmarks and writes benchmarks/results/*.json."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from . import RESULTS
from .gpt_b import compare
from .machine import describe_machine


@click.command()
@click.option("--threads", type=int, default=len(os.sched_getaffinity(0)), help="Threads of both sides.")
@click.option("--folder", type=click.Path(path_type=Path), default=Path("build"), help="Where bundles are built.")
def main(threads: int, folder: Path) -> None:
    """GPT-B dims with random weights: ONNX Runtime against PyTorch eager, and the host's share of a round."""
    result: dict[str, Any] = {"machine": describe_machine(threads)} | compare(folder, threads)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "gpt_b.json").write_text(json.dumps(result, indent=1) + "\n")
    times = result["ms_per_token"]
    click.echo(f"plain decoding, ms per token: ONNX Runtime {times['onnxruntime']:.1f}, PyTorch {times['pytorch']:.1f}")
    click.echo(f"ratio {result['ratio']:.2f}; greedy tokens equal: {100 * result['greedy_tokens_equal']:.0f} %")
    for row in result["rounds"]:
        total = sum(row["ms"].values())
        tree = row["tree"] or "-"
        click.echo(
            f"{row['rule']:>24} {tree:<14} {row['nodes']:>3} nodes  {total:6.1f} ms a round: draft "
            f"{row['ms']['draft']:.1f}, verify {row['ms']['verify']:.1f}, host {100 * row['host_share']:.2f} %, "
            f"accept {100 * row['accept_share']:.2f} %"
        )


if __name__ == "__main__":
    main()
