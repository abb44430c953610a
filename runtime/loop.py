"""One round of the images in a lane's slots: draft, verify, accept, commit, emit. Plain decoding is a tree of one node.

| quantity | owner | meaning |
|---|---|---|
| `sequence.done` | `emit` alone advances it | tokens of the sequence that are decided, the tree's root included |
| target cache | derived: T + done - 1 committed slots | the root is not in the cache yet: verification writes it |
| drafter cache | `Eagle` | up to `sequence.read`; `sequence.newest` is what the next draft reads |
| `sequence.guesses` | `emit` alone writes them | draws of the newest round at positions that are not decided |

An accepted path has at most depth + 1 nodes (the root included); both rows of a guidance pair follow it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import takewhile

import numpy as np

from .conditioner import Prefix
from .drafting import Origin, States
from .drafting.jacobi import remember
from .lane import Lane
from .noise import Stream, gumbel
from .rules import LOG_Q, LOGITS, SIMILARITY, STATES, Cause, Draws, Node
from .sampling import kept
from .slots import Accepted, Sequences, TokenSequence, occupied
from .tree import Tree

_TARGET_OUTPUTS = {LOGITS: ("logits", "ids"), SIMILARITY: ("similarity",), STATES: ("states",)}


class NotFiniteError(Exception):
    """Numbers of an image left the range of their dtype."""


def needs(sequences: Sequences) -> set[str]:
    """What the rules of the images read beside the target's draws."""
    return {name for _, sequence in occupied(sequences) for name in sequence.needs}


def stream_of(sequence: TokenSequence) -> Stream | None:
    """Whose noise the target and the drafter get: plain decoding draws with the target's own."""
    if sequence.sampling.greedy:
        return None
    return Stream.TOKEN if sequence.rule is None else sequence.rule.noise


def fill_noise(lane: Lane, slot: int, sequence: TokenSequence) -> None:
    """Sets the slot's noise, and the tokens that the sequence forces, at the next positions.

    Row d belongs to the token after a node of depth d."""
    done, plan = sequence.done, sequence.plan
    lane.window.fill(slot, sequence.seed, stream_of(sequence), done, plan.length)
    if plan.has_forced:
        ahead = plan.forced[done : done + lane.forced.shape[1]]
        lane.forced[slot] = -1
        lane.forced[slot, : len(ahead)] = ahead


# filling a slot ---------------------------------------------------------------------------------------------
def prefill(lane: Lane, slot: int, sequence: TokenSequence, prefix: Prefix) -> None:
    """Reads the prefix into the slot, draws the sequence's first token and drafts behind it. Raises NotFiniteError."""
    read_prefix(lane, slot, sequence, prefix)
    if sequence.room:
        fill_noise(lane, slot, sequence)
        lane.source.begin(slot, sequence)


def read_prefix(lane: Lane, slot: int, sequence: TokenSequence, prefix: Prefix) -> None:
    """Reads the prefix into the slot, and draws the sequence's first token. Raises NotFiniteError."""
    workspace = lane.workspace
    workspace.set_up(slot, sequence.sampling, prefix)
    vocab = lane.manifest.model.vocab_size
    greedy = sequence.sampling.greedy
    noise = np.zeros(vocab, np.float32) if greedy else gumbel(sequence.seed, 0, Stream.TOKEN, vocab)
    token = workspace.prefill(slot, prefix, noise)
    if token < 0:
        raise NotFiniteError
    sequence.tokens[0], sequence.done = token, 1
    sequence.causes[0] = Cause.FORCED if sequence.plan.forced[0] >= 0 else Cause.DRAWN


# one round --------------------------------------------------------------------------------------------------
def draft(lane: Lane, sequences: Sequences, states: States) -> None:
    """Drafts the next tree of every image, from the states of the newest target call."""
    for slot, sequence in occupied(sequences):
        fill_noise(lane, slot, sequence)
    lane.source.draft(sequences, states, LOG_Q in needs(sequences))


def complete(lane: Lane, sequences: Sequences) -> None:
    """Gives every node of every image its token and its embedding."""
    lane.source.complete(sequences)
    lane.take_masks(slot for slot, _ in occupied(sequences))


def verify(lane: Lane, sequences: Sequences) -> None:
    """Runs the target on every image's tree."""
    for slot, sequence in occupied(sequences):
        place(lane, slot, sequence, lane.depths[slot])
    lane.run_target(len(sequences), [name for need in needs(sequences) for name in _TARGET_OUTPUTS.get(need, ())])


def place(lane: Lane, slot: int, sequence: TokenSequence, depths: np.ndarray) -> None:
    """Sets cache slots and positions of a target call's nodes, `depths` int64 [N] below the sequence's newest token."""
    start, rows = lane.prefix_len + sequence.done - 1, lane.rows_of(slot)
    lane.write_index[rows] = start
    lane.positions[rows] = sequence.first[:, None] + start + depths


def accept(lane: Lane, sequences: Sequences) -> dict[int, Accepted | None]:
    """Walks every image's tree; what was accepted, cut at the end of the sequence. None: it was not finite."""
    found: dict[int, Accepted | None] = {}
    for slot, sequence in occupied(sequences):
        try:
            found[slot] = walk(lane, slot, sequence)
        except NotFiniteError:
            found[slot] = None
    return found


def walk(lane: Lane, slot: int, sequence: TokenSequence) -> Accepted:
    """Follows the rule's decisions from the root until one is a bonus token."""
    step = _step_by_rule(lane, slot, sequence) if sequence.needs else _step_by_draws(lane, slot)
    forced, tree, drafted, origin = sequence.plan.forced, lane.trees[slot], lane.tokens[slot], lane.source.origins[slot]
    path, tokens, causes, origins, node = [0], [], [], [], 0
    while True:
        if lane.drawn[slot, node] < 0:
            raise NotFiniteError
        must = int(forced[sequence.done + len(tokens)])
        if must >= 0:
            child = next((n for n in tree.children[node] if drafted[n] == must), None)
            token, cause = must, Cause.FORCED
        else:
            token, child, cause = step(node, causes)
        child = None if sequence.rule is None else child
        tokens.append(token)
        causes.append(cause)
        origins.append(Origin.TARGET if child is None else int(origin[child]))
        if child is None or len(tokens) == sequence.room:
            return Accepted(sequence.done, path, tokens, causes, origins)
        node = child
        path.append(node)


Step = Callable[[int, list[Cause]], tuple[int, int | None, Cause]]


def _step_by_draws(lane: Lane, slot: int) -> Step:
    """The target's own draws (`ar`, `exact`): on to the child that carries the drawn token."""
    drawn, drafted, tree = lane.drawn[slot], lane.tokens[slot], lane.trees[slot]

    def step(node: int, _causes: list[Cause]) -> tuple[int, int | None, Cause]:
        token = int(drawn[node])
        child = next((n for n in tree.children[node] if drafted[n] == token), None)
        return token, child, Cause.DRAWN if child is None else Cause.STRICT

    return step


def _step_by_rule(lane: Lane, slot: int, sequence: TokenSequence) -> Step:
    """An acceptance rule that looks at nodes."""
    views, rule = Views(lane, slot, sequence), sequence.rule
    assert rule is not None

    def step(node: int, causes: list[Cause]) -> tuple[int, int | None, Cause]:
        decision = rule.decide(*views.of(node, run_of_relaxed(causes)))
        return decision.token, decision.child, decision.cause

    return step


@dataclass(frozen=True)
class Views:
    """One image's verified tree as a rule sees it, node by node, each made once in a round."""

    lane: Lane
    slot: int
    sequence: TokenSequence
    _made: dict[tuple[int, int], tuple[Node, Draws]] = field(default_factory=dict)

    def of(self, node: int, relaxed_run: int) -> tuple[Node, Draws]:
        """A node, reached by `relaxed_run` relaxed tokens in a row, and the draws of the token after it."""
        if (node, relaxed_run) not in self._made:
            self._made[node, relaxed_run] = self._make(node, relaxed_run)
        return self._made[node, relaxed_run]

    def _make(self, node: int, relaxed_run: int) -> tuple[Node, Draws]:
        lane, slot, sequence = self.lane, self.slot, self.sequence
        rule, plan = sequence.rule, sequence.plan
        assert rule is not None
        drafted, tree, q_rows = lane.tokens[slot], lane.trees[slot], lane.source.q_rows[slot]
        origins, depth = lane.source.origins[slot], int(tree.depths[node])
        position = sequence.done + depth
        count = kept(lane.logits[slot, node], sequence.sampling)

        def behind(child: int, relaxed: bool) -> tuple[Node, Draws] | None:
            at, after = tree.children[node][child], position + 1
            while after < plan.length and (must := int(plan.forced[after])) >= 0:
                carriers = [n for n in tree.children[at] if drafted[n] == must]
                if not carriers:
                    return None
                at, after = carriers[0], after + 1
            return None if after >= plan.length else self.of(at, relaxed_run + 1 if relaxed else 0)

        has_q = LOG_Q in sequence.needs and node in q_rows
        if has_q and not np.isfinite(lane.source.log_q[slot, q_rows[node], 0]):
            raise NotFiniteError  # a softmax that is not finite is nowhere finite
        seen = Node(
            index=node,
            ids=lane.kept_ids[slot, node, :count],
            logits=lane.logits[slot, node, :count],
            tokens=[int(drafted[child]) for child in tree.children[node]],
            nodes=tree.children[node],
            log_q=lane.source.log_q[slot, q_rows[node]] if has_q else None,
            similarity=lane.similarity[slot] if SIMILARITY in sequence.needs else None,
            tree=tree,
            drafted=drafted,
            row_start=bool(plan.row_starts[position]),
            relaxed_run=relaxed_run,
            tree_states=lane.states[slot] if STATES in sequence.needs else None,
            behind=behind,
            blind=frozenset(i for i, child in enumerate(tree.children[node]) if origins[child] == Origin.NEW),
        )
        coupled = rule.noise is Stream.TOKEN
        shared = lane.noise[slot, depth] if coupled and not sequence.sampling.greedy else None
        drawn = int(lane.drawn[slot, node]) if coupled or sequence.sampling.greedy else None
        return seen, Draws(sequence.seed, position, lane.noise.shape[2], shared, drawn)


def run_of_relaxed(causes: list[Cause]) -> int:
    """How many of the newest tokens, one after the other, a relaxation let pass."""
    return len(list(takewhile(lambda cause: cause.relaxed, reversed(causes))))


def commit(lane: Lane, sequences: Sequences, accepted: dict[int, Accepted | None]) -> None:
    """Moves the accepted entries of the target's cache to the front of the tree region, for all rows alike."""
    for slot, sequence in occupied(sequences):
        if (walked := accepted[slot]) is not None:
            rows = lane.rows_of(slot)
            lane.memory.target.move(range(rows.start, rows.stop), lane.prefix_len + sequence.done - 1, walked.path)


def emit(lane: Lane, sequences: Sequences, accepted: dict[int, Accepted | None]) -> None:
    """Writes the new tokens, advances the lengths, and keeps what the round says of the tokens behind them."""
    for slot, sequence in occupied(sequences):
        if (walked := accepted[slot]) is None:
            continue
        take(sequence, lane.tree.name, walked)
        if isinstance(lane.tree, Tree) and lane.tree.depth:
            second = None if lane.second is None else lane.second[slot]
            remember(sequence, lane.tree, walked.path[-1], lane.drawn[slot], second)


def take(sequence: TokenSequence, tree: str, walked: Accepted) -> None:
    """Writes what a round with `tree` has accepted, and advances the length."""
    ahead = slice(sequence.done, sequence.done + len(walked.tokens))
    sequence.tokens[ahead], sequence.causes[ahead] = walked.tokens, walked.causes
    if sequence.rule is None:  # a guess that happened to be right carried nothing
        np.minimum(sequence.causes[ahead], Cause.DRAWN, out=sequence.causes[ahead])
    sequence.origins[ahead] = walked.origins
    sequence.done, sequence.newest = ahead.stop, walked
    sequence.rounds += any(cause != Cause.FORCED for cause in walked.causes)
    sequence.trees[tree] = sequence.trees.get(tree, 0) + 1
