"""From a drawing's conditioning to the prefix of its rows: the text encoder and the `condition` engine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .backends import Backend, Buffer
from .backends.host import to_dtype, to_float
from .bundle import FEATURES, SLOT, TOKENS, Manifest
from .engines import TEXT, Engines
from .errors import CascadeError
from .prompts import rows_of
from .request import Conditioning


@dataclass(frozen=True)
class Prefix:
    """What a slot is prefilled with: one row under plain drawing, the conditional and the unconditional with guidance.

    `embeds` is a buffer [G, T, D]. `mask` bool [G, T] marks the valid slots; they lie at the end. `first` int64 [G]
    is the position of slot 0: a slot's row of the rotary table is first + slot, 0 where that is negative (padding).
    `read` int64 [T - 1]: the token behind each slot but the last, in the drafter's table; None where it does not read
    prompts.
    """

    embeds: Buffer
    mask: np.ndarray
    first: np.ndarray
    read: np.ndarray | None = None


class Conditioner:
    """Makes prefixes, one image at a time."""

    def __init__(self, backend: Backend, engines: Engines, manifest: Manifest) -> None:
        self._backend, self._engines, self._manifest = backend, engines, manifest

    def prefix(self, conditioning: Conditioning, rows: int) -> Prefix:
        """The prefix of one image (P = 1) for `rows` rows. Raises CascadeError when it is not finite."""
        info, backend, engine = self._manifest.model.condition, self._backend, self._engines["condition"]
        inputs, shown = self._inputs(conditioning, rows)
        mask = np.repeat(shown[None], rows, axis=0)
        if info.uncond_length is not None:
            mask[1:] = np.arange(info.length) >= info.length - info.uncond_length
        prefix = backend.buffer((rows, info.length, self._manifest.model.dim), engine.dtype("prefix"), "out")
        engine.bind(inputs, {"prefix": prefix}).run(fetch=("prefix",))
        if not np.isfinite(to_float(prefix.host, prefix.dtype)[mask]).all():
            raise CascadeError(
                "the conditioning of this image leaves the range of the engines' numbers: check its features."
            )
        first = np.zeros(rows, np.int64) if info.positions == SLOT else mask.sum(axis=1) - info.length
        return Prefix(prefix, mask, first, self._read(conditioning))

    def _read(self, conditioning: Conditioning) -> np.ndarray | None:
        """The prompt as the drafter knows it: ids of the conditional row, behind the sequence's tokens. In the slots
        that the unconditional row shows, it has the same ones (`PromptForm` ends in what both rows end in)."""
        drafter = self._manifest.drafter
        if drafter is None or not drafter.prompt_ids or conditioning.ids is None:
            return None
        return self._manifest.model.plan.tokens + conditioning.ids[0, 1:]

    def _inputs(self, conditioning: Conditioning, rows: int) -> tuple[dict[str, Buffer], np.ndarray]:
        """The engine's inputs of one image, and the valid slots bool [T] of its conditional row."""
        info, backend, engine = self._manifest.model.condition, self._backend, self._engines["condition"]
        if info.kind == TOKENS:
            text, ids, shown = self._manifest.text, conditioning.ids, conditioning.mask
            assert text is not None and ids is not None and shown is not None  # such a bundle takes prompts alone
            given = backend.buffer((rows, info.length), "int64", "in")
            given.host[:] = rows_of(text, ids[0], shown[0])[:rows]
            return {"ids": given}, shown[0]
        uncond = backend.buffer((rows,), "bool", "in")
        uncond.host[:] = np.arange(rows) == 1
        if info.kind == FEATURES:
            features = conditioning.features
            if features is None:
                features = self._encode(conditioning)
            assert conditioning.mask is not None  # features and token ids come with theirs
            given = backend.buffer((rows, info.length, info.width), engine.dtype("features"), "in")
            with np.errstate(over="ignore"):  # what half precision cannot hold is found later
                given.host[:] = to_dtype(features, given.dtype)
            return {"features": given, "uncond": uncond}, conditioning.mask[0]
        assert conditioning.class_ids is not None  # the other kinds are refused
        ids = backend.buffer((rows,), "int64", "in")
        ids.host[:] = conditioning.class_ids
        return {"class_ids": ids, "uncond": uncond}, np.ones(info.length, bool)

    def _encode(self, conditioning: Conditioning) -> np.ndarray:
        """Text features float32 [1, T, C] of the bundle's own encoder."""
        assert conditioning.ids is not None and conditioning.mask is not None  # prompts are refused otherwise
        backend, engine = self._backend, self._engines[TEXT]
        ids = backend.buffer(conditioning.ids.shape, "int64", "in")
        mask = backend.buffer(conditioning.ids.shape, "bool", "in")
        ids.host[:], mask.host[:] = conditioning.ids, conditioning.mask
        width = self._manifest.model.condition.width
        features = backend.buffer((*conditioning.ids.shape, width), engine.dtype("features"), "out")
        engine.bind({"ids": ids, "mask": mask}, {"features": features}).run(fetch=("features",))
        return to_float(features.host, features.dtype)
