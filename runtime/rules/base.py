"""What an acceptance rule sees, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import Protocol

import numpy as np

from ..noise import Stream, to_gumbel, uniform_of_token, uniforms
from ..sampling import probabilities
from ..tree import Tree

LOGITS, LOG_Q, SIMILARITY, STATES = "logits", "log_q", "similarity", "states"  # what a rule may need
NEEDS = frozenset({LOGITS, LOG_Q, SIMILARITY, STATES})


class Cause(IntEnum):
    """How a token came into the image."""

    FORCED = -1  # by the sequence itself, such as a row's end; no code of the image
    DRAWN = 0  # the target's own draw: plain decoding, or the bonus token of a round
    STRICT = 1  # a draft that passed the strict test
    INTERCHANGEABLE = 2  # a draft that passed thanks to its siblings (CASCADE, breadth)
    CONVERGED = 3  # a draft that passed because its state continues its parent's (CASCADE, depth)
    RELAXED = 4  # a draft that passed another relaxed rule's test only (LANTERN, GSD, COOL-SD)
    SWAPPED = 5  # a draft that stands in for the target's own draw (swap)

    @property
    def relaxed(self) -> bool:
        return self >= Cause.INTERCHANGEABLE


@dataclass(frozen=True)
class Draws:
    """The random numbers that belong to one token position of one image.

    `drawn` is the target's own draw with the TOKEN stream's noise where the engine has made it.
    """

    seed: int
    position: int
    vocab_size: int
    token_noise: np.ndarray | None = None  # float32 [V], the TOKEN stream's Gumbel noise if it is at hand
    drawn: int | None = None

    def gumbel(self, stream: Stream, ids: np.ndarray) -> np.ndarray:
        """float32 [k] of Gumbel noise, that of the token ids [k]."""
        if stream is Stream.TOKEN and self.token_noise is not None:
            return self.token_noise[ids]
        # The logarithms cost more than the random bits, so only those of the asked ids are taken.
        return to_gumbel(uniforms(self.seed, self.position, stream, self.vocab_size)[ids])

    def uniform(self, stream: Stream, token: int) -> float:
        """The number in [0, 1) of a token id."""
        return uniform_of_token(self.seed, self.position, stream, token)


@dataclass(frozen=True)
class Node:
    """One node of the tree, as a rule sees it.

    ids int64 [k] are the token ids that the sampler keeps, the likeliest first, logits float32 [k] their
    guided logits over temperature; tokens are the children's token ids in the drafter's order, nodes their
    node numbers; log_q float32 [V] is the drafter's distribution here (None at a leaf), similarity float32 [N, N] the
    cosines between the tree's guided states, `tree_states` float32 [N, F] the states themselves: the mixed features
    that the readout's linear map reads. What a rule does not name in its `needs` is None. tree and drafted int64 [N]
    are the whole tree and its tokens. `row_start`: the next token is the first of an image's row. `relaxed_run`: how
    many of the tokens accepted last in this round, one after the other, a relaxation let pass. `behind(i, relaxed)` is
    the node of child i, and its draws, as the walk would see them after that child had passed; None where the image
    ends. `blind` are the children (indices) that nobody guessed, neither a drafter nor the target: they fill places
    that no round has reached. `notes` is for what a rule has worked out about this node: the walk makes each node once.
    """

    index: int
    ids: np.ndarray
    logits: np.ndarray
    tokens: Sequence[int]
    nodes: Sequence[int]
    log_q: np.ndarray | None
    similarity: np.ndarray | None
    tree: Tree
    drafted: np.ndarray
    row_start: bool = False
    relaxed_run: int = 0
    tree_states: np.ndarray | None = None
    behind: Callable[[int, bool], tuple[Node, Draws] | None] | None = None
    blind: frozenset[int] = frozenset()
    notes: dict[str, float] = field(default_factory=dict)

    @cached_property
    def p(self) -> np.ndarray:
        """float32 [k]: the sampler's distribution over `ids`."""
        return probabilities(self.logits)

    def place(self, token: int) -> int | None:
        """Where `token` stands in `ids`, or None when the sampler has cut it off."""
        found = np.flatnonzero(self.ids == token)
        return int(found[0]) if len(found) else None

    @cached_property
    def places(self) -> list[int | None]:
        """`place` of every child's token."""
        return [self.place(token) for token in self.tokens]

    @property
    def depth(self) -> int:
        return int(self.tree.depths[self.index])

    def states(self, nodes: Sequence[int]) -> np.ndarray:
        """float32 [n, F]: the target's guided states at nodes of the tree."""
        assert self.tree_states is not None  # rules that read them name STATES in `needs`
        return self.tree_states[list(nodes)]

    def alike(self, one: int, other: int) -> float:
        """The cosine between the guided states of two nodes."""
        assert self.similarity is not None  # rules that read it name SIMILARITY in `needs`
        return float(self.similarity[one, other])

    def alike_all(self, nodes: Sequence[int]) -> np.ndarray:
        """float32 [n, n]: the cosines between the guided states of nodes."""
        assert self.similarity is not None  # rules that read it name SIMILARITY in `needs`
        return self.similarity[np.ix_(list(nodes), list(nodes))]


@dataclass(frozen=True)
class Decision:
    """The next token, and the child that carries it; without a child it is the bonus token and the walk ends."""

    token: int
    child: int | None
    cause: Cause = Cause.DRAWN


class Rule(Protocol):
    """An acceptance rule.

    `name` spells the rule with its settings, so that `get_rule(name)` makes it again. `noise` names the stream
    of Gumbel noise that the drafter adds to log q, or None for its plain top-k. `needs` names what the rule reads
    of a node beside the target's own draw: LOGITS (ids and logits, which every rule but `exact` gets anyway), LOG_Q,
    SIMILARITY, STATES. Nothing else is fetched from the engines. `compares_siblings`: it gains from trees whose nodes
    have several children, so the first such tree of a bundle is its own, where nobody asks for another.
    """

    @property
    def name(self) -> str: ...

    @property
    def noise(self) -> Stream | None: ...

    @property
    def needs(self) -> frozenset[str]: ...

    @property
    def compares_siblings(self) -> bool: ...

    def decide(self, node: Node, draws: Draws) -> Decision:
        """Accepts one of the node's children, or answers with the bonus token."""
        ...
