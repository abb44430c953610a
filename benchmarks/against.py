"""`python -m cascade_trt.benchmarks.against`: two checkouts side by side, image by image in turn.

Each checkout has a process of its own with its own bundle of the same model; this one asks them in turn for the same
images, so that a drifting machine hits both alike, and compares seconds and tokens. Half of the images are drawn with
the processes started in the other order. Build both bundles first:

    git worktree add ../before COMMIT
    python -m cascade_trt.benchmarks.against --checkout ../before --bundle NEW --their-bundle OLD
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ..calibration.subjects import PROMPTS
from . import RESULTS
from .machine import describe_machine

Pair = tuple[dict[str, Any], dict[str, Any]]  # what an image took here and there
_ROOT = Path(__file__).resolve().parent.parent
# What both processes run; it uses nothing but what `Pipeline` has had from the start.
_WORKER = """
import json, sys, time
import numpy as np
from cascade_trt import Pipeline
bundle, threads, shape = json.loads(sys.argv[1])
pipe = Pipeline.load(bundle, threads=threads)
print(json.dumps({"version": str(pipe.manifest.schema)}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    number = asked.pop("number")
    if shape is None:
        given = {"prompts": [asked.pop("prompt")]}
    else:
        asked.pop("prompt")
        rng = np.random.default_rng(number)
        given = {"features": rng.normal(size=(1, *shape)).astype(np.float32),
                 "features_mask": np.arange(shape[0])[None] >= shape[0] * 3 // 4}
    started = time.perf_counter()
    output = pipe.generate(**given, seed=number, **asked)
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "codes": output.codes[0].tolist(), "tau": output.stats.tau}), flush=True)
"""


class Side:
    """One checkout's process."""

    def __init__(self, checkout: Path, bundle: Path, threads: int | None, shape: list[int] | None, home: Path) -> None:
        home.mkdir()
        (home / "cascade_trt").symlink_to(checkout.resolve(), target_is_directory=True)
        arguments = json.dumps([str(bundle.resolve()), threads, shape])
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WORKER, arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(home)}, cwd=home,
        )  # fmt: skip
        self._read()

    def draw(self, **asked: Any) -> dict[str, Any]:
        """Seconds, codes and tau of one image."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise click.ClickException("a checkout's process has ended: see its message above.")
        return json.loads(line)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def measure(sides: Sequence[Side], rules: Sequence[str], numbers: Sequence[int]) -> dict[str, list[Pair]]:
    """Pairs of results (here, there) of images `numbers`, rule by rule; the first image of each warms up.

    Sides take turns in drawing an image first.
    """
    found: dict[str, list[Pair]] = {}
    for rule in rules:
        for turn, number in enumerate([numbers[0], *numbers]):
            asked = {"prompt": PROMPTS[number % len(PROMPTS)], "number": number, "rule": rule}
            drawn = {id(side): side.draw(**asked) for side in (sides if turn % 2 else sides[::-1])}
            if turn:
                found.setdefault(rule, []).append((drawn[id(sides[0])], drawn[id(sides[1])]))
    return found


def row(rule: str, pairs: Sequence[Pair]) -> dict[str, Any]:
    """The figures of one rule."""
    ours, theirs = ([one["seconds"] for one in column] for column in zip(*pairs, strict=True))
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {
        "rule": rule, "seconds": statistics.median(ours), "their_seconds": statistics.median(theirs),
        "ratio": statistics.median(ratios), "ratios": ratios,
        "same_images": statistics.mean(float(a["codes"] == b["codes"]) for a, b in pairs),
    }  # fmt: skip


def _commit(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


@click.command()
@click.option("--checkout", type=click.Path(path_type=Path, exists=True), required=True, help="The other checkout.")
@click.option("--bundle", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--their-bundle", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--rule", "rules", multiple=True, default=("ar", "exact", "strict", "cascade"), show_default=True)
@click.option("--features", nargs=2, type=int, help="Shape [T, C] of random features, without a text engine.")
@click.option("--images", type=click.IntRange(2), default=8, show_default=True, help="Of each rule.")
@click.option("--threads", type=int)
@click.option("--json", "file", default="against.json", show_default=True, help="File in benchmarks/results.")
def main(
    checkout: Path, bundle: Path, their_bundle: Path, rules: tuple[str, ...], features: tuple[int, int] | None,
    images: int, threads: int | None, file: str,
) -> None:  # fmt: skip
    """Seconds an image here over seconds there, rule by rule."""
    shape = list(features) if features else None
    pairs: dict[str, list[Pair]] = {rule: [] for rule in rules}
    for first in (0, 1):  # where memory lies is worth 3 %: the process that starts first has the better or worse of it
        with tempfile.TemporaryDirectory() as folder:
            places = [(_ROOT, bundle, Path(folder, "here")), (checkout, their_bundle, Path(folder, "there"))]
            started = [Side(place, chosen, threads, shape, home) for place, chosen, home in places[:: 1 - 2 * first]]
            numbers = range(first * images // 2, (first + 1) * images // 2)
            for rule, found in measure(started[:: 1 - 2 * first], rules, numbers).items():
                pairs[rule] += found
            for side in started:
                side.close()
    rows = [row(rule, found) for rule, found in pairs.items()]
    content = {"machine": describe_machine(threads), "bundle": bundle.name, "against": _commit(checkout),
               "images": images, "rows": rows}  # fmt: skip
    (RESULTS / file).write_text(json.dumps(content, indent=1) + "\n")
    for one in rows:
        click.echo(
            f"{one['rule']:>8}: {one['seconds']:.3f} s, there {one['their_seconds']:.3f} s, ratio {one['ratio']:.3f}, "
            f"same images {100 * one['same_images']:.0f} %"
        )


if __name__ == "__main__":
    main()
