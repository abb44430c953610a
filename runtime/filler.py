"""The calls that fill one slot of a lane: the prefix through the target, then through the drafter."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .backends import Backend, BoundCall
from .conditioner import Prefix
from .engines import Engines
from .slots import SlotBuffers

if TYPE_CHECKING:
    from .lane import Lane

SETTINGS = ("guidance", "temperature")
SAMPLER = ("top_k", "top_p")


class Filler:
    """The calls that fill one slot: the prefix through the target, then through the drafter. Scratch is shared."""

    def __init__(self, lane: Lane, backend: Backend, engines: Engines, shared: SlotBuffers) -> None:
        self._lane, self._engines, self._shared = lane, engines, shared
        self._bound: dict[tuple[str, int], BoundCall] = {}
        self._own = SlotBuffers(backend, 1, lane.rows)
        model, target, add = lane.manifest.model, lane.manifest.target, self._own.add
        length, engine = lane.prefix_len, engines["target"]
        self._embeds = add("embeds", (length, model.dim), engine.dtype("embeds"), "in", by_row=True)
        self._positions = add("positions", (length,), "int64", "in", by_row=True)
        add("write_index", (), "int64", "in", by_row=True)
        self._tree_mask = add("tree_mask", (length, target.window + 1), "bool", "in", by_row=True)
        add("depths", (length,), "int64", "in")  # the only row of noise
        self._noise = add("noise", (1, model.vocab_size), "float32", "in")
        self._forced = add("forced", (1,), "int64", "in")
        self.drawn = add("drawn", (length,), "int64", "out")
        add("hidden", (length, model.dim), engine.dtype("hidden"), "device", by_row=True)
        if lane.tree is None:
            return
        path = add("path", (length,), "int64", "in")
        self.tokens = add("tokens", (length,), "int64", "in")
        count = add("count", (), "int64", "in")
        pair_positions = add("pair_positions", (length,), "int64", "in", by_row=True)
        path[:], pair_positions[:], count[:] = np.arange(length), np.arange(length), length

    def load(self, prefix: Prefix, noise: np.ndarray, forced: int) -> None:
        """What the next `target` call reads."""
        length = self._lane.prefix_len
        self._embeds[:] = prefix.embeds.host
        self._positions[:] = np.maximum(prefix.first[:, None] + np.arange(length), 0)
        causal = np.tri(length, dtype=bool) & prefix.mask[:, None, :]  # [G, T, T]
        self._tree_mask[:, :, :length] = causal | np.eye(length, dtype=bool)
        self._noise[0, 0], self._forced[0, 0] = noise, forced

    def target(self, slot: int) -> BoundCall:
        if ("target", slot) not in self._bound:
            lane = self._lane
            own = self._own.part(
                ("embeds", "positions", "write_index", "tree_mask", "depths", "noise", *lane.forced_names), 0, 1
            )
            shared = self._shared.part(("cache_mask", *SETTINGS, *SAMPLER), slot, slot + 1)
            shared["rows_of_prompt"] = lane.index(1)["rows_of_prompt"]
            past, present = lane.memory.target.bindings(slot * lane.rows, (slot + 1) * lane.rows)
            outputs = self._own.part(("drawn", "hidden"), 0, 1)
            engine = self._engines["target"]
            self._bound["target", slot] = engine.bind({**own, **shared, **past}, {**outputs, **present})
        return self._bound["target", slot]

    def draft(self, slot: int) -> BoundCall:
        if ("draft", slot) not in self._bound:
            lane = self._lane
            own = self._own.part(("hidden", "path", "tokens", "count", "pair_positions", "write_index"), 0, 1)
            shared = self._shared.part(("pair_mask", *SETTINGS), slot, slot + 1)
            inputs = {"positions": own.pop("pair_positions"), "cache_mask": shared.pop("pair_mask"), **own, **shared,
                      **lane.index(1)}  # fmt: skip
            self._bound["draft", slot] = lane.bind_drafter(inputs, slot, slot + 1)
        return self._bound["draft", slot]
