"""Speed of several settings, side by side in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..calibration.subjects import request
from ..evaluation.paired import interval
from ..runtime.batch import Batch
from ..runtime.errors import CascadeError
from ..runtime.options import DrawOptions
from ..runtime.pipeline import Pipeline
from ..runtime.rules.registry import PLAIN


def through(
    pipe: Pipeline, batch: Batch, numbers: range, options: DrawOptions | None = None
) -> tuple[float, list[np.ndarray]]:
    """Seconds that images `numbers` take through a batch, each with its number as its seed and with `options` (None:
    the batch's own), and their codes."""
    started, own = time.perf_counter(), options or DrawOptions()
    jobs = [batch.submit(replace(request(pipe.manifest, (), number, number), options=own)) for number in numbers]
    while not batch.idle:
        batch.step()
    return time.perf_counter() - started, [job.result().codes for job in jobs]


def served(pipe: Pipeline, trees: Sequence[str]) -> list[str]:
    """Those of `trees` that the bundle draws `exact` with."""

    def fits(tree: str) -> bool:
        try:
            return pipe.tree_for("exact", tree) is not None
        except CascadeError:
            return False

    return [tree for tree in trees if fits(tree)]


def in_turn(
    pipe: Pipeline, settings: Mapping[str, tuple[str, str | None]], texts: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Seconds an image of each (rule, tree), and how many times as fast as plain decoding it is: the median of the
    images' ratios with its 95 % interval. Every text is drawn with every setting before the next one, so that a
    drifting machine hits all alike; a first image of each warms up."""
    every = {PLAIN: (PLAIN, None)} | dict(settings)
    seconds: dict[str, list[float]] = {name: [] for name in every}
    for number in range(-1, len(texts)):
        for name, (rule, tree) in every.items():
            started = time.perf_counter()
            pipe.generate(texts[max(number, 0)], seed=max(number, 0), rule=rule, tree=tree)
            if number >= 0:
                seconds[name].append(time.perf_counter() - started)
    found = {}
    for name in settings:
        ratios = np.array([plain / own for plain, own in zip(seconds[PLAIN], seconds[name], strict=True)])
        found[name] = {
            "seconds": statistics.median(seconds[name]), "speed_up": float(np.median(ratios)),
            "speed_up_interval": list(interval(ratios, np.median)),
        }  # fmt: skip
    return found
