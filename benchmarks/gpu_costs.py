"""What accepted lengths would bring on an H200, from the costs in benchmarks/results/nodes_gpu.json.

Computed, not measured: those costs are of PyTorch in half precision with replayed CUDA graphs.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np

from . import RESULTS

_ROWS = RESULTS / "nodes_gpu.json"


@cache
def _rows() -> list[dict[str, Any]]:
    return json.loads(_ROWS.read_text())["rows"]


@cache
def settings() -> list[tuple[str, int]]:
    """(model, images at the same time) that were measured."""
    return list(dict.fromkeys((one["model"], one["images"]) for one in _rows()))


@cache
def target_ms(model: str, images: int) -> tuple[list[int], list[float]]:
    """Numbers of nodes, and the milliseconds of a target call on them."""
    rows = [one for one in _rows() if (one["model"], one["images"], one["part"]) == (model, images, "target")]
    return [one["nodes"] for one in rows], [one["ms"] for one in rows]


@cache
def level_ms(model: str, images: int) -> float:
    """Milliseconds of one level of drafting."""
    return next(
        one["ms"] for one in _rows() if (one["model"], one["images"], one["part"]) == (model, images, "drafter")
    )


def round_ms(model: str, images: int, nodes: int, levels: int) -> float:
    """Milliseconds of a round: a target call on `nodes` nodes, and `levels` levels of drafting."""
    return float(np.interp(nodes, *target_ms(model, images))) + levels * level_ms(model, images)


def speed_up(model: str, images: int, tau: float, nodes: int, levels: int) -> float:
    """Over plain decoding, with `tau` tokens a round."""
    return tau * round_ms(model, images, 1, 0) / round_ms(model, images, nodes, levels)


def computed(tau: float, nodes: int, levels: int) -> dict[str, float]:
    """The speed-up for each model and number of images at the same time."""
    return {f"{model} x{images}": speed_up(model, images, tau, nodes, levels) for model, images in settings()}
