"""Slots: places for images that are drawn at the same time, and the memory that has a part for each.

Slot p owns the rows [2p, 2p + 1] under guidance, [p] without, in every cache and buffer. They are neighbours, so the
part of any run of slots is one contiguous view.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from .backends import Backend, Buffer, Cache, Kind
from .bundle import Manifest
from .engines import Engines
from .plan import TokenPlan
from .rules import LOGITS, Cause, Rule
from .rules.exact import Exact
from .sampling import Sampling


@dataclass(frozen=True)
class Accepted:
    """One image's walk through its tree.

    `path` are node numbers from the root on, `tokens` follow them (the bonus is the last), each with its cause and its
    origin (drafting.Origin). `start` is how many tokens were decided before, the root being the last of them.
    """

    start: int
    path: list[int]
    tokens: list[int]
    causes: list[Cause]
    origins: list[int]


@dataclass
class TokenSequence:
    """The sequence of one image while it is drawn: `tokens` int32, `causes` int8, `origins` int8, all [length].

    `done` tokens are decided, the tree's root included; `emit` alone advances it. The root is not in the target's
    cache yet, so that has T + done - 1 committed slots. `first` int64 [G]: row of the rotary table of slot 0.
    `rounds` counts the decoding calls of the target that drew a code of the image, `trees` by the tree they verified.
    `guesses` int64 [2, length]: what the target drew at each position when it last did, and what came second there;
    -1 where it never has. `newest` is the walk of the round before; `read`: the next slot that the drafter writes,
    those before it hold what it has read.
    """

    seed: int
    sampling: Sampling
    rule: Rule | None
    plan: TokenPlan
    first: np.ndarray
    tokens: np.ndarray = field(init=False)
    causes: np.ndarray = field(init=False)
    origins: np.ndarray = field(init=False)
    guesses: np.ndarray = field(init=False)
    needs: frozenset[str] = field(init=False)  # of a rule that looks at nodes; empty where draws alone decide
    trees: dict[str, int] = field(default_factory=dict)
    newest: Accepted | None = None
    read: int = 0
    done: int = 0
    rounds: int = 0

    def __post_init__(self) -> None:
        self.tokens = np.zeros(self.plan.length, np.int32)
        self.causes = np.zeros(self.plan.length, np.int8)
        self.origins = np.zeros(self.plan.length, np.int8)
        self.guesses = np.full((2, self.plan.length), -1, np.int64)
        rule = self.rule
        self.needs = frozenset() if rule is None or isinstance(rule, Exact) else rule.needs | {LOGITS}

    @property
    def room(self) -> int:
        """Tokens that are missing."""
        return len(self.tokens) - self.done

    @property
    def codes(self) -> np.ndarray:
        """int32 [rows * columns]; those from `drawn` on are not drawn yet."""
        return self.tokens[self.plan.code_positions]

    @property
    def code_causes(self) -> np.ndarray:
        """int8 [rows * columns] (rules.Cause)."""
        return self.causes[self.plan.code_positions]

    @property
    def code_origins(self) -> np.ndarray:
        """int8 [rows * columns] (drafting.Origin)."""
        return self.origins[self.plan.code_positions]

    @property
    def drawn(self) -> int:
        """How many codes are drawn."""
        return int(np.searchsorted(self.plan.code_positions, self.done))


Sequences = Sequence[TokenSequence | None]
"""Of the slots at the front; None is a slot without an image, whose part of a call nobody reads."""


def occupied(sequences: Sequences) -> Iterable[tuple[int, TokenSequence]]:
    """Slots with an image, and its sequence."""
    return ((slot, sequence) for slot, sequence in enumerate(sequences) if sequence is not None)


@dataclass(frozen=True)
class Memory:
    """The KV caches of a number of slots, two rows each; `drafter` is None where the bundle has no drafter."""

    slots: int
    target: Cache
    drafter: Cache | None

    @classmethod
    def allocate(cls, backend: Backend, engines: Engines, manifest: Manifest, slots: int) -> Memory:
        model, drafter, rows = manifest.model, manifest.drafter, 2 * slots
        dtype = engines["target"].dtype("past_key.0")
        target = backend.cache(
            model.n_layer, rows, model.n_kv_head, manifest.target.slots, model.head_dim, dtype
        )
        if drafter is None:
            return cls(slots, target, None)
        return cls(
            slots, target, backend.cache(1, rows, drafter.n_kv_head, drafter.slots, drafter.head_dim, dtype)
        )

    @property
    def nbytes(self) -> int:
        return self.target.nbytes + (0 if self.drafter is None else self.drafter.nbytes)


class SlotBuffers:
    """Named buffers with a part for each slot: one place of the first axis, or one for each of its rows."""

    def __init__(self, backend: Backend, slots: int, rows: int) -> None:
        self._backend, self._slots, self._rows = backend, slots, rows
        self._buffers: dict[str, tuple[Buffer, int]] = {}  # with the places that a slot has

    def add(self, name: str, shape: tuple[int, ...], dtype: str, kind: Kind, by_row: bool = False) -> np.ndarray:
        """A buffer [slots, *shape], or [slots * rows, *shape] with `by_row`; returns its host view."""
        places = self._rows if by_row else 1
        buffer = self._backend.buffer((self._slots * places, *shape), dtype, kind)
        self._buffers[name] = buffer, places
        return buffer.host

    def address(self, name: str) -> int:
        """Where kernels find a buffer."""
        return self._buffers[name][0].address

    def buffer(self, name: str) -> Buffer:
        """A buffer, whole."""
        return self._buffers[name][0]

    def send(self, *names: str, slot: int | None = None) -> None:
        """Gives the device what the host has written, to all slots or one."""
        for name in names:
            buffer, places = self._buffers[name]
            (buffer if slot is None else buffer.view(slot * places, (slot + 1) * places)).send()

    def host(self, name: str) -> np.ndarray:
        """The host view of a buffer."""
        return self._buffers[name][0].host

    def part(self, names: Iterable[str], start: int, stop: int) -> dict[str, Buffer]:
        """The views of slots start ... stop - 1."""
        found = {}
        for name in names:
            buffer, places = self._buffers[name]
            found[name] = buffer.view(start * places, stop * places)
        return found

    def move(self, source: int, to: int) -> None:
        """Gives slot `to` what slot `source` holds."""
        for buffer, places in self._buffers.values():
            buffer.move(source * places, to * places, places)
