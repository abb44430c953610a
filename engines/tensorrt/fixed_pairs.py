"""Calls of any number of pairs on a draft engine of which every call has K pairs (`attention.py`, NODES).

The steady call has K pairs anyway. The first one, over the prefix, becomes several calls: each reads the next K pairs,
the last one the last K, some of them once more, with the same result. A prefix shorter than K is padded. Every one of
these calls drafts a tree; that of the last call is the answer, and what the others wrote of theirs behind their pairs
is overwritten by the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ...runtime.backends import Buffer
from ...runtime.backends.host import HostBuffer, host_buffer
from .run import PlanEngine, TimedCall

Buffers = Mapping[str, Buffer]
_OF_PAIRS = ("path", "tokens", "positions")  # inputs [P or R, M]
_OWN = ("count", "write_index")


class FixedPairs:
    """The drafter on `engine`, of which every call has `fixed` pairs, as an engine for any number of them."""

    def __init__(self, engine: PlanEngine, fixed: int) -> None:
        self._engine, self._fixed = engine, fixed

    def dtype(self, name: str) -> str:
        return self._engine.dtype(name)

    def bind(self, inputs: Buffers, outputs: Buffers) -> TimedCall:
        """Raises CascadeError when the engine has no profile for the rows of `inputs`."""
        if inputs["path"].shape[1] == self._fixed:
            return self._engine.bind(inputs, outputs)
        own = {name: host_buffer((inputs[name].shape[0], self._fixed), "int64") for name in _OF_PAIRS}
        own |= {name: HostBuffer(inputs[name].host.copy()) for name in _OWN}
        assert "features" not in outputs, "states of all pairs would come in pieces; the runtime reads none"
        return FixedPairsCall(self._engine.bind({**inputs, **own}, outputs), inputs, own)


class FixedPairsCall:
    """`call` reads `own`, which have K pairs; users of this see `inputs`."""

    def __init__(self, call: TimedCall, inputs: Buffers, own: Buffers) -> None:
        self._call = call
        self._inputs = {name: buffer.host for name, buffer in inputs.items()}
        self._own = {name: buffer.host for name, buffer in own.items()}
        self._fixed = own["path"].shape[1]

    def run(self, fetch: Sequence[str] = ()) -> None:
        for piece in range(self._pieces()):
            self._prepare(piece)
            self._call.run(fetch)

    def seconds(self, repeats: int = 50) -> float:
        """Of all pieces together."""
        self._prepare(0)
        return self._pieces() * self._call.seconds(repeats)

    def _pieces(self) -> int:
        return -(-int(self._inputs["count"].max()) // self._fixed)

    def _prepare(self, piece: int) -> None:
        """Fills the engine's inputs with a piece's pairs."""
        given, own, count = self._inputs, self._own, self._inputs["count"]
        first = np.minimum(piece * self._fixed, np.maximum(count - self._fixed, 0))  # [P]
        pairs = np.minimum(first[:, None] + np.arange(self._fixed), count[:, None] - 1)  # [P, K]
        for name in ("path", "tokens"):
            own[name][:] = np.take_along_axis(given[name], pairs, axis=1)
        own["count"][:] = np.minimum(count - first, self._fixed)
        starts = first[given["prompt_of_row"]]
        own["write_index"][:] = given["write_index"] + starts
        own["positions"][:] = (given["positions"][:, 0] + starts)[:, None] + np.arange(self._fixed)
