"""The arrays that kernels share, in the memory of the backend: those of the images, and those of a lane's tree."""

from __future__ import annotations

import numpy as np

from .backends import Buffer
from .backends.kernels.layout import ARRAYS, RECORD_HEAD, SIZES, Round
from .backends.kernels.rules import PLAIN, SETTING, Rules, kind_of, setting_of
from .drafting import Jacobi, Mixed
from .lane import Lane
from .loop import stream_of
from .rules.lantern import Neighbours
from .slots import Sequences, TokenSequence
from .tree import Tree
from .workspace import Workspace

_BY_IMAGE = ("seed", "stream", "rule", "end", "done", "tokens", "guesses", "read", "settings")


class Images:
    """What the kernels know of the image in each slot, whatever the tree, and of the plan."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace, plan = workspace, workspace.plan
        self.buffers = workspace.new_buffers()
        dtypes = {array.name: array.dtype for array in ARRAYS}
        shapes = {"tokens": (plan.length,), "guesses": (2, plan.length), "settings": (SETTING.itemsize,)}
        for name in _BY_IMAGE:
            self.buffers.add(name, shapes.get(name, ()), dtypes.get(name, "uint8"), "device")
        self.buffers.add("first", (), "int64", "device", by_row=True)
        self.plan = {
            name: self.constant(array.astype(np.int32))
            for name, array in (("plan_forced", plan.forced), ("plan_above", plan.above), ("plan_left", plan.left))
        }
        self.row_starts = self.constant(plan.row_starts.astype(np.uint8))
        self.neighbours: Buffer | None = None
        self._table: np.ndarray | None = None
        self._seated: list[TokenSequence | None] = [None] * workspace.memory.slots

    def constant(self, array: np.ndarray) -> Buffer:
        """An array that does not change, on the device."""
        buffer = self._workspace.backend.buffer(array.shape, array.dtype.name, "device")
        buffer.host[...] = array
        buffer.send()
        return buffer

    def has_table(self, table: np.ndarray | None) -> bool:
        """Whether a table of neighbours is the one that the kernels read. The first that is asked for becomes it."""
        if self._table is None:
            self._table = table
        return table is self._table or np.array_equal(table, self._table)  # type: ignore[arg-type]

    def fill(self, slot: int, sequence: TokenSequence) -> None:
        """A fresh image, whose first token is there."""
        self._seated[slot] = sequence  # first: Ctrl-C may come in between, and `keep` finds it
        rule, host, kind = sequence.rule, self.buffers.host, kind_of(sequence.rule)
        assert kind is not None  # `serves` was asked
        if isinstance(rule, Neighbours) and rule.table is not None and self.neighbours is None:
            self.neighbours = self.constant(np.ascontiguousarray(rule.table, np.int32))
        stream = stream_of(sequence)
        host("seed")[slot], host("stream")[slot] = sequence.seed, -1 if stream is None else stream
        host("rule")[slot], host("end")[slot] = kind, sequence.plan.length
        host("done")[slot], host("read")[slot] = sequence.done, sequence.read
        host("tokens")[slot], host("guesses")[slot] = sequence.tokens, sequence.guesses
        host("first")[self._workspace.rows_of(slot)] = sequence.first
        setting = setting_of(rule, sequence.sampling, self._workspace.manifest.target.top_k)
        host("settings")[slot] = np.frombuffer(setting.tobytes(), np.uint8)
        self.buffers.send(*_BY_IMAGE, "first", slot=slot)

    def set_read(self, slot: int, read: int) -> None:
        """The next slot that the drafter writes, once it has read the prefix."""
        self.buffers.host("read")[slot] = read
        self.buffers.send("read", slot=slot)

    def keep(self, sequences: Sequences) -> None:
        """Images that are not among those of the slots at the front are drawn no more."""
        for slot, seated in enumerate(self._seated):
            if seated is not None and (slot >= len(sequences) or sequences[slot] is not seated):
                self._leave(slot)

    def _leave(self, slot: int) -> None:
        self.buffers.host("end")[slot], self.buffers.host("rule")[slot] = 0, PLAIN
        self.buffers.send("end", "rule", slot=slot)
        self._seated[slot] = None

    def move(self, source: int, to: int) -> None:
        self._seated[to] = self._seated[source]
        self.buffers.move(source, to)
        self._leave(source)


class OnDevice:
    """What the kernels know of one lane: `round` is their argument. `drafts` is that of `noise` for the draft engine of
    a mixed tree, which has levels of its own; `record` int32 [P, W] is what a round has accepted."""

    def __init__(self, lane: Lane, images: Images) -> None:
        self._lane, self._images, self._constants = lane, images, dict[str, Buffer]()
        workspace, source, tree = lane.workspace, lane.source, lane.tree
        self.buffers, model = workspace.new_buffers(), lane.manifest.model
        self.buffers.add("record", (RECORD_HEAD + 3 * (tree.depth + 1),), "int32", "device")
        self.record = self.buffers.buffer("record")
        drafter = lane.manifest.drafter
        sizes = {
            "slots": lane.memory.slots, "rows": lane.rows, "nodes": tree.size, "levels": tree.depth + 1,
            "vocab": model.vocab_size, "length": lane.plan.length, "prefix": lane.prefix_len,
            "pair_slots": 1 if drafter is None else drafter.slots,
            "drafted": source.eagle.tree.size if isinstance(source, Mixed) else 0,
            "tree_stride": 0 if isinstance(tree, Tree) else tree.size,
            "mask_columns": lane.manifest.target.window + 1,
        }  # fmt: skip
        assert sizes.keys() == set(SIZES)
        addresses = self._images_and_plan() | self._tree() | self._calls()
        self.round = Round(**sizes, **addresses)
        self.drafts: Round | None = None
        if isinstance(source, Mixed):
            own = {"noise": source.drafts.address("noise"), "forced": source.drafts.address("forced")}
            self.drafts = Round(**sizes | {"levels": source.levels}, **addresses | own)
        self._scratch: tuple[Buffer, ...] = ()

    def _constant(self, name: str, array: np.ndarray) -> int:
        self._constants[name] = self._images.constant(array)
        return self._constants[name].address

    def _images_and_plan(self) -> dict[str, int]:
        images = self._images
        found = {name: images.buffers.address(name) for name in (*_BY_IMAGE, "first") if name != "settings"}
        return found | {name: buffer.address for name, buffer in images.plan.items()}

    def _tree(self) -> dict[str, int]:
        """What is known of the tree, or where the draft engine writes it."""
        tree, source, lane = self._lane.tree, self._lane.source, self._lane
        if not isinstance(tree, Tree):
            return {"parents": lane.buffers.address("parents"), "ancestors": lane.buffers.address("ancestors"),
                    "tree_mask": lane.buffers.address("tree_mask")}  # fmt: skip
        found = {"parents": self._constant("parents", np.array(tree.parents, np.int64))}
        if tree.guessed:
            guessed = np.isin(np.arange(tree.size), tree.guessed).astype(np.int32)
            found["guessed"] = self._constant("guessed", guessed)
        if tree.depth:
            found["continuations"] = self._constant("continuations", tree.continuations.astype(np.int32))
        if isinstance(source, Mixed):
            found["drafted_nodes"] = self._constant("drafted_nodes", np.array(tree.drafted_nodes, np.int32))
            found["drafted_tokens"] = source.drafts.address("tree_tokens")
        return found

    def _calls(self) -> dict[str, int]:
        """What the engines read and write, and what a walk leaves."""
        lane, of, plan = self._lane, self._lane.buffers.address, self._lane.plan
        assert lane.pairs is not None  # the workspace is on the device
        names = ("noise", "depths", "tree_tokens", "origins", "positions", "write_index", "drawn")
        found = {name: of(name) for name in names}
        if plan.has_forced:
            found["forced"] = of("forced")
        if lane.second is not None:
            found["runner_up"] = of("runner_up")
        if isinstance(lane.source, Jacobi):
            found["embed_ids"] = of("ids_in")
        pairs = {"path": "path", "path_tokens": "tokens", "count": "count", "pair_positions": "positions",
                 "pair_write_index": "write_index"}  # fmt: skip
        found |= {name: lane.pairs.buffers.address(called) for name, called in pairs.items()}
        return found | {"record": self.record.address, "pair_mask": lane.workspace.address("pair_mask")}

    # rules that look at nodes -------------------------------------------------------------------------------
    def rules(self) -> Rules:
        """The second argument of `walk_by_rule`."""
        lane, images, source = self._lane, self._images, self._lane.source
        of, tree = lane.buffers.address, lane.tree
        slots, most, distributions = lane.memory.slots, lane.logits.shape[2], source.log_q.shape[1]
        vocab = lane.manifest.model.vocab_size
        if not self._scratch:
            buffer = lane.workspace.backend.buffer
            p, q = buffer((slots, most), "float64", "device"), buffer((slots, most), "float64", "device")
            self._scratch = p, q, images.constant(np.full((slots, vocab), -1, np.int32))
        near = images.neighbours
        return Rules(
            most, distributions, 0 if near is None else near.shape[1], self.round.tree_stride,
            images.buffers.address("settings"), images.row_starts.address, of("logits"), of("ids"),
            of("log_q") if distributions else 0, self._q_rows() if isinstance(tree, Tree) else of("sources"),
            of("similarity"), 0 if near is None else near.address, *(buffer.address for buffer in self._scratch),
        )  # fmt: skip

    def _q_rows(self) -> int:
        """int64 [N]: the row of log_q that a node of a static tree was drafted from."""
        if "q_rows" not in self._constants:
            tree, rows = self._lane.trees[0], np.zeros(self._lane.tree.size, np.int64)
            for node, row in self._lane.source.q_rows[0].items():
                rows[list(tree.children[node])] = row
            self._constant("q_rows", rows)
        return self._constants["q_rows"].address
