"""`mixed`: the draft engine drafts the nodes at the top, the round before gives those behind them.

One drafted level is the best (docs/drafting.md): the drafter knows what follows the newest token, which the guesses
of the round before do not, and from the second token on they are better than the drafter.
"""

from __future__ import annotations

import numpy as np

from ..slots import Sequences, SlotBuffers, TokenSequence, occupied
from ..tree import Tree
from ..workspace import Workspace
from .base import Origin, States
from .eagle import Eagle
from .jacobi import Jacobi


class Mixed(Jacobi):
    """`buffers` hold `noise`, `forced` and `embeds` of the whole tree; the draft engine has its own for its part, in
    `drafts`."""

    def __init__(self, workspace: Workspace, tree: Tree, buffers: SlotBuffers) -> None:
        super().__init__(workspace, tree, buffers)
        drafted, model = tree.drafted, workspace.manifest.model
        assert drafted is not None  # the caller has a tree that is drafted in part
        self.levels, own = drafted.depth + 1, workspace.new_buffers()
        self._noise = own.add("noise", (self.levels, model.vocab_size), "float32", workspace.written)
        self._forced = own.add("forced", (self.levels,), "int64", workspace.written)
        own.add("embeds", (drafted.size, model.dim), workspace.engines["target"].dtype("embeds"), "device", by_row=True)
        self._of_tree, self._tree_noise, self._tree_forced = buffers, buffers.host("noise"), buffers.host("forced")
        self._nodes = np.array(tree.drafted_nodes)
        self.origins[:, self._nodes] = Origin.EAGLE
        if workspace.on_device:
            buffers.send("origins")
        self.drafts = own
        self.eagle = Eagle(workspace, drafted, own)

    def begin(self, slot: int, sequence: TokenSequence) -> None:
        self._share(slot)
        self.eagle.begin(slot, sequence)

    def draft(self, sequences: Sequences, states: States, with_q: bool) -> None:  # noqa: ARG002 - guesses have none
        for slot, _ in occupied(sequences):
            self._share(slot)
        self.eagle.draft(sequences, states, with_q=False)

    def _share(self, slot: int) -> None:
        """Gives the draft engine its levels of the slot's noise and forced tokens, which kernels do for themselves."""
        if self.workspace.on_device:
            return
        self._noise[slot] = self._tree_noise[slot, : self.levels]
        self._forced[slot] = self._tree_forced[slot, : self.levels]

    def queue(self, slots: int, states: States) -> None:
        self.eagle.queue(slots, states)

    def guess(self, slot: int, sequence: TokenSequence) -> None:
        self.tokens[slot, self._nodes] = self.eagle.tokens[slot]
        super().guess(slot, sequence)

    def run(self, slots: int, pairs: int, states: States) -> None:
        """The draft engine on whatever is in the buffers, for those who measure it."""
        self.eagle.run(slots, pairs, states)
