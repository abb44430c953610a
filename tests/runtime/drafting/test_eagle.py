"""What the draft engine is given: the pairs that were accepted, and a cache mask without what it has never read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_trt.runtime.backends import Buffer
from cascade_trt.runtime.backends.host import HostCache, host_buffer
from cascade_trt.runtime.drafting import Eagle, Origin, States, open_source
from cascade_trt.runtime.drafting.mixed import Mixed
from cascade_trt.runtime.plan import TokenPlan
from cascade_trt.runtime.rules import Cause
from cascade_trt.runtime.rules.exact import Exact
from cascade_trt.runtime.sampling import Sampling
from cascade_trt.runtime.slots import Accepted, SlotBuffers, TokenSequence
from cascade_trt.runtime.tree import Tree, get_tree

PREFIX, VOCAB, DIM, SLOTS = 6, 5, 3, 3
PLAN = TokenPlan(6, 6, VOCAB)
SIZES = (1, 2, 4, 8)  # of calls
Inputs = dict[str, np.ndarray]


class Engine:
    """Notes what it is run on, and drafts the numbers 1, 2, ... in every slot."""

    def __init__(self) -> None:
        self.calls: list[Inputs] = []

    def dtype(self, name: str) -> str:  # noqa: ARG002
        return "float32"

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Any:
        def run(fetch: Sequence[str]) -> None:
            self.calls.append({name: buffer.host.copy() for name, buffer in inputs.items()} | {"fetch": fetch})  # type: ignore[dict-item]
            if "tree_tokens" in outputs:
                outputs["tree_tokens"].host[:] = np.arange(1, outputs["tree_tokens"].shape[1] + 1)

        return SimpleNamespace(run=run)


class Bench:
    """A source of guesses for `tree` over a workspace whose engines are stubs; rows of a slot are neighbours."""

    def __init__(self, tree: Tree, rows: int = 2) -> None:
        self.tree, self.rows, self.engine, self.embed = tree, rows, Engine(), Engine()
        backend: Any = SimpleNamespace(
            buffer=lambda shape, dtype, kind: host_buffer(shape, dtype), sizes=lambda _: SIZES  # noqa: ARG005
        )  # fmt: skip
        names = ("guidance", "temperature", "pair_mask")
        shapes = ((rows,), (), (60,))
        shared = SlotBuffers(backend, SLOTS, rows)
        for name, shape in zip(names, shapes, strict=True):
            shared.add(name, shape, "bool" if name == "pair_mask" else "float32", "in", by_row=name == "pair_mask")
        manifest = SimpleNamespace(engine_for=lambda _: "draft", model=SimpleNamespace(vocab_size=VOCAB, dim=DIM))
        self.workspace: Any = SimpleNamespace(
            backend=backend, manifest=manifest, rows=rows, prefix_len=PREFIX, forced=(), part=shared.part,
            engines={"draft": self.engine, "embed": self.embed, "target": self.engine},
            memory=SimpleNamespace(slots=SLOTS, drafter=HostCache(1, rows * SLOTS, 1, 60, 2, "float32")),
            new_buffers=lambda: SlotBuffers(backend, SLOTS, rows), size_for=lambda count: count,
            pair_mask=shared.host("pair_mask"), rows_of=lambda slot: slice(slot * rows, (slot + 1) * rows),
            rows_of_prompt=lambda count: host_buffer((count, rows), "int64"),
            prompt_of_row=lambda count: host_buffer((count * rows,), "int64"), run=lambda call, fetch: call.run(fetch),
            on_device=False, written="in",
            array=lambda _, name, shape, dtype, value=0: np.full((SLOTS, *shape), value, dtype),  # noqa: ARG005
        )  # fmt: skip
        self.workspace.pair_mask[:] = True
        self.buffers = SlotBuffers(backend, SLOTS, rows)
        self.noise = self.buffers.add("noise", (tree.depth + 1, VOCAB), "float32", "in")
        self.buffers.add("forced", (tree.depth + 1,), "int64", "in")
        self.buffers.add("embeds", (tree.size, DIM), "float32", "device", by_row=True)
        self.source = open_source(self.workspace, tree, self.buffers)

    def states(self, most: int, nodes: int = 16) -> States:
        """Of a target call, of whichever tree, that may have accepted `most` tokens."""
        buffers = SlotBuffers(self.workspace.backend, SLOTS, self.rows)
        buffers.add("hidden", (nodes, DIM), "float32", "device", by_row=True)
        return States(most, buffers)


def sequence() -> TokenSequence:
    one = TokenSequence(0, Sampling(2.0, 1.0, 0, 1.0), Exact(), PLAN, np.zeros(2, np.int64))
    one.done = 1
    return one


def accept(one: TokenSequence, path: list[int]) -> Accepted:
    """A walk along `path`: its tokens are numbered by their positions."""
    tokens = list(range(one.done, one.done + len(path)))
    one.newest = Accepted(one.done, path, tokens, [Cause.STRICT] * len(path), [0] * len(path))
    one.done += len(path)
    return one.newest


def read_by(sequence: TokenSequence, call: Inputs, slot: int, rows: int) -> dict[int, int]:
    """Cache slots that a call writes for an image, and the tokens it reads for them."""
    count = int(call["count"][slot])
    start = call["write_index"][slot * rows]
    assert (call["write_index"][slot * rows : (slot + 1) * rows] == start).all()
    for positions in call["positions"][slot * rows : (slot + 1) * rows]:
        np.testing.assert_array_equal(positions, start + np.arange(positions.size))
    assert start + count == PREFIX + sequence.done - 1  # it has read all but the newest token's state
    return dict(zip(range(start, start + count), call["tokens"][slot, :count].tolist(), strict=True))


@settings(deadline=None)
@given(st.sampled_from(["small_9", "mixed_7", "mixed_4x3"]), st.sampled_from([1, 2]), st.data())
def test_it_reads_what_was_accepted_and_sees_nothing_else(spec: str, rows: int, data: st.DataObject) -> None:
    """Whichever lanes drew between two drafts: each slot of the cache that it sees holds its own token."""
    tree = get_tree(spec)
    assert isinstance(tree, Tree)
    bench = Bench(tree, rows)
    images: list[TokenSequence | None] = [sequence(), None, sequence()]
    drawn = [one for one in images if one is not None]
    for one in drawn:
        one.read = PREFIX * data.draw(st.integers(0, 1))  # whether it began in a lane that drafts: that read the prefix
    held = [{} if one is None else dict.fromkeys(range(one.read), -1) for one in images]
    for _ in range(data.draw(st.integers(1, 6))):
        if data.draw(st.booleans()):
            images[data.draw(st.integers(0, 2))] = None  # it leaves
        drawn = [one for one in images if one is not None]
        if not drawn or not all(one.room for one in drawn):
            break
        most = data.draw(st.integers(1, 8))
        for one in drawn:
            rises = data.draw(st.lists(st.integers(1, 2), max_size=min(most, one.room) - 1))
            accept(one, np.cumsum([0, *rises]).tolist())
        if not data.draw(st.booleans()):
            continue  # a lane that does not draft
        nodes = 1 + max(one.newest.path[-1] for one in drawn)  # type: ignore[union-attr]
        bench.source.draft(images, bench.states(most, nodes), with_q=False)
        call = bench.engine.calls[-1]
        assert call["path"].max() < nodes  # also in slots without an image, whose numbers nobody reads
        pairs = call["path"].shape[1]
        assert pairs == next(size for size in SIZES if size >= max(len(one.newest.tokens) for one in drawn))  # type: ignore[union-attr]
        for slot, one in enumerate(images):
            if one is None:
                continue
            walked = one.newest
            assert walked is not None
            held[slot] |= read_by(one, call, slot, rows)
            path, tokens = call["path"][slot].tolist(), call["tokens"][slot].tolist()
            count = len(walked.tokens)
            assert path == [*walked.path, *[walked.path[-1]] * (pairs - count)]
            assert tokens == [*walked.tokens, *[walked.tokens[-1]] * (pairs - count)]
            for mask in call["cache_mask"][slot * rows : (slot + 1) * rows]:
                seen = np.flatnonzero(mask[: PREFIX + one.done - 1]).tolist()
                assert seen == sorted(held[slot])
                assert all(held[slot][s] == s - PREFIX + 1 for s in seen if s >= PREFIX)  # slot T + i - 1 is token i's
                assert mask[PREFIX + one.done - 1 :].all()  # where this call drafts


def test_a_slot_without_an_image_names_no_row_that_is_not_there() -> None:
    """An image has left after a call on a larger tree; what its slot reads nobody looks at, but it must exist."""
    bench, images = Bench(get_tree("chain_1")), [sequence(), sequence()]  # type: ignore[arg-type]
    for one in images:
        accept(one, [0, 9])
    bench.source.draft(images, bench.states(6, nodes=10), with_q=False)
    accept(images[1], [0, 1])
    bench.source.draft([None, images[1]], bench.states(2, nodes=2), with_q=False)
    assert bench.engine.calls[-1]["path"].tolist() == [[0, 0], [0, 1]]


def test_only_what_is_asked_for_comes_back() -> None:
    bench, one = Bench(get_tree("small_9")), sequence()  # type: ignore[arg-type]
    accept(one, [0])
    bench.source.draft([one], bench.states(4), with_q=False)
    bench.source.draft([one], bench.states(4), with_q=True)
    assert [call["fetch"] for call in bench.engine.calls] == [("tree_tokens",), ("tree_tokens", "log_q")]


def test_a_mixed_tree_drafts_its_top_with_its_own_levels_of_the_noise() -> None:
    """The engine has one level less than the tree; whoever asks for distributions gets none."""
    bench, one = Bench(get_tree("mixed_4")), sequence()  # type: ignore[arg-type]
    assert isinstance(bench.source, Mixed)
    bench.noise[:] = np.arange(SLOTS * 5 * VOCAB).reshape(SLOTS, 5, VOCAB)
    forced = bench.buffers.host("forced")
    forced[:] = np.arange(5)
    bench.workspace.forced = ("forced",)
    accept(one, [0, 1])
    bench.source.draft([None, one], bench.states(5), with_q=True)
    call = bench.engine.calls[-1]
    np.testing.assert_array_equal(call["noise"][1], bench.noise[1, :2])
    np.testing.assert_array_equal(call["forced"][1], [0, 1])
    assert call["fetch"] == ("tree_tokens",) and bench.source.q_rows == [{}] * SLOTS
    one.tokens[: one.done] = [0, 3, 4]
    one.guesses[0, 3:] = 1
    bench.source.complete([None, one])
    # the stub drafts 1 for the root, whose token it knows, and 2 behind it
    assert bench.source.tokens[1].tolist() == [1, 2, 1, 1, 1]
    assert bench.source.origins[1, 1:].tolist() == [Origin.EAGLE] + [Origin.JACOBI] * 3
    np.testing.assert_array_equal(bench.embed.calls[-1]["ids"][2:4], [[1, 2, 1, 1, 1]] * 2)  # both rows of the slot


@pytest.mark.parametrize(("spec", "kind"), [("small_9", "Eagle"), ("mixed_4", "Mixed"), ("jacobi_4x2", "Jacobi"),
                                            ("mixed_1", "Eagle"), ("dynamic_9x4x3", "Eagle")])  # fmt: skip
def test_the_source_of_a_tree(spec: str, kind: str) -> None:
    assert type(Bench(get_tree(spec)).source).__name__ == kind  # type: ignore[arg-type]


def test_origins_of_a_drafted_tree_are_the_drafters() -> None:
    source = Bench(get_tree("small_9")).source  # type: ignore[arg-type]
    assert isinstance(source, Eagle) and (source.origins == Origin.EAGLE).all()
