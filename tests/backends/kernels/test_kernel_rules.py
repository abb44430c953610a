"""walk_by_rule.cu against the rules themselves, on random trees, logits, drafts, similarities and tables.

Decisions are compared as they are. The kernel's sums have another order and its exponentials another last digit, so at
a tie of seven digits the two could part: about one decision in a million.
"""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import numpy as np
import pytest
from kernels.test_kernel_rounds import compare_walks
from kernels.worlds import World, random_plan, random_tree

from cascade_trt.runtime import loop
from cascade_trt.runtime.backends.kernels.rules import SETTING, Rules, kind_of, setting_of
from cascade_trt.runtime.drafting import Origin
from cascade_trt.runtime.noise import Stream, gumbel
from cascade_trt.runtime.rules import Cause, Rule
from cascade_trt.runtime.rules.cascade import Cascade
from cascade_trt.runtime.rules.cool import Cool
from cascade_trt.runtime.rules.exact import Exact
from cascade_trt.runtime.rules.lantern import Lantern, LanternPlus
from cascade_trt.runtime.rules.strict import Strict
from cascade_trt.runtime.sampling import Sampling

WALKS = 3000  # of each rule


def a_rule(kind: str, rng: np.random.Generator, table: np.ndarray) -> Rule:
    """With random settings."""
    if kind == "strict":
        return Strict() if rng.random() < 0.7 else Strict("strict-topk", None)
    if kind == "stand-in":  # where several children may stand in for the draw
        free = {"children": "coupled", "guard": 0.0, "cap": 0, "row_ends": False}
        if rng.random() < 0.5:
            return Cascade(tau_pos=float(rng.random()) / 2, tau_seq=None, **free)
        return Lantern(k=table.shape[1], delta=1.0, table=table, **free)
    shared = {
        "children": str(rng.choice(["sampled", "topk", "coupled"])), "guard": float(rng.choice([0.0, 0.05, 0.5])),
        "cap": int(rng.integers(0, 3)), "row_ends": bool(rng.random() < 0.5),
    }  # fmt: skip
    if kind == "cascade":
        taus = (None if rng.random() < 0.2 else float(rng.random()) for _ in range(2))
        return Cascade(tau_pos=next(taus), tau_seq=next(taus), **shared)
    near = {"k": int(rng.integers(1, table.shape[1] + 3)), "table": table}
    if kind == "lantern":
        return Lantern(delta=float(rng.choice([0.0, 0.1, 0.5, 1.0])), **near, **shared)
    return LanternPlus(lambda_=float(rng.choice([1.0, 2.0, 5.0, 20.0])), **near, **shared)


class Scene:
    """A world with everything that rules look at, its own trees in every slot or one for all."""

    def __init__(self, library: ctypes.CDLL, rng: np.random.Generator, kind: str) -> None:
        self.rng, self.library = rng, library
        slots, size, vocab = 24, int(rng.integers(2, 14)), int(rng.integers(3, 40))
        same = rng.random() < 0.5
        trees = [random_tree(rng, size, guesses=False) for _ in range(1 if same else slots)]
        self.world = World(
            library, rng, random_plan(rng, vocab), trees * slots if same else trees, 1, vocab, same, runner_up=False
        )
        self.most = int(rng.integers(1, vocab + 1))
        self.table = rng.integers(0, vocab, (vocab, int(rng.integers(1, 2 * vocab)))).astype(np.int32)
        self.setting = np.zeros(slots, SETTING)
        for slot in range(slots):
            sampling = Sampling(
                1.0, float(rng.choice([0.0, 1.0, 1.0])), int(rng.integers(0, self.most + 1)),
                float(rng.choice([1.0, 0.9, 0.3])),
            )  # fmt: skip
            rule = Exact() if rng.random() < 0.05 else a_rule(kind, rng, self.table)
            sequence = self.world.fill(slot, rule)
            sequence.sampling = sampling
            sequence.done = int(rng.integers(1, self.world.plan.length + 1))
            self.world.device.done[slot] = sequence.done
            self.setting[slot] = setting_of(rule, sampling, self.most)
        self._fill(slots, size, vocab, same)

    def _fill(self, slots: int, size: int, vocab: int, same: bool) -> None:
        rng, d = self.rng, self.world.device
        logits = rng.normal(0, rng.choice([0.3, 1.0, 3.0]), (slots, size, vocab)).astype(np.float32)
        order = np.argsort(-logits, axis=2, kind="stable")[..., : self.most]
        self.ids = np.ascontiguousarray(order)
        self.logits = np.take_along_axis(logits, order, axis=2)
        near = logits + rng.normal(0, 1, logits.shape)
        self.distributions = max(len(tree.internal) for tree in self.world.trees)
        log_q = np.zeros((slots, self.distributions, vocab), np.float32)
        q_rows, self.rows = np.zeros((slots, size), np.int64), []
        for p, tree in enumerate(self.world.trees):
            self.rows.append({node: row for row, node in enumerate(tree.internal)})
            for node, row in self.rows[p].items():
                log_q[p, row] = near[p, node] - np.log(np.exp(near[p, node]).sum())
                if rng.random() < 0.1:  # a drafter that is sure, and wrong: nothing may be left of p
                    log_q[p, row] = -50
                    log_q[p, row, rng.integers(vocab)] = 0
                q_rows[p, list(tree.children[node])] = row
                noise = gumbel(int(rng.integers(100)), node, Stream.DRAFT, vocab)
                likely = np.argsort(-(log_q[p, row] + noise))
                children = tree.children[node]
                d.tree_tokens[p, list(children)] = np.resize(likely, len(children))
        twins = rng.random(d.tree_tokens.shape) < rng.choice([0.0, 0.2])  # siblings may carry the same token
        d.tree_tokens[twins] = rng.integers(0, vocab, twins.sum())
        broken = rng.random(slots) < 0.03
        log_q[broken] = np.nan
        self.log_q, self.q_rows = log_q, q_rows[0] if same else q_rows
        alike = rng.random((slots, size, size)).astype(np.float32)
        self.similarity = np.maximum(alike, alike.swapaxes(1, 2))
        d.origins[:] = rng.choice([Origin.EAGLE, Origin.JACOBI, Origin.NEW], d.origins.shape, p=[0.6, 0.2, 0.2])
        d.noise[:] = -np.log(-np.log(rng.random(d.noise.shape)))
        self.world.draw(broken=0.03)
        self.scratch = np.zeros((2, slots, self.most)), np.full((slots, vocab), -1, np.int32)

    def arguments(self) -> Rules:
        """The struct for the kernel."""
        starts, (pq, places) = self.world.plan.row_starts.astype(np.uint8), self.scratch
        self.kept = starts, self.ids, self.table  # addresses stay good
        addresses = [
            x.ctypes.data for x in (self.setting, starts, self.logits, self.ids, self.log_q, self.q_rows,
                                    self.similarity, self.table, pq[0], pq[1], places)
        ]  # fmt: skip
        stride = self.q_rows.shape[-1] if self.q_rows.ndim == 2 else 0
        return Rules(self.most, self.distributions, self.table.shape[1], stride, *addresses)

    def lane(self) -> SimpleNamespace:
        lane = self.world.lane(
            logits=self.logits, kept_ids=self.ids, noise=self.world.device.noise, similarity=self.similarity
        )
        lane.source.q_rows, lane.source.log_q = self.rows, self.log_q
        return lane


@pytest.mark.parametrize("kind", ["strict", "cascade", "lantern", "lantern++", "stand-in"])
def test_walks(library: ctypes.CDLL, kind: str) -> None:
    rng, walks, seen = np.random.default_rng(3), 0, []
    while walks < WALKS:
        scene = Scene(library, rng, kind)
        world = scene.world
        d = world.device
        accepted = loop.accept(scene.lane(), [s if s.room else None for s in world.sequences if s is not None])
        d.run("walk")
        under_way = d.done < d.end
        assert not d.record[(d.rule > 1) & under_way].any()  # it leaves images of other rules alone
        assert not d.record[~under_way, 1].any()  # and a slot without an image accepts nothing
        d.run("walk_by_rule", int(rng.choice([1, 3, 8])), scene.arguments())
        compare_walks(world, accepted)
        assert (scene.scratch[1] == -1).all()
        walks += len(accepted)
        seen += [cause for walked in accepted.values() if walked is not None for cause in walked.causes]
    wanted = {
        "strict": set(), "cascade": {Cause.INTERCHANGEABLE, Cause.CONVERGED}, "lantern": {Cause.RELAXED},
        "lantern++": {Cause.RELAXED}, "stand-in": {Cause.INTERCHANGEABLE, Cause.RELAXED},
    }[kind]  # fmt: skip
    assert {Cause.FORCED, Cause.DRAWN, Cause.STRICT} | wanted == set(seen)


def test_threads_find_the_sum_and_the_first_of_the_largest(library: ctypes.CDLL) -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        count, threads = int(rng.integers(1, 40)), int(rng.integers(1, 20))
        numbers = rng.integers(-4, 4, count).astype(np.float64)  # many are equal
        sums, largest, places = np.zeros(threads), np.zeros(threads), np.zeros(threads, np.int32)
        library.run_together(
            *(ctypes.c_void_p(x.ctypes.data) if isinstance(x, np.ndarray) else x
              for x in (numbers, count, sums, largest, places, threads))
        )  # fmt: skip
        assert (sums == numbers.sum()).all()
        assert (largest == numbers.max()).all() and (places == np.argmax(numbers)).all()


def test_rules_that_no_kernel_knows() -> None:
    table = np.zeros((4, 1), np.int32)
    assert kind_of(None) == 0 and kind_of(Exact()) == 1
    assert kind_of(Lantern(table=table)) == 4 and kind_of(LanternPlus(table=table)) == 5
    assert kind_of(Cool()) is None
    assert kind_of(Cascade(children="coupled", lookahead=True)) is None


def test_structs_are_the_same(library: ctypes.CDLL) -> None:
    assert library.size_of_rules() == ctypes.sizeof(Rules)
    assert library.size_of_setting() == SETTING.itemsize
