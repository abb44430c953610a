"""What a batch asks of a round: `HostRounds` answers at once, `DeviceRounds` (`device_rounds.py`) one round late.

The functions of `loop.py` are a round as the host sees it. A backend that has kernels does the same between its engines
on the GPU, and the host only reads what was accepted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from . import loop
from .conditioner import Prefix
from .lane import Lane, Lanes
from .rules import Rule
from .slots import Accepted, Sequences, TokenSequence
from .stats import Stats


@dataclass(frozen=True)
class Walked:
    """A round whose outcome is known: its tree, the images that were drawn in it by slot, and what each has accepted
    (None: its numbers are not finite). The sequences have their new tokens."""

    tree: str
    sequences: Sequences
    accepted: Mapping[int, Accepted | None]


class Rounds(Protocol):
    """Rounds of the images in the slots of one workspace. Every image is in one kind of rounds from its first token to
    its last."""

    lanes: Lanes

    @property
    def under_way(self) -> bool:
        """Whether the device has a round to do while the host goes on."""
        ...

    def serves(self, rule: Rule | None) -> bool:
        """Whether images of a rule (None: plain decoding) can be drawn."""
        ...

    def fill(self, lane: Lane, slot: int, sequence: TokenSequence, prefix: Prefix) -> None:
        """Reads a fresh image's prefix, draws its first token and drafts behind it. Raises loop.NotFiniteError."""
        ...

    def draft(self, lane: Lane, sequences: Sequences, before: Lane) -> None:
        """Drafts for images that are under way; `before` is the lane of the newest target call."""
        ...

    def verify(self, lane: Lane, sequences: Sequences, stats: Stats) -> Sequence[Walked]:
        """The rest of a round. Returns the rounds whose outcome is known now."""
        ...

    def settle(self, stats: Stats) -> Sequence[Walked]:
        """Waits for all rounds; before images change or leave slots."""
        ...

    def forget(self) -> None:
        """After an exception: no image in a slot goes on."""
        ...

    def move(self, lane: Lane, source: int, to: int, sequence: TokenSequence) -> None:
        """Moves an image to a free slot; `lane` is that of the newest target call, and all rounds are settled."""
        ...


class HostRounds:
    """Rounds whose walks run on the host, between the calls of the engines."""

    def __init__(self, lanes: Lanes) -> None:
        self.lanes, self.under_way = lanes, False

    def serves(self, rule: Rule | None) -> bool:  # noqa: ARG002 - every rule
        return True

    def fill(self, lane: Lane, slot: int, sequence: TokenSequence, prefix: Prefix) -> None:
        loop.prefill(lane, slot, sequence, prefix)

    def draft(self, lane: Lane, sequences: Sequences, before: Lane) -> None:
        loop.draft(lane, sequences, before.verified)

    def verify(self, lane: Lane, sequences: Sequences, stats: Stats) -> Sequence[Walked]:
        with stats.stage("draft"):
            loop.complete(lane, sequences)
        with stats.stage("verify"):
            loop.verify(lane, sequences)
        with stats.stage("accept"):
            accepted = loop.accept(lane, sequences)
        with stats.stage("commit"):
            loop.commit(lane, sequences, accepted)
        with stats.stage("emit"):
            loop.emit(lane, sequences, accepted)
        return [Walked(lane.tree.name, sequences, accepted)]

    def settle(self, stats: Stats) -> Sequence[Walked]:  # noqa: ARG002 - each is over when it returns
        return ()

    def forget(self) -> None: ...

    def move(self, lane: Lane, source: int, to: int, sequence: TokenSequence) -> None:
        lane.move(source, to, sequence.done)
