"""What fills a slot passes through: the prefix as the target reads it, then as the drafter does. One for all slots."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .backends import Backend, Buffer
from .bundle import Manifest
from .conditioner import Prefix
from .engines import Engines
from .slots import SlotBuffers

TARGET_SCRATCH = ("embeds", "positions", "write_index", "tree_mask", "depths", "noise")  # inputs of a prefill


class Scratch:
    """Buffers of one slot of `rows` rows for the calls on its prefix; `drawn` and `hidden` are the target's outputs."""

    def __init__(self, backend: Backend, engines: Engines, manifest: Manifest, rows: int) -> None:
        self._buffers = SlotBuffers(backend, 1, rows)
        model, add, engine = manifest.model, self._buffers.add, engines["target"]
        self._length = length = model.condition.length
        self._embeds = add("embeds", (length, model.dim), engine.dtype("embeds"), "in", by_row=True)
        self._positions = add("positions", (length,), "int64", "in", by_row=True)
        add("write_index", (), "int64", "in", by_row=True)  # slot 0
        self._tree_mask = add("tree_mask", (length, manifest.target.window + 1), "bool", "in", by_row=True)
        add("depths", (length,), "int64", "in")  # the only row of noise
        self._noise = add("noise", (1, model.vocab_size), "float32", "in")
        self._forced = add("forced", (1,), "int64", "in")
        self.drawn = add("drawn", (length,), "int64", "out")
        add("hidden", (length, model.dim), engine.dtype("hidden"), "device", by_row=True)
        # for the drafter, whose positions are slots
        path, self.tokens = add("path", (length,), "int64", "in"), add("tokens", (length,), "int64", "in")
        slots = add("slots", (length,), "int64", "in", by_row=True)
        path[:], slots[:] = np.arange(length), np.arange(length)
        add("count", (), "int64", "in")[:] = length

    def load(self, prefix: Prefix, noise: np.ndarray, forced: int) -> None:
        """What the next prefill reads: noise float32 [V] of the first token, and the token that is forced there."""
        length = self._length
        self._embeds[:] = prefix.embeds
        self._positions[:] = np.maximum(prefix.first[:, None] + np.arange(length), 0)
        causal = np.tri(length, dtype=bool) & prefix.mask[:, None, :]  # [G, T, T]
        self._tree_mask[:, :, :length] = causal | np.eye(length, dtype=bool)
        self._noise[0, 0], self._forced[0, 0] = noise, forced
        if prefix.read is not None:
            self.tokens[0, :-1] = prefix.read

    def part(self, names: Iterable[str]) -> dict[str, Buffer]:
        return self._buffers.part(names, 0, 1)
