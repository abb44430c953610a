"""Calls of any number of pairs on a draft engine that takes few numbers of them.

The runtime reads as many pairs as a round has accepted, behind a target call of any tree. An engine has profiles for
the most that a tree can leave, or takes K pairs in every call (`attention.py`, NODES). So a call of fewer pairs is
padded behind its last one, and its hidden states with rows that no pair reads. One of more (the first, over the prefix)
becomes several calls: each reads the next K pairs, the last one the last K, some of them once more, with the same
result. Every one of these calls drafts a tree; that of the last call is the answer, and what the others wrote of theirs
behind their pairs is overwritten by the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ...runtime.backends import Buffer
from ...runtime.backends.host import HostBuffer, host_buffer
from .profiles import Dims, fitting
from .run import PlanEngine, TimedCall

Buffers = Mapping[str, Buffer]
_OF_PAIRS = ("path", "tokens", "positions")  # inputs [P or R, M]
_OWN = ("count", "write_index")


class FixedPairs:
    """The drafter on `engine`, with these profiles, as an engine for any number of pairs and of hidden states up to the
    profiles' largest."""

    def __init__(self, engine: PlanEngine, profiles: Sequence[Dims]) -> None:
        self._engine, self._profiles = engine, profiles

    def dtype(self, name: str) -> str:
        return self._engine.dtype(name)

    def bind(self, inputs: Buffers, outputs: Buffers) -> TimedCall:
        """Raises CascadeError when the engine has no profile for the rows or hidden states of `inputs`."""
        (rows, states, _), pairs = inputs["hidden"].shape, inputs["path"].shape[1]
        fixed, states_taken = self._sizes(rows, pairs, states)
        if (fixed, states_taken) == (pairs, states):
            return self._engine.bind(inputs, outputs)
        assert "features" not in outputs, "states of all pairs would come in pieces; the runtime reads none"
        own = {name: host_buffer((inputs[name].shape[0], fixed), "int64") for name in _OF_PAIRS}
        own |= {name: HostBuffer(inputs[name].host.copy()) for name in _OWN}
        if states_taken > states:
            like = inputs["hidden"]
            own["hidden"] = host_buffer((rows, states_taken, like.shape[2]), like.dtype)
        return FixedPairsCall(self._engine.bind({**inputs, **own}, outputs), inputs, own)

    def _sizes(self, rows: int, pairs: int, states: int) -> tuple[int, int]:
        """M and N_hidden of the smallest profile that takes so many pairs; of more pairs than any takes, pieces."""
        taken = [p["M"] for p in self._profiles if p["R"] == rows and p["N_hidden"] >= states]
        profile = fitting(self._profiles, rows, M=min(pairs, max(taken, default=pairs)), N_hidden=states)
        return profile["M"], profile["N_hidden"]


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
        """Fills the engine's inputs with a piece's pairs.

        Raises ValueError for pairs that would be written outside the cache: a GPU might not notice.
        """
        given, own, count = self._inputs, self._own, self._inputs["count"]
        if "hidden" in own:
            own["hidden"][:, : given["hidden"].shape[1]] = given["hidden"]
        first = np.minimum(piece * self._fixed, np.maximum(count - self._fixed, 0))  # [P]
        pairs = np.minimum(first[:, None] + np.arange(self._fixed), count[:, None] - 1)  # [P, K]
        for name in ("path", "tokens"):
            own[name][:] = np.take_along_axis(given[name], pairs, axis=1)
        own["count"][:] = np.minimum(count - first, self._fixed)
        starts = first[given["prompt_of_row"]]
        own["write_index"][:] = given["write_index"] + starts
        if (own["write_index"] + self._fixed > (slots := given["cache_mask"].shape[1])).any():
            raise ValueError(f"{self._fixed} pairs would be written beyond the cache's {slots} slots")
        own["positions"][:] = (given["positions"][:, 0] + starts)[:, None] + np.arange(self._fixed)
