"""`python -m cascade_trt.benchmarks.frechet`: are the Fréchet distances of two rules' pictures really apart?

Distances from the same few hundred prompts scatter by more than most rules differ. This draws prompts anew (a paired
bootstrap: the same prompts for every rule) from the pictures that `bench --judge demo` has left, and writes the 95 %
intervals of the differences to a file in benchmarks/results. Several seeds count as more prompts (`eval --seed` draws
others into the same folder).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np

from ..evaluation.judge import features_of
from ..evaluation.means import load_means
from ..evaluation.metrics import frechet
from ..evaluation.pictures import read_folder
from . import RESULTS

_DRAWS = 400


@click.command()
@click.option("--pictures", type=click.Path(path_type=Path), default=Path("outputs/bench"), show_default=True)
@click.option("--against", default="tau_draw=0.56-chain_7", show_default=True, help="Part of its folder's name.")
@click.option("--seed", "seeds", type=int, multiple=True, default=(0,), show_default=True, help="Repeatable.")
@click.option("--json", "file", default="demo_frechet.json", show_default=True, help="File in benchmarks/results.")
def main(pictures: Path, against: str, seeds: tuple[int, ...], file: str) -> None:
    """Compares one rule's judged pictures with those of every other that has the same seeds."""
    means = load_means(None)
    assert means.judge is not None and means.reference is not None  # the demo's
    names = sorted({path.name.rpartition("-seed")[0] for path in pictures.glob("*-seed*")})
    folders = {name: [pictures / f"{name}-seed{seed}" for seed in seeds] for name in names}
    features = {
        name: np.concatenate(
            [np.asarray(features_of(means.judge.features, read_folder(folder)), np.float32) for folder in parts]
        )
        for name, parts in folders.items()
        if all(folder.is_dir() for folder in parts)
    }
    first = next((name for name in features if against in name), None)
    if first is None:
        raise click.UsageError(
            f"no folder in {pictures} with these seeds is called {against!r}: run `bench --judge demo` or `eval` first."
        )
    result = compare(features, first, means.reference.features)
    report = {"against": first, "seeds": seeds, "draws": _DRAWS, "rows": result}
    (RESULTS / file).write_text(json.dumps(report, indent=1) + "\n")
    for row in result:
        click.echo(f"{row['frechet']:.2f}, {row['more']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]  {row['name']}")


def compare(features: dict[str, np.ndarray], first: str, reference: np.ndarray) -> list[dict[str, Any]]:
    """features [n, F] by name, the same prompts in the same order; how much larger each distance is than `first`'s."""
    rng = np.random.default_rng(0)
    count = len(features[first])
    differences: dict[str, list[float]] = {name: [] for name in features}
    for _ in range(_DRAWS):
        chosen = rng.integers(0, count, count)
        distances = {name: frechet(values[chosen], reference) for name, values in features.items()}
        for name, distance in distances.items():
            differences[name].append(distance - distances[first])
    whole = {name: frechet(values, reference) for name, values in features.items()}
    return [
        {"name": name, "frechet": whole[name], "more": whole[name] - whole[first],
         "low": float(np.quantile(values, 0.025)), "high": float(np.quantile(values, 0.975))}
        for name, values in differences.items()
    ]  # fmt: skip


if __name__ == "__main__":
    main()
