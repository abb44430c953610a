"""Calls of any number of nodes on a target engine of which every call has K nodes (`attention.py`, NODES).

A call of fewer nodes repeats its last one, with its position and its row of the mask: the copies see what it sees,
change no answer, and are cut off again. A longer one (the prefix) becomes several calls in order, the last of them
padded; a later piece reads what the earlier ones wrote, as slots before `write_index`. Copies fill up to K - 1 cache
slots after the call's last node. A runtime may leave them there, because no node ever sees a slot that was not
written again first; here they are put back, so that caches can be compared. The bundle's cache has room for them,
since K is the most nodes of a call: its slots end K after the last image token. Rows of noise, and forced tokens, are
padded to those that the engine takes, which no node asks for.

`PaddedIds` is the embed engine for the trees of any number of nodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...runtime.backends import Buffer
from ...runtime.backends.host import HostBuffer, host_buffer
from .profiles import Dims, fitting
from .run import PlanEngine, TimedCall

Buffers = Mapping[str, Buffer]
_OF_NODES = ("embeds", "positions", "depths")  # inputs [P or R, N, ...] that a piece takes its nodes from
_BY_LEVEL = ("noise", "forced")  # inputs [P, L, ...]
_BY_NODE = ("drawn", "runner_up", "logits", "ids", "states", "hidden")  # outputs [P or R, N, ...]


@dataclass(frozen=True)
class Piece:
    """Nodes `start` to `start + count` of a call, in a call of their own."""

    start: int
    count: int


def pieces(tree_mask: np.ndarray, fixed: int) -> list[Piece]:
    """Cuts a call with tree_mask [R, N, W + 1] into pieces of at most `fixed` nodes.

    Slots before a piece are seen by all of its nodes or none (`cache_mask` has no dimension for nodes), so a piece
    also ends where the mask says otherwise; in a causal prefix, padded on the left or not at all, it never does.
    """
    nodes, found, start = tree_mask.shape[1], [], 0
    while start < nodes:
        before = tree_mask[:, start : start + fixed, :start]
        agrees = (before == before[:, :1]).all(axis=(0, 2))
        count = len(agrees) if agrees.all() else int(np.argmin(agrees))
        found.append(Piece(start, count))
        start += count
    return found


class FixedNodes:
    """The target on `engine`, of which every call has one number of nodes and of rows of noise by its `profiles`, as an
    engine for any number of them."""

    def __init__(self, engine: PlanEngine, profiles: Sequence[Dims]) -> None:
        self._engine, self._fixed, self._levels = engine, profiles[0]["N"], profiles[0]["L"]

    def dtype(self, name: str) -> str:
        return self._engine.dtype(name)

    def bind(self, inputs: Buffers, outputs: Buffers) -> TimedCall:
        """Raises CascadeError when the engine has no profile for the rows of `inputs`, ValueError for `similarity`
        without `states`: cosines of nodes in different pieces are made from these."""
        own = {name: self._resized(given) for name, given in inputs.items() if name in (*_OF_NODES, "tree_mask")}
        own |= {name: _longer(inputs[name], self._levels) for name in _BY_LEVEL if name in inputs}
        own |= {name: HostBuffer(inputs[name].host.copy()) for name in ("write_index", "cache_mask")}
        answers = {name: self._resized(wanted) for name, wanted in outputs.items() if name in _BY_NODE}
        if "similarity" in outputs:
            if "states" not in outputs:
                raise ValueError("similarity is bound without states")
            slots = outputs["similarity"].shape[0]
            answers["similarity"] = host_buffer((slots, self._fixed, self._fixed), "float32")
        call = self._engine.bind({**inputs, **own}, {**outputs, **answers})
        return FixedNodesCall(call, inputs, outputs, own, answers)

    def _resized(self, like: Buffer) -> HostBuffer:
        """Zeros like a buffer [P or R, N, ...] with as many nodes as the engine takes."""
        return _longer(like, self._fixed)


def _longer(like: Buffer, count: int) -> HostBuffer:
    """Zeros like a buffer [P or R, n, ...], `count` in place of n."""
    return host_buffer((like.shape[0], count, *like.shape[2:]), like.dtype)


class FixedNodesCall:
    """`call` reads `own` and writes `answers`, which have K nodes; users of this see `inputs` and `outputs`."""

    def __init__(self, call: TimedCall, inputs: Buffers, outputs: Buffers, own: Buffers, answers: Buffers) -> None:
        self._call = call
        self._inputs, self._outputs, self._own, self._answers = (
            {name: buffer.host for name, buffer in buffers.items()} for buffers in (inputs, outputs, own, answers)
        )
        self._fixed = self._own["embeds"].shape[1]

    def run(self, fetch: Sequence[str] = ()) -> None:
        restore = self._later_slots()
        found = self._pieces()
        for piece in found:
            self._prepare(piece)
            self._call.run(fetch)
            for name, answer in self._answers.items():
                if name in _BY_NODE:
                    self._outputs[name][:, piece.start : piece.start + piece.count] = answer[:, : piece.count]
        if "similarity" in self._outputs:
            self._write_similarity(found)
        for cache, row, start, slots in restore:
            cache[row, :, start : start + slots.shape[1]] = slots

    def seconds(self, repeats: int = 50) -> float:
        """Of all pieces together."""
        found = self._pieces()
        self._prepare(found[0])
        return len(found) * self._call.seconds(repeats)

    def _pieces(self) -> list[Piece]:
        return pieces(self._inputs["tree_mask"], self._fixed)

    def _prepare(self, piece: Piece) -> None:
        """Fills the engine's inputs: the piece's nodes, then its last one again; a mask that begins at the piece.

        Raises ValueError for nodes that would be written outside the cache: a GPU might not notice.
        """
        given, own, start = self._inputs, self._own, piece.start
        slots = given["cache_mask"].shape[1]
        if (given["write_index"] + start + self._fixed > slots).any():
            raise ValueError(f"{self._fixed} nodes would be written beyond the cache's {slots} slots")
        nodes = start + np.minimum(np.arange(self._fixed), piece.count - 1)
        for name in _OF_NODES:
            own[name][:] = given[name][:, nodes]
        own["write_index"][:] = given["write_index"] + start
        mask = given["tree_mask"]
        own["tree_mask"][:] = False
        own["tree_mask"][:, :, : mask.shape[2] - start] = mask[:, nodes, start:]
        for name in _BY_LEVEL:
            if name in own:
                own[name][:, : given[name].shape[1]] = given[name]
        own["cache_mask"][:] = given["cache_mask"]
        for row, first in enumerate(given["write_index"]):
            own["cache_mask"][row, first : first + start] = mask[row, start, :start]

    def _write_similarity(self, found: list[Piece]) -> None:
        """Cosines [P, N, N] between all nodes of the call: the engine's, or of its pieces' states."""
        similarity = self._outputs["similarity"]
        if len(found) == 1:
            nodes = similarity.shape[1]
            similarity[:] = self._answers["similarity"][:, :nodes, :nodes]
            return
        states = self._outputs["states"]  # [P, N, F]
        unit = states / np.maximum(np.linalg.norm(states, axis=-1, keepdims=True), 1e-12)
        similarity[:] = unit @ unit.transpose(0, 2, 1)

    def _later_slots(self) -> list[tuple[np.ndarray, int, int, np.ndarray]]:
        """(cache, row, slot, entries [H, slots, Dh]) that padding overwrites: copies of what lies there now."""
        nodes = self._inputs["embeds"].shape[1]
        caches = [array for name, array in self._outputs.items() if name.startswith("present_")]
        return [
            (cache, row, first + nodes, cache[row, :, first + nodes : first + nodes + self._fixed].copy())
            for cache in caches
            for row, first in enumerate(self._inputs["write_index"].tolist())
        ]


class PaddedIds:
    """The embed engine on `engine`, which takes the numbers of nodes of its `profiles`, as an engine for any number up
    to their largest."""

    def __init__(self, engine: PlanEngine, profiles: Sequence[Dims]) -> None:
        self._engine, self._profiles = engine, profiles

    def dtype(self, name: str) -> str:
        return self._engine.dtype(name)

    def bind(self, inputs: Buffers, outputs: Buffers) -> TimedCall:
        """Raises CascadeError when the engine has no profile for these ids [R, N]."""
        rows, nodes = inputs["ids"].shape
        size = fitting(self._profiles, rows, N=nodes)["N"]
        if size == nodes:
            return self._engine.bind(inputs, outputs)
        ids, embeds = _longer(inputs["ids"], size), _longer(outputs["embeds"], size)
        call = self._engine.bind({"ids": ids}, {"embeds": embeds})
        return PaddedIdsCall(call, inputs["ids"].host, outputs["embeds"].host, ids.host, embeds.host)


@dataclass(frozen=True)
class PaddedIdsCall:
    """`call` reads `own_ids` and writes `own_embeds`; users of this see `ids` [R, N] and `embeds` [R, N, D]."""

    call: TimedCall
    ids: np.ndarray
    embeds: np.ndarray
    own_ids: np.ndarray
    own_embeds: np.ndarray

    def run(self, fetch: Sequence[str] = ()) -> None:
        nodes = self.ids.shape[1]
        self.own_ids[:, :nodes] = self.ids
        self.call.run(fetch)
        self.embeds[:] = self.own_embeds[:, :nodes]

    def seconds(self, repeats: int = 50) -> float:
        return self.call.seconds(repeats)
