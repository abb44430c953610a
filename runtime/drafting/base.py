"""The contract of a source of guesses."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np

from ..slots import Sequences, SlotBuffers, TokenSequence
from ..tree import Tree
from .pairs import Pairs


class Origin(IntEnum):
    """Who said a token first."""

    TARGET = 0  # the target itself: plain decoding, the bonus token of a round
    EAGLE = 1  # the draft engine
    JACOBI = 2  # the target in an earlier round
    NEW = 3  # nobody: a place that no round has reached yet, filled from the codes around it


@dataclass(frozen=True)
class States:
    """The hidden states [R, N, D] of the newest target call, which the drafter reads next: `buffers` hold `hidden`,
    and `most` is how many tokens the call may have accepted. `pairs` says which they are, where kernels know that."""

    most: int
    buffers: SlotBuffers
    pairs: Pairs | None = None


class Source(Protocol):
    """Gives the nodes of a lane's trees their tokens and embeddings.

    A round asks `draft` of the images that have gone through a round, `begin` of fresh ones, then `complete` of all:
    after it `tokens` and `origins` and the lane's buffer `embeds` are those of the trees, whose shapes are `trees`.
    `q_rows[slot][node]` is the row of `log_q` [P, I, V] with the drafter's distribution behind a node, if it has one.
    Sequences are those of the slots at the front, None for a slot without an image. Where the workspace is `on_device`,
    kernels do what is the host's part of this: `queue` and `embed` are the calls of the engines alone.
    """

    tokens: np.ndarray  # int64 [P, N], the root first
    origins: np.ndarray  # int8 [P, N] (Origin)
    trees: list[Tree]
    q_rows: list[dict[int, int]]
    log_q: np.ndarray

    def begin(self, slot: int, sequence: TokenSequence) -> None:
        """The first tree of a fresh image, whose prefix has just been read into `slot`."""
        ...

    def draft(self, sequences: Sequences, states: States, with_q: bool) -> None:
        """What an engine has to say of the next trees. `with_q`: `log_q` is read."""
        ...

    def complete(self, sequences: Sequences) -> None:
        """What follows without an engine of its own."""
        ...

    def queue(self, slots: int, states: States) -> None:
        """The draft engine on the first `slots` slots, if there is one."""
        ...

    def embed(self, slots: int) -> None:
        """Embeds the nodes of the first `slots` slots, where the draft engine does not."""
        ...
