"""What the slots of a memory share whatever the tree: settings, masks, the calls that fill a slot.

Each lane (`lane.py`) adds the buffers and calls of one tree. So a batch may go from one tree to another between two
rounds: nothing of an image lives in a lane, but for the hidden states of the newest target call.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import TypeVar

import numpy as np

from .backends import Backend, BoundCall, Buffer, Kind
from .bundle import Manifest
from .conditioner import Prefix
from .engines import Engines
from .sampling import Sampling
from .scratch import TARGET_SCRATCH, Scratch
from .slots import Memory, SlotBuffers

Key = TypeVar("Key")
SETTINGS = ("guidance", "temperature")
SAMPLER = ("top_k", "top_p")


class Workspace:
    """Engines, memory and settings for images on `rows` rows: 2 under guidance, else 1. `on_device`: kernels do what is
    the host's part of a round elsewhere, so what changes from round to round is theirs to write."""

    def __init__(
        self, backend: Backend, engines: Engines, manifest: Manifest, memory: Memory, rows: int, on_device: bool = False
    ) -> None:
        self.on_device = on_device
        self.written: Kind = "device" if on_device else "in"  # buffers that are written in every round
        self.backend, self.engines, self.manifest, self.memory, self.rows = backend, engines, manifest, memory, rows
        self.plan, self.prefix_len = manifest.model.plan, manifest.model.condition.length
        self.engine_seconds = 0.0  # spent inside the engines of decoding rounds so far
        self.forced = ("forced",) if self.plan.has_forced else ()  # the input, where a plan has any
        self._buffers = SlotBuffers(backend, memory.slots, rows)
        self._sizes = backend.sizes(memory.slots)
        self._prefills: dict[int, BoundCall] = {}
        add = self._buffers.add
        self.guidance = add("guidance", (rows,), "float32", "in")  # [P, G]
        self.temperature = add("temperature", (), "float32", "in")
        self.top_k = add("top_k", (), "int64", "in")
        self.top_p = add("top_p", (), "float32", "in")
        self.cache_mask = add("cache_mask", (manifest.target.slots,), "bool", "in", by_row=True)
        pair_slots = 1 if manifest.drafter is None else manifest.drafter.slots
        self.pair_mask = add("pair_mask", (pair_slots,), "bool", self.written, by_row=True)
        self.cache_mask[:] = self.pair_mask[:] = True
        if on_device:
            self._buffers.send("pair_mask")
        scale = manifest.sampling.guidance_scale
        self.guidance[:] = (scale, 1 - scale) if rows == 2 else 1  # defaults, for those who measure calls
        self.temperature[:] = self.top_p[:] = 1
        self.top_k[:] = manifest.sampling.top_k or manifest.target.top_k
        self._rows_of_prompt = backend.buffer((memory.slots, rows), "int64", "in")
        self._rows_of_prompt.host[:] = np.arange(memory.slots * rows).reshape(memory.slots, rows)
        self._prompt_of_row = backend.buffer((memory.slots * rows,), "int64", "in")
        self._prompt_of_row.host[:] = np.arange(memory.slots * rows) // rows

    def new_buffers(self) -> SlotBuffers:
        """For a lane."""
        return SlotBuffers(self.backend, self.memory.slots, self.rows)

    def array(self, buffers: SlotBuffers, name: str, shape: tuple[int, ...], dtype: str, value: int = 0) -> np.ndarray:
        """An array [P, *shape] filled with `value`, for what is written in a round and read by no engine."""
        if not self.on_device:
            return np.full((self.memory.slots, *shape), value, dtype)
        host = buffers.add(name, shape, dtype, "device")
        host[:] = value
        buffers.send(name)
        return host

    def address(self, name: str) -> int:
        """Where kernels find a buffer of settings and masks."""
        return self._buffers.address(name)

    def part(self, names: Iterable[str], start: int, stop: int) -> dict[str, Buffer]:
        """Settings and masks of slots start ... stop - 1."""
        return self._buffers.part(names, start, stop)

    def rows_of_prompt(self, slots: int) -> Buffer:
        """int64 [P, G] of slots from 0 on; a call's part starts there."""
        return self._rows_of_prompt.view(0, slots)

    def prompt_of_row(self, slots: int) -> Buffer:
        """int64 [R] of slots from 0 on."""
        return self._prompt_of_row.view(0, slots * self.rows)

    def rows_of(self, slot: int) -> slice:
        """The rows of a slot in every cache and buffer."""
        return slice(slot * self.rows, (slot + 1) * self.rows)

    def size_for(self, slots: int) -> int:
        """How many slots a call on the first `slots` is bound for."""
        return next(size for size in self._sizes if size >= slots)

    def run(self, call: BoundCall, fetch: Sequence[str]) -> None:
        """A call of a decoding round, timed."""
        started = time.perf_counter()
        call.run(fetch)
        self.engine_seconds += time.perf_counter() - started

    # filling a slot -----------------------------------------------------------------------------------------
    def set_up(self, slot: int, sampling: Sampling, prefix: Prefix) -> None:
        """Gives a slot the settings and masks of its image. Whatever image was in it, nothing of that stays: nobody
        has looked whether the numbers in what it did not take are finite."""
        rows, memory, drafter = self.rows_of(slot), self.memory, self.manifest.drafter
        scale = np.float32(sampling.guidance_scale)
        self.guidance[slot] = (scale, 1 - scale) if self.rows == 2 else (1,)
        self.temperature[slot] = sampling.engine_temperature
        self.top_k[slot] = 1 if sampling.greedy else sampling.top_k or self.manifest.target.top_k
        self.top_p[slot] = sampling.top_p
        self.cache_mask[rows, : self.prefix_len] = prefix.mask
        memory.target.clear(rows.start, rows.stop)
        if memory.drafter is not None and drafter is not None:
            memory.drafter.clear(rows.start, rows.stop)
            self.pair_mask[rows] = True
            if not drafter.sees_padding:
                self.pair_mask[rows, : self.prefix_len] = prefix.mask
            if self.on_device:
                self._buffers.send("pair_mask", slot=slot)

    def prefill(self, slot: int, prefix: Prefix, noise: np.ndarray) -> int:
        """Reads a prefix into a slot that is set up; returns the token drawn behind it (-1: not finite at any slot of
        the prefix; a norm may turn an overflow there into zeros, which look finite behind it).

        noise is float32 [V]. One causal chunk; padded slots see only themselves and are seen by nobody (LlamaGen's
        mask).
        """
        self.scratch.load(prefix, noise, int(self.plan.forced[0]))
        bound_for(self._prefills, slot, self._bind_prefill).run(("drawn",))
        drawn = self.scratch.drawn[0]
        return int(drawn[-1]) if drawn.min() >= 0 else -1

    @cached_property
    def scratch(self) -> Scratch:
        """What a prefix passes through."""
        return Scratch(self.backend, self.engines, self.manifest, self.rows)

    def _bind_prefill(self, slot: int) -> BoundCall:
        inputs = self.scratch.part((*TARGET_SCRATCH, *self.forced))
        inputs |= self.part(("cache_mask", *SETTINGS, *SAMPLER), slot, slot + 1)
        inputs["rows_of_prompt"] = self.rows_of_prompt(1)
        rows = self.rows_of(slot)
        past, present = self.memory.target.bindings(rows.start, rows.stop)
        outputs = self.scratch.part(("drawn", "hidden"))
        return self.engines["target"].bind({**inputs, **past}, {**outputs, **present})

    # slots as a whole ---------------------------------------------------------------------------------------
    def move(self, source: int, to: int, done: int) -> None:
        """Moves settings and caches of an image with `done` tokens from one slot to another."""
        rows, slots = self.rows_of(to), self.prefix_len + done
        for cache in (self.memory.target, self.memory.drafter):
            if cache is not None:
                cache.clear(rows.start, rows.stop)
                cache.copy_rows(self.rows_of(source).start, rows.start, self.rows, slots)
        self._buffers.move(source, to)


def bound_for(calls: dict[Key, BoundCall], key: Key, bind: Callable[[Key], BoundCall]) -> BoundCall:
    """The call of this key; bound once."""
    if key not in calls:
        calls[key] = bind(key)
    return calls[key]
