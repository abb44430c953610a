"""`exact`: the Gumbel-coupled tree, token for token the image of plain decoding.

The target's token at a position is argmax(log p + g), g being the noise of (seed, position): the same draw that
plain decoding makes. The drafter adds the same g to log q before its top-k, so its children are the tokens the
target is likeliest to draw. The walk goes to the child that carries the target's token, if one does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..noise import Stream
from .base import Cause, Decision, Draws, Node


@dataclass(frozen=True)
class Exact:
    """It reads the target's draws alone, so the walk follows them without looking at nodes (`loop.walk`); `decide`
    says the same of one node."""

    name: str = "exact"
    noise: Stream | None = Stream.TOKEN
    needs: frozenset[str] = frozenset()

    @property
    def compares_siblings(self) -> bool:
        return False

    def decide(self, node: Node, draws: Draws) -> Decision:
        token = draw_token(node.ids, node.logits, draws)
        for drafted, child in zip(node.tokens, node.nodes, strict=True):
            if drafted == token:
                return Decision(token, child, Cause.STRICT)
        return Decision(token, None)


def race(ids: np.ndarray, logits: np.ndarray, draws: Draws) -> np.ndarray:
    """float32 [k]: log p + g of the kept ids, up to a constant; the largest is the target's own draw."""
    return logits + draws.gumbel(Stream.TOKEN, ids) if len(ids) > 1 else np.zeros(1, np.float32)


def draw_token(ids: np.ndarray, logits: np.ndarray, draws: Draws) -> int:
    """The target's own draw from the kept logits [k]; the engine's where it has made it."""
    if draws.drawn is not None:
        return draws.drawn
    return int(ids[np.argmax(race(ids, logits, draws))])
