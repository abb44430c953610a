"""place, walk, commit, advance and pairs against the runtime's own round, on random plans, trees and draws."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import numpy as np
import pytest
from kernels.worlds import PREFIX, World, random_plan, random_tree

from cascade_trt.runtime import loop
from cascade_trt.runtime.backends.host import HostCache
from cascade_trt.runtime.drafting.eagle import Eagle, Pairs
from cascade_trt.runtime.drafting.jacobi import fill, steps
from cascade_trt.runtime.slots import Accepted

ROUNDS = 24


def make_world(library: ctypes.CDLL, rng: np.random.Generator, slots: int) -> World:
    vocab = int(rng.integers(2, 9))
    tree = random_tree(rng, int(rng.choice([1, 2, 3, 5, 9, 17])), guesses=rng.random() < 0.7)
    return World(
        library, rng, random_plan(rng, vocab), [tree] * slots, int(rng.integers(1, 3)), vocab, True,
        runner_up=rng.random() < 0.8,
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(8))
def test_rounds(library: ctypes.CDLL, seed: int) -> None:
    """Images come, are drawn for many rounds, break, end, and stay in their slots after their end."""
    rng, rounds = np.random.default_rng(seed), 0
    while rounds < 7000:
        world = make_world(library, rng, int(rng.integers(1, 48)))
        reference = Reference(world)
        for _ in range(ROUNDS):
            rounds += reference.round()


class Reference:
    """One world's rounds by the runtime's functions; every array is compared with the kernels' after each."""

    def __init__(self, world: World) -> None:
        self.world, d = world, world.device
        self.steps = steps(world.trees[0])
        slots = PREFIX + world.plan.length + world.trees[0].size
        heads, dim = int(world.rng.integers(1, 3)), int(world.rng.choice([1, 2, 3, 4, 8, 16]))
        shape = (2, len(world.trees) * world.rows + 1, heads, slots, dim)
        self.cache = HostCache(*shape, dtype=str(world.rng.choice(["float16", "float32", "bfloat16"])))
        block = self.cache._block
        block.view(np.uint16)[:] = world.rng.integers(0, 2**16, block.view(np.uint16).shape)
        self.block = block.copy()
        self.pairs = Pairs(
            SimpleNamespace(), d.path.copy(), d.path_tokens.copy(), d.count.copy(), d.pair_positions.copy(),
            d.pair_write_index.copy(),
        )  # fmt: skip

    def round(self) -> int:
        """Returns how many images went through it."""
        world, d = self.world, self.world.device
        for slot, sequence in enumerate(world.sequences):
            if sequence is None and world.rng.random() < 0.3 and not world.fill(slot).room:
                world.sequences[slot] = None
        alive = [(p, s) for p, s in enumerate(world.sequences) if s is not None]
        self.place(alive)
        world.draw(broken=0.01)
        accepted = self.walk(alive)
        self.emit(accepted)
        if world.rng.random() < 0.7:  # else another lane drafts next, and the drafter's cache falls behind
            self.catch_up(accepted)
        for slot, sequence in alive:
            if not sequence.room or accepted[slot] is None:  # the device may go on for a while, as with a late record
                assert not d.done[slot] < d.end[slot]
                world.sequences[slot] = None
        return len(alive)

    def place(self, alive: list) -> None:
        world, d, tree = self.world, self.world.device, self.world.trees[0]
        if tree.guessed:
            d.drafted_tokens[:] = world.rng.integers(0, world.vocab, d.drafted_tokens.shape)
        else:
            d.tree_tokens[:] = world.rng.integers(0, world.vocab, d.tree_tokens.shape)
        tokens, origins, ids = d.tree_tokens.copy(), d.origins.copy(), d.embed_ids.copy()
        lane = world.lane(write_index=d.write_index.copy(), positions=d.positions.copy())
        for p, sequence in alive:
            if tree.guessed:
                tokens[p, list(tree.drafted_nodes)] = d.drafted_tokens[p]
            tokens[p, 0] = sequence.tokens[sequence.done - 1]
            filled, said = tokens[p].tolist(), origins[p].tolist()
            fill(filled, said, tree, self.steps, sequence)
            tokens[p], origins[p] = filled, said
            ids[world.rows_of(p)] = tokens[p]
            loop.place(lane, p, sequence, tree.depths)
        d.run("place", int(world.rng.choice([1, 3, 64])))
        same(d.tree_tokens, tokens)
        same(d.origins, origins)
        same(d.embed_ids, ids)
        same(d.write_index, lane.write_index)
        same(d.positions, lane.positions)

    def walk(self, alive: list) -> dict[int, Accepted | None]:
        world, d = self.world, self.world.device
        accepted = loop.accept(world.lane(), world.sequences)
        assert set(accepted) == {p for p, _ in alive}
        d.run("walk", int(world.rng.choice([1, 4])))
        compare_walks(world, accepted)
        for p, walked in accepted.items():
            if walked is not None:
                rows, sequence = world.rows_of(p), world.sequences[p]
                self.cache.move(range(rows.start, rows.stop), PREFIX + sequence.done - 1, walked.path)
        d.commit(self.block, int(world.rng.choice([1, 32, 100])))
        same(self.block.view(np.uint16), self.cache._block.view(np.uint16))
        return accepted

    def emit(self, accepted: dict[int, Accepted | None]) -> None:
        world, d = self.world, self.world.device
        loop.emit(world.lane(), world.sequences, accepted)
        d.run("advance", int(world.rng.choice([1, 4])))
        for p, sequence in enumerate(world.sequences):
            if sequence is not None:
                assert d.done[p] == sequence.done
                same(d.tokens[p], sequence.tokens)
                same(d.guesses[p], sequence.guesses)
                assert d.end[p] == (0 if accepted[p] is None else world.plan.length)

    def catch_up(self, accepted: dict[int, Accepted | None]) -> None:
        world, d = self.world, self.world.device
        workspace = SimpleNamespace(prefix_len=PREFIX, rows_of=world.rows_of, pair_mask=world.pair_mask)
        for p, walked in accepted.items():
            if walked is not None:
                Eagle._load(SimpleNamespace(workspace=workspace), self.pairs, p, world.sequences[p])
        d.run("pairs", int(world.rng.choice([1, 4])))
        same(d.pair_mask, world.pair_mask)
        same(d.pair_positions, self.pairs.positions)
        same(d.pair_write_index, self.pairs.write_index)
        for p, walked in accepted.items():
            if walked is not None:
                assert d.read[p] == world.sequences[p].read
                same(d.path[p], self.pairs.path[p])
                same(d.path_tokens[p], self.pairs.tokens[p])
                assert d.count[p] == self.pairs.count[p]


def compare_walks(world: World, accepted: dict[int, Accepted | None]) -> None:
    """The kernel's path, tokens, causes, origins and record with the runtime's walks."""
    d = world.device
    levels = d.path.shape[1]
    said, causes, origins = d.record[:, 3:].reshape(len(d.record), 3, levels).swapaxes(0, 1)
    for p, sequence in enumerate(world.sequences):
        walked = accepted.get(p)
        if sequence is not None and p in accepted and walked is not None:
            count = len(walked.tokens)
            assert d.record[p, :3].tolist() == [walked.start, count, 0]
            assert d.count[p] == count
            assert d.path[p].tolist() == walked.path + walked.path[-1:] * (levels - count)
            assert d.path_tokens[p].tolist() == walked.tokens + walked.tokens[-1:] * (levels - count)
            assert said[p].tolist() == walked.tokens + [0] * (levels - count)
            assert causes[p].tolist() == [*map(int, walked.causes)] + [0] * (levels - count)
            assert origins[p].tolist() == walked.origins + [0] * (levels - count)
        else:
            assert d.record[p, 1:3].tolist() == [0, int(p in accepted)]
            assert d.count[p] == 1 and not d.path[p].any() and not d.path_tokens[p].any()


def same(found: np.ndarray, wanted: np.ndarray) -> None:
    assert np.array_equal(found, wanted), np.argwhere(found != wanted)[:5]


def test_walks_of_trees_of_their_own(library: ctypes.CDLL) -> None:
    """As behind a dynamic tree: each slot's parents are its own."""
    rng, walks, long = np.random.default_rng(7), 0, 0
    while walks < 40_000:
        size, vocab, slots = int(rng.integers(2, 40)), int(rng.integers(2, 6)), 128
        trees = [random_tree(rng, size, guesses=False) for _ in range(slots)]
        world = World(library, rng, random_plan(rng, vocab), trees, 1, vocab, same_tree=False)
        world.device.tree_tokens[:] = rng.integers(0, vocab + 2, (slots, size))
        for slot in range(slots):
            sequence = world.fill(slot)
            sequence.done = int(rng.integers(1, world.plan.length + 1))
            world.device.done[slot] = sequence.done
        for _ in range(6):
            world.draw(broken=0.05)
            accepted = loop.accept(world.lane(), [s if s.room else None for s in world.sequences if s is not None])
            world.device.run("walk", 32)
            compare_walks(world, accepted)
            walks += len(accepted)
            long += sum(walked is not None and len(walked.path) > 3 for walked in accepted.values())
    assert long > 1000
