"""What a drafter reads of a round: the accepted tokens, each with the hidden state before it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..backends import Buffer
from ..slots import SlotBuffers
from ..workspace import Workspace


@dataclass(frozen=True)
class Pairs:
    """What a call reads for every slot: M newest pairs of a hidden state and the token behind it.

    `path` and `tokens` int64 [P, M]: rows of the hidden states, and tokens, padded behind the first `count` int64 [P].
    `positions` int64 [R, M] are rows of the drafter's rotary table, `write_index` int64 [R] the first cache slot.
    """

    buffers: SlotBuffers
    path: np.ndarray
    tokens: np.ndarray
    count: np.ndarray
    positions: np.ndarray
    write_index: np.ndarray

    @classmethod
    def allocate(cls, workspace: Workspace, pairs: int) -> Pairs:
        """The host writes them, or kernels do."""
        buffers, written = workspace.new_buffers(), workspace.written
        add = buffers.add
        made = cls(
            buffers, add("path", (pairs,), "int64", written), add("tokens", (pairs,), "int64", written),
            add("count", (), "int64", written), add("positions", (pairs,), "int64", written, by_row=True),
            add("write_index", (), "int64", written, by_row=True),
        )  # fmt: skip
        made.count[:] = 1
        made.positions[:] = np.arange(pairs)
        if workspace.on_device:
            buffers.send("count", "positions")
        return made

    def bindings(self, slots: int) -> dict[str, Buffer]:
        return self.buffers.part(("path", "tokens", "count", "positions", "write_index"), 0, slots)
