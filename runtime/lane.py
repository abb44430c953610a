"""A lane: the buffers and bound calls that draw the images of a memory's slots with one tree.

Calls share buffers, so nothing is copied between engines: the source of guesses writes the embeddings that the target
reads, and a drafter reads the hidden states that the target wrote. Calls run on the slots at the front; each number of
slots (`Backend.sizes`) is bound once. Plain decoding is a tree of one node.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from .backends import BoundCall
from .drafting import Pairs, States, open_source
from .noise import NoiseWindow
from .tree import NO_TREE, ROOT, AnyTree, DynamicTree, Tree
from .workspace import SAMPLER, SETTINGS, Workspace, bound_for

_INPUTS = ("embeds", "positions", "write_index", "tree_mask", "depths", "noise")
_OUTPUTS = ("drawn", "logits", "ids", "states", "hidden", "similarity")


class Lane:
    """Everything bound for one tree. Raises CascadeError when the bundle cannot draft it."""

    def __init__(self, workspace: Workspace, tree: AnyTree) -> None:
        self.workspace, self.tree = workspace, tree
        self.manifest, self.plan, self.prefix_len = workspace.manifest, workspace.plan, workspace.prefix_len
        self.memory, self.rows = workspace.memory, workspace.rows
        self.buffers = workspace.new_buffers()
        self._calls: dict[int, BoundCall] = {}
        self._guesses_second = isinstance(tree, Tree) and tree.has_rivals
        drawn = ("drawn", "runner_up") if self._guesses_second else ("drawn",)
        self._always = () if workspace.on_device else drawn  # what comes back of every call
        self._allocate()
        self.source = open_source(workspace, tree, self.buffers)
        self.pairs = Pairs.allocate(workspace, tree.depth + 1) if workspace.on_device else None

    def _allocate(self) -> None:
        tree, model, target, add = self.tree, self.manifest.model, self.manifest.target, self.buffers.add
        nodes, levels, k = tree.size, tree.depth + 1, target.top_k
        engine = self.workspace.engines["target"]
        written = self.workspace.written
        self.noise = add("noise", (levels, model.vocab_size), "float32", written)
        self.window = NoiseWindow(self.noise)
        self.forced = add("forced", (levels,), "int64", written)
        add("embeds", (nodes, model.dim), engine.dtype("embeds"), "device", by_row=True)
        self.positions = add("positions", (nodes,), "int64", written, by_row=True)
        self.write_index = add("write_index", (), "int64", written, by_row=True)
        self.tree_mask = add("tree_mask", (nodes, target.window + 1), "bool", written, by_row=True)
        self.depths = add("depths", (nodes,), "int64", "out" if isinstance(tree, DynamicTree) else written)  # [P, N]
        self.drawn = add("drawn", (nodes,), "int64", "out")
        self.second = add("runner_up", (nodes,), "int64", "out") if self._guesses_second else None
        self.logits = add("logits", (nodes, k), "float32", "out")
        self.kept_ids = add("ids", (nodes, k), "int64", "out")
        self.states = add("states", (nodes, model.features), "float32", "out")
        add("hidden", (nodes, model.dim), engine.dtype("hidden"), "device", by_row=True)
        self.similarity = add("similarity", (nodes, nodes), "float32", "out")
        if not isinstance(tree, DynamicTree):
            self.depths[:] = tree.depths
            self.tree_mask[:, :, :nodes] = tree.ancestors
            if self.workspace.on_device:
                self.buffers.send("depths", "tree_mask")

    # the target ---------------------------------------------------------------------------------------------
    def run_target(self, slots: int, fetch: Sequence[str]) -> None:
        """The target on the nodes of the first `slots` slots."""
        call = bound_for(self._calls, self.workspace.size_for(slots), self._bind)
        self.workspace.run(call, (*self._always, *fetch))

    def _bind(self, slots: int) -> BoundCall:
        workspace = self.workspace
        inputs = self.buffers.part((*_INPUTS, *workspace.forced), 0, slots)
        inputs |= workspace.part(("cache_mask", *SETTINGS, *SAMPLER), 0, slots)
        inputs["rows_of_prompt"] = workspace.rows_of_prompt(slots)
        past, present = self.memory.target.bindings(0, slots * self.rows)
        outputs = self.buffers.part((*_OUTPUTS, *(("runner_up",) if self._guesses_second else ())), 0, slots)
        return workspace.engines["target"].bind({**inputs, **past}, {**outputs, **present})

    @property
    def verified(self) -> States:
        """What the newest target call left for a drafter, of whichever lane."""
        return States(self.tree.depth + 1, self.buffers, self.pairs)

    # what it verifies ---------------------------------------------------------------------------------------
    @property
    def tokens(self) -> np.ndarray:
        """int64 [P, N]: the tokens of the trees."""
        return self.source.tokens

    @property
    def trees(self) -> list[Tree]:
        """Each slot's tree."""
        return self.source.trees

    def take_masks(self, slots: Iterable[int]) -> None:
        """Lets the nodes of `slots` see their ancestors, where the draft graph has chosen the trees."""
        if isinstance(self.tree, DynamicTree):
            ancestors = self.buffers.host("ancestors")
            for slot in slots:
                self.tree_mask[self.rows_of(slot), :, : self.tree.size] = ancestors[slot]

    # slots as a whole ---------------------------------------------------------------------------------------
    def rows_of(self, slot: int) -> slice:
        """The rows of a slot in every cache and buffer."""
        return self.workspace.rows_of(slot)

    def move(self, source: int, to: int, done: int) -> None:
        """Moves an image with `done` tokens from one slot to another."""
        self.window.clear(to)  # until all of it is moved: Ctrl-C may come in between
        self.workspace.move(source, to, done)
        self.buffers.move(source, to)
        if self.pairs is not None:
            self.pairs.buffers.move(source, to)
        self.window.move(source, to)


class Lanes:
    """The lanes of one workspace, each made when it is first asked for."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self._lanes: dict[str, Lane] = {}

    def __getitem__(self, tree: str) -> Lane:
        """The lane of a tree by name, `none` being plain decoding. Raises CascadeError for a tree that the bundle
        does not have."""
        if tree not in self._lanes:
            shape = ROOT if tree == NO_TREE else self.workspace.manifest.tree(tree).tree()
            self._lanes[tree] = Lane(self.workspace, shape)
        return self._lanes[tree]
