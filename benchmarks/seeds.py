"""`python -m cascade_trt.benchmarks.seeds`: are two rules really apart? Figures over several sets of seeds.

One set of a few hundred images scatters by more than most rules differ, and two sets of `ar` may lie close by luck.
This reads the images that `bench --judge demo` and `eval --seed` have left in one folder, and writes to a file in
benchmarks/results, for every rule: tau and the judge's figures set by set (those of `ar` show how far equal settings
lie apart), the paired difference in concept accuracy from `ar`, and how much larger each rule's Fréchet distance is
than one rule's. The 95 % bootstrap intervals draw images anew, not prompts: they speak of these prompts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

from ..evaluation.draw import speed
from ..evaluation.images import read_folder
from ..evaluation.means import Means, captions_to_draw, load_means
from ..evaluation.metrics import frechet
from ..evaluation.paired import compare
from ..evaluation.score import Scores, figures, score_images
from ..runtime.rules.registry import PLAIN
from . import RESULTS

_DRAWS = 400
_FIGURES = ("concept", "frechet", "precision", "recall")


@click.command()
@click.option("--images", type=click.Path(path_type=Path), default=Path("outputs/bench"), show_default=True)
@click.option("--against", default="balance=0.2-chain_7", show_default=True, help="Part of its folder's name.")
@click.option("--seed", "seeds", type=int, multiple=True, default=(0,), show_default=True, help="Repeatable.")
@click.option("--json", "file", default="demo_seeds.json", show_default=True, help="File in benchmarks/results.")
def main(images: Path, against: str, seeds: tuple[int, ...], file: str) -> None:
    """Compares the images of all rules that were drawn with all of these seeds."""
    means = load_means(None)
    assert means.reference is not None  # the demo's
    names = sorted({path.name.rpartition("-seed")[0] for path in images.glob("*-seed*")})
    folders = {name: [images / f"{name}-seed{seed}" for seed in seeds] for name in names}
    folders = {name: parts for name, parts in folders.items() if all(folder.is_dir() for folder in parts)}
    found = [name for name in folders if against in name]
    if len(found) != 1 or PLAIN not in folders:
        raise click.UsageError(
            f"{images} needs {PLAIN!r} and exactly one {against!r} with these seeds: run `bench --judge demo` or "
            f"`eval` first, or say more of the name (found: {', '.join(found) or 'none'})."
        )
    first = found[0]
    drawn = {name: [read_folder(folder) for folder in parts] for name, parts in folders.items()}
    counts = {name: [len(images) for images in parts] for name, parts in drawn.items()}
    short = [name for name in counts if counts[name] != counts[PLAIN]]
    if short:
        raise click.UsageError(
            f"{short[0]} has not as many images as {PLAIN}: finish the set, or take it out of {images}."
        )
    sets = {name: [_scores(means, images) for images in parts] for name, parts in drawn.items()}
    more = larger({name: _features(parts) for name, parts in sets.items()}, first, means.reference.features)
    rows: dict[str, dict[str, Any]] = {
        name: _row(parts, sets[PLAIN], means) | more[name] | {"tau": [speed(images)["tau"] for images in drawn[name]]}
        for name, parts in sets.items()
    }
    report = {"against": first, "seeds": seeds, "draws": _DRAWS, "rows": rows}
    (RESULTS / file).write_text(json.dumps(report, indent=1) + "\n")
    for name, row in rows.items():
        click.echo(f"{name}\n  concept {_spelt(row['concept_difference'])}, Fréchet {_spelt(row['more'])}")
        for figure in _FIGURES:
            click.echo(f"  {figure:9s} {' '.join(f'{x:.3f}' for x in row[figure])}")


def _scores(means: Means, images: Sequence[Image.Image]) -> Scores:
    """What the judge says of a set."""
    return score_images(images, captions_to_draw(None, means, len(images)), means.judge, means.maker, means.gallery)


def _spelt(difference: dict[str, Any]) -> str:
    return f"{difference['mean']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}]"


def _features(parts: Sequence[Scores]) -> np.ndarray:
    features = [part.features for part in parts]
    assert all(one is not None for one in features)  # the demo's judge makes them
    return np.concatenate(features)  # pyright: ignore[reportArgumentType, reportCallIssue]


def _row(parts: Sequence[Scores], plain: Sequence[Scores], means: Means) -> dict[str, Any]:
    """Figures of each set, and the difference in concept accuracy from plain decoding's over all of them."""
    each = [figures(part, means.reference) for part in parts]
    answers = [np.concatenate([part.concept for part in side]) for side in (plain, parts)]
    difference = compare(answers[0], answers[1])
    assert difference is not None
    return {name: [float(one[name]) for one in each] for name in _FIGURES} | {"concept_difference": asdict(difference)}


def larger(features: dict[str, np.ndarray], first: str, reference: np.ndarray) -> dict[str, dict[str, Any]]:
    """features [n, F] by name, images of the same prompts and seeds in one order: how much larger each Fréchet
    distance is than `first`'s, with bootstrap bounds (the same images drawn anew for all)."""
    rng = np.random.default_rng(0)
    count = len(features[first])
    differences: dict[str, list[float]] = {name: [] for name in features}
    for _ in range(_DRAWS):
        chosen = rng.integers(0, count, count)
        distances = {name: frechet(values[chosen], reference) for name, values in features.items()}
        for name, distance in distances.items():
            differences[name].append(distance - distances[first])
    whole = {name: frechet(values, reference) for name, values in features.items()}
    return {
        name: {"frechet_of_all": whole[name], "more": {"mean": whole[name] - whole[first],
               "low": float(np.quantile(values, 0.025)), "high": float(np.quantile(values, 0.975))}}
        for name, values in differences.items()
    }  # fmt: skip


if __name__ == "__main__":
    main()
