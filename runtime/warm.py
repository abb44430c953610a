"""Calls that become graphs: run before the first image, so that it does not wait for their capture."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from .batch import Batch
from .bundle import Manifest
from .decoder import Decoder
from .errors import CascadeError
from .model_info import CLASS
from .request import Drawing

_ROUNDS = 3  # a fresh image is drafted for as its slot is filled: the second round is the first with a draft call


def anything(manifest: Manifest) -> dict[str, Any]:
    """What one image may be drawn from, as the arguments of `Checker.all`."""
    condition = manifest.model.condition
    given: dict[str, Any] = dict.fromkeys(("prompts", "features", "features_mask", "class_ids"))
    if condition.kind == CLASS:
        return given | {"class_ids": [0]}
    if manifest.text is not None:
        return given | {"prompts": ["a"]}
    return given | {"features": np.zeros((1, condition.length, condition.width), np.float32)}


def warm_up(batch: Batch, drawing: Drawing, sizes: Sequence[int]) -> None:
    """Draws images that nobody wants for a few rounds, as many at a time as each of `sizes` (rising; the last are all
    slots) says: then every call of these rounds, and of what fills each slot, has run twice. Nothing of them stays in a
    slot that is filled again. What fails here is said to the image that meets it."""
    for count in (*sizes, sizes[-1]):
        with suppress(CascadeError):
            for _ in range(count):
                batch.enqueue(drawing)
            try:
                for _ in range(_ROUNDS):
                    batch.step()
            finally:
                batch.drain()


def decode_once(decoder: Decoder, manifest: Manifest) -> None:
    """The same for the decoder, whose kernels some backends compile in the first run."""
    with suppress(CascadeError):
        decoder.image(np.zeros(manifest.model.plan.image_tokens, np.int64))
