"""`jacobi`: what the target drew at a position when it last did is the guess for it.

A round verifies guesses behind the accepted path, too. Behind each of them the target has drawn a token, in a context
that was not yet right; these draws are the guesses of the next round, kept by absolute position
(`TokenSequence.guesses`). Since a draw belongs to (seed, position, token), most of them settle in a few rounds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..backends import BoundCall
from ..slots import Sequences, SlotBuffers, TokenSequence, occupied
from ..tree import Tree
from ..workspace import Workspace, bound_for
from .base import Origin, States


class Jacobi:
    """Gives guessed nodes their tokens, and all nodes their embeddings. `buffers` hold `embeds`."""

    def __init__(self, workspace: Workspace, tree: Tree, buffers: SlotBuffers) -> None:
        self.workspace, self.tree = workspace, tree
        slots = workspace.memory.slots
        self._buffers = buffers
        self._ids = buffers.add("ids_in", (tree.size,), "int64", workspace.written, by_row=True)  # [R, N]
        self.tokens = workspace.array(buffers, "tree_tokens", (tree.size,), "int64")
        self.origins = workspace.array(buffers, "origins", (tree.size,), "int8")
        self.trees = [tree] * slots
        self.q_rows: list[dict[int, int]] = [{}] * slots
        self.log_q = np.zeros((slots, 0, workspace.manifest.model.vocab_size), np.float32)
        self._calls: dict[int, BoundCall] = {}
        self._steps = steps(tree)

    def begin(self, slot: int, sequence: TokenSequence) -> None:
        """Nothing: there are no guesses yet."""

    def draft(self, sequences: Sequences, states: States, with_q: bool) -> None:
        """Nothing: no engine is asked."""

    def complete(self, sequences: Sequences) -> None:
        for slot, sequence in occupied(sequences):
            self.tokens[slot, 0] = sequence.tokens[sequence.done - 1]
            self.guess(slot, sequence)
        self._load(len(sequences))
        self.embed(len(sequences))

    def guess(self, slot: int, sequence: TokenSequence) -> None:
        """Fills the guessed nodes of a slot; the root's token, and those of drafted nodes, are there."""
        if not self._steps:
            return
        tokens, origins = self.tokens[slot].tolist(), self.origins[slot].tolist()
        fill(tokens, origins, self.tree, self._steps, sequence)
        self.tokens[slot], self.origins[slot] = tokens, origins

    def _load(self, slots: int) -> None:
        rows = self.workspace.rows
        self._ids[: slots * rows].reshape(slots, rows, -1)[:] = self.tokens[:slots, None]

    def queue(self, slots: int, states: States) -> None:
        """Nothing, as above."""

    def embed(self, slots: int) -> None:
        """Embeds the nodes of the first `slots` slots."""
        call = bound_for(self._calls, self.workspace.size_for(slots), self._bind)
        self.workspace.run(call, ())

    def _bind(self, slots: int) -> BoundCall:
        given = self._buffers.part(("ids_in", "embeds"), 0, slots)
        return self.workspace.engines["embed"].bind({"ids": given["ids_in"]}, {"embeds": given["embeds"]})


Step = tuple[int, int, tuple[int, ...]]  # a guessed node, its depth, the siblings that have their tokens before it


def steps(tree: Tree) -> list[Step]:
    """The guessed nodes in the order in which they are filled."""
    found = []
    for node in tree.guessed:
        siblings = tree.children[tree.parents[node]]
        elders = siblings[: siblings.index(node)]
        younger = (other for other in siblings[len(elders) + 1 :] if other in tree.drafted_nodes)
        found.append((node, int(tree.depths[node]), (*elders, *younger)))
    return found


def fill(tokens: list[int], origins: list[int], tree: Tree, guessed: list[Step], sequence: TokenSequence) -> None:
    """Gives guessed nodes what was drawn at their position, or came second where a sibling carries it already."""
    plan, done = sequence.plan, sequence.done
    ahead = slice(done, done + tree.depth)
    drawn, second = sequence.guesses[:, ahead].tolist()
    forced = plan.forced[ahead].tolist()
    for node, depth, others in guessed:
        line = tree.lines[node]
        if depth > len(drawn):  # behind the sequence's end: nobody looks
            tokens[node] = tokens[line[-2]]
            continue
        token = forced[depth - 1]
        origins[node] = Origin.JACOBI
        if token >= 0:
            tokens[node] = token
            continue
        taken = [tokens[other] for other in others]
        token = next((t for t in (drawn[depth - 1], second[depth - 1]) if t >= 0 and t not in taken), -1)
        if token < 0:
            origins[node] = Origin.NEW
            token = new_place(tokens, line, sequence, done + depth - 1, taken)
        tokens[node] = token


def new_place(
    tokens: list[int], line: tuple[int, ...], sequence: TokenSequence, position: int, taken: Sequence[int] = ()
) -> int:
    """A token for a place that no round has reached: that of the code above, in the first row of the code before.

    Images are flat from row to row: it is worth a twentieth of the accepted length over the code to the left, on a
    window of 16, and as much as tables of which codes follow which. Where a sibling carries it already (`taken`), the
    code before stands in.
    """
    found = [
        _token_at(tokens, line, sequence, beside)
        for beside in (int(sequence.plan.above[position]), int(sequence.plan.left[position])) if beside >= 0
    ]  # fmt: skip
    return next((token for token in found if token not in taken), found[0] if found else 0)


def _token_at(tokens: list[int], line: tuple[int, ...], sequence: TokenSequence, position: int) -> int:
    """The token of a position before a node's own: decided, or one of the nodes on its `line`."""
    depth = position - sequence.done + 1
    return tokens[line[depth]] if depth >= 0 else int(sequence.tokens[position])


def remember(sequence: TokenSequence, tree: Tree, end: int, drawn: np.ndarray, second: np.ndarray | None) -> None:
    """Keeps the draws behind the walk, which has ended at node `end`, as guesses; `sequence.done` counts its tokens.

    drawn int64 [N] are the target's draws behind each node, `second` what came second; -1 where they are not finite.
    Positions behind the tree keep what a longer one has left there.
    """
    nodes = tree.continuations[end][: sequence.room]
    nodes = nodes[nodes >= 0]
    for row, draws in enumerate((drawn, second)):
        if draws is not None:
            sequence.guesses[row, sequence.done : sequence.done + len(nodes)] = draws[nodes]
