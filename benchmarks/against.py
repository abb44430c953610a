"""`python -m cascade_trt.benchmarks.against`: two checkouts side by side, image by image in turn.

Each checkout has a process of its own with its own bundle of the same model; this one asks them in turn for the same
images, so that a drifting machine hits both alike, and compares seconds and tokens. Build both bundles first:

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
from pathlib import Path
from typing import Any

import click

from ..commands.bench import PROMPTS
from . import RESULTS
from .machine import describe_machine

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


def compare(sides: list[Side], rules: tuple[str, ...], images: int) -> list[dict[str, Any]]:
    """A row for each rule; the first image of each warms up. Sides take turns in being the first."""
    rows = []
    for rule in rules:
        seconds: list[tuple[float, ...]] = []
        same = 0
        for number in range(-1, images):
            asked = {"prompt": PROMPTS[number % len(PROMPTS)], "number": max(number, 0), "rule": rule}
            order = sides if number % 2 else sides[::-1]
            drawn = {id(side): side.draw(**asked) for side in order}
            new, old = (drawn[id(side)] for side in sides)
            if number >= 0:
                seconds.append((new["seconds"], old["seconds"]))
                same += new["codes"] == old["codes"]
        ours, theirs = (statistics.median(column) for column in zip(*seconds, strict=True))
        rows.append({
            "rule": rule, "seconds": ours, "their_seconds": theirs, "same_images": same / images,
            "ratio": statistics.median(new / old for new, old in seconds), "ratios": [a / b for a, b in seconds],
        })  # fmt: skip
    return rows


def _commit(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


@click.command()
@click.option("--checkout", type=click.Path(path_type=Path, exists=True), required=True, help="The other checkout.")
@click.option("--bundle", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--their-bundle", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--rule", "rules", multiple=True, default=("ar", "exact", "strict", "cascade"), show_default=True)
@click.option("--features", nargs=2, type=int, help="Shape [T, C] of random features, without a text engine.")
@click.option("--images", type=int, default=8, show_default=True)
@click.option("--threads", type=int)
@click.option("--json", "file", default="against.json", show_default=True, help="File in benchmarks/results.")
def main(
    checkout: Path, bundle: Path, their_bundle: Path, rules: tuple[str, ...], features: tuple[int, int] | None,
    images: int, threads: int | None, file: str,
) -> None:  # fmt: skip
    """Seconds an image here over seconds there, rule by rule."""
    shape = list(features) if features else None
    with tempfile.TemporaryDirectory() as folder:
        places = [(_ROOT, bundle, Path(folder, "here")), (checkout, their_bundle, Path(folder, "there"))]
        sides = [Side(place, chosen, threads, shape, home) for place, chosen, home in places]
        rows = compare(sides, rules, images)
        for side in sides:
            side.close()
    content = {"machine": describe_machine(threads), "bundle": bundle.name, "against": _commit(checkout),
               "images": images, "rows": rows}  # fmt: skip
    (RESULTS / file).write_text(json.dumps(content, indent=1) + "\n")
    for row in rows:
        click.echo(
            f"{row['rule']:>8}: {row['seconds']:.3f} s, there {row['their_seconds']:.3f} s, ratio {row['ratio']:.3f}, "
            f"same images {100 * row['same_images']:.0f} %"
        )


if __name__ == "__main__":
    main()
