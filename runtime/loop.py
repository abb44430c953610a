"""Speculative decoding of one batch: draft, verify, accept, commit, emit.

Who owns which length, for prompt p:

| quantity | owner | meaning |
|---|---|---|
| `state.done[p]` | `emit` alone advances it | tokens of the picture that are decided, the tree's root included |
| target cache | derived: T + done - 1 committed slots | the root is not in the cache yet: verification writes it |
| drafter cache | derived: T + done - 2 pairs after `emit`, before the next draft reads the newest ones | |

An accepted path has at most depth + 1 nodes (the root included); both rows of a guidance pair follow it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import takewhile

import numpy as np

from .cache import KVCache
from .calls import DraftBuffers, DraftCall, EmbedCall, Layout, TargetCall
from .noise import Stream
from .rules import Cause, Draws, Node, Rule
from .rules.exact import draw_token
from .sampling import Sampling, kept


@dataclass
class State:
    """What changes while a batch is drawn. `codes` is int32 [P, HW], `causes` int8 [P, HW], `done` int64 [P].

    `row` is how many tokens make one row of the picture.
    """

    seeds: list[int]
    codes: np.ndarray
    causes: np.ndarray
    row: int
    done: np.ndarray
    rounds: np.ndarray  # int64 [P]: decoding calls of the target that the prompt took part in
    target_calls: int = 0  # decoding calls of the target, prefill not counted

    @classmethod
    def start(cls, seeds: list[int], grid: int) -> State:
        """Nothing drawn yet of pictures with grid x grid tokens."""
        shape = (len(seeds), grid * grid)
        done, rounds = np.zeros((2, len(seeds)), np.int64)
        return cls(seeds, np.zeros(shape, np.int32), np.zeros(shape, np.int8), grid, done, rounds)

    @property
    def image_tokens(self) -> int:
        return self.codes.shape[1]

    @property
    def unfinished(self) -> list[int]:
        return [p for p in range(len(self.seeds)) if self.done[p] < self.image_tokens]


@dataclass(frozen=True)
class Accepted:
    """One prompt's walk: node numbers from the root on, the tokens that follow them (bonus last), and their causes."""

    path: list[int]
    tokens: list[int]
    causes: list[Cause]


def draft(call: DraftCall, buffers: DraftBuffers, state: State, rule: Rule, sampling: Sampling) -> None:
    """Drafts the next tree of every prompt. Noise row d belongs to the token after a node of depth d."""
    stream = None if sampling.greedy else rule.noise
    for p in state.unfinished:
        buffers.window.fill(p, state.seeds[p], stream, int(state.done[p]), state.image_tokens)
    call.run()
    buffers.read_trees(state.unfinished)


def verify(call: TargetCall, buffers: DraftBuffers, state: State, layout: Layout, prefix_len: int) -> None:
    """Runs the target on every prompt's tree."""
    start = np.minimum(prefix_len + state.done - 1, prefix_len + state.image_tokens - 1)  # [P]
    prompts = layout.prompt_of_row()
    call.write_index[:] = start[prompts]  # [R]
    call.positions[:] = (start[:, None] + buffers.depths)[prompts]
    if buffers.dynamic:
        call.tree_mask[:, :, : buffers.ancestors.shape[1]] = buffers.ancestors[prompts]
    call.run()
    state.target_calls += 1


def accept(
    call: TargetCall, buffers: DraftBuffers, state: State, rule: Rule, sampling: Sampling
) -> dict[int, Accepted]:
    """Walks every unfinished prompt's tree; returns what was accepted, cut at the end of the picture."""
    return {p: walk(call, buffers, state, rule, sampling, p) for p in state.unfinished}


def walk(
    call: TargetCall, buffers: DraftBuffers, state: State, rule: Rule, sampling: Sampling, p: int
) -> Accepted:
    """Follows the rule's decisions from the root until one is a bonus token."""
    room = state.image_tokens - int(state.done[p])
    views = Views(call, buffers, state, sampling, rule.noise is Stream.TOKEN, p)
    path, node = [0], 0
    tokens: list[int] = []
    causes: list[Cause] = []
    while True:
        decision = rule.decide(*views.of(node, run_of_relaxed(causes)))
        tokens.append(decision.token)
        causes.append(decision.cause)
        if decision.child is None or len(tokens) == room:
            return Accepted(path, tokens, causes)
        node = decision.child
        path.append(node)


@dataclass(frozen=True)
class Views:
    """One prompt's verified tree as a rule sees it, node by node, each made once in a round."""

    call: TargetCall
    buffers: DraftBuffers
    state: State
    sampling: Sampling
    coupled: bool  # the tree was drafted with the target's own noise
    p: int
    _made: dict[tuple[int, int], tuple[Node, Draws]] = field(default_factory=dict)

    def of(self, node: int, relaxed_run: int) -> tuple[Node, Draws]:
        """A node, reached by `relaxed_run` relaxed tokens in a row, and the draws of the token after it."""
        if (node, relaxed_run) not in self._made:
            self._made[node, relaxed_run] = self._make(node, relaxed_run)
        return self._made[node, relaxed_run]

    def _make(self, node: int, relaxed_run: int) -> tuple[Node, Draws]:
        call, buffers, state, p = self.call, self.buffers, self.state, self.p
        drafted, tree, law_rows = buffers.tree_tokens[p], buffers.trees[p], buffers.law_rows[p]
        depth = int(tree.depths[node])
        position = int(state.done[p]) + depth
        count = kept(call.logits[p, node], self.sampling)

        def behind(child: int, relaxed: bool) -> tuple[Node, Draws] | None:
            if position + 1 >= state.image_tokens:
                return None
            return self.of(tree.children[node][child], relaxed_run + 1 if relaxed else 0)

        seen = Node(
            index=node,
            ids=call.ids[p, node, :count],
            logits=call.logits[p, node, :count],
            tokens=[int(drafted[child]) for child in tree.children[node]],
            nodes=tree.children[node],
            log_q=buffers.log_q[p, law_rows[node]] if node in law_rows else None,
            similarity=call.similarity[p],
            tree=tree,
            drafted=drafted,
            row_start=position % state.row == 0,
            relaxed_run=relaxed_run,
            hidden=call.hidden,
            guidance=call.guidance[p],
            behind=behind,
        )
        shared = buffers.noise[p, depth] if self.coupled and not self.sampling.greedy else None
        return seen, Draws(state.seeds[p], position, buffers.noise.shape[2], shared)


def run_of_relaxed(causes: list[Cause]) -> int:
    """How many of the newest tokens, one after the other, a relaxation let pass."""
    return len(list(takewhile(lambda cause: cause.relaxed, reversed(causes))))


def commit(cache: KVCache, state: State, accepted: dict[int, Accepted], layout: Layout, prefix_len: int) -> None:
    """Moves the accepted entries of the target's cache to the front of the tree region, for both rows alike."""
    for p, walked in accepted.items():
        cache.commit(layout.rows_of(p), prefix_len + int(state.done[p]) - 1, walked.path)


def emit(state: State, accepted: dict[int, Accepted], call: DraftCall, layout: Layout, prefix_len: int) -> None:
    """Writes the new tokens, advances the lengths and tells the drafter what to read next."""
    start = call.write_index.copy()
    for p, walked in accepted.items():
        count, done = len(walked.tokens), int(state.done[p])
        state.codes[p, done : done + count] = walked.tokens
        state.causes[p, done : done + count] = walked.causes
        state.done[p] = done + count
        call.path[p] = walked.path[-1]
        call.path[p, :count] = walked.path[:count]
        call.tokens[p] = walked.tokens[-1]
        call.tokens[p, :count] = walked.tokens
        call.count[p] = count
        start[layout.rows_of(p)] = prefix_len + done - 1
        state.rounds[p] += 1
    call.place(start)


def decode_one(
    call: TargetCall, embed: EmbedCall, state: State, layout: Layout, prefix_len: int
) -> None:
    """Runs the target on the newest token of every prompt: plain decoding."""
    newest = state.codes[np.arange(len(state.seeds)), state.done - 1]  # [P]
    embed.ids[:, 0] = newest[layout.prompt_of_row()]
    embed.run()
    call.write_index[:] = prefix_len + state.done[layout.prompt_of_row()] - 1
    call.positions[:] = call.write_index[:, None]
    call.run()
    state.target_calls += 1
    state.rounds += 1


def sample_next(call: TargetCall, state: State, sampling: Sampling) -> None:
    """Draws every prompt's next token from the call's last node by plain sampling."""
    for p, seed in enumerate(state.seeds):
        position = int(state.done[p])
        count = kept(call.logits[p, -1], sampling)
        draws = Draws(seed, position, call.vocab_size)
        state.codes[p, position] = draw_token(call.ids[p, -1, :count], call.logits[p, -1, :count], draws)
    state.done += 1
