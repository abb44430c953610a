"""What is drawn where only time, or the model itself, is of interest."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..runtime.bundle import CLASS, Manifest
from ..runtime.request import Request

PROMPTS = ("a red apple", "a hamburger", "a slice of pizza", "a carrot", "a birthday cake", "a doughnut")


def conditioning(manifest: Manifest, prompts: tuple[str, ...], number: int) -> dict[str, Any]:
    """What image `number` shows, as `Pipeline.generate` takes it: a prompt, a class, or (bundles without a text engine)
    random features."""
    condition = manifest.model.condition
    if condition.kind == CLASS:
        return {"class_ids": [number % condition.classes]}
    if manifest.text is not None:
        chosen = prompts or PROMPTS
        return {"prompts": [chosen[number % len(chosen)]]}
    rng = np.random.default_rng(number)
    mask = np.arange(condition.length)[None] >= condition.length * 3 // 4
    return {"features": rng.normal(size=(1, condition.length, condition.width)).astype(np.float32),
            "features_mask": mask}  # fmt: skip


_SINGULAR = {"prompts": "prompt", "class_ids": "class_id"}


def request(manifest: Manifest, prompts: tuple[str, ...], number: int, seed: int) -> Request:
    """The same as a request to a batch, with this seed and the batch's options."""
    given = conditioning(manifest, prompts, number)
    return Request(**{_SINGULAR.get(name, name): value[0] for name, value in given.items()}, seed=seed)
