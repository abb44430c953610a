"""The walk over a tree and the book-keeping of lengths, with rules that decide anything."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tree_cases import VOCAB, plans, trees

from cascade_trt.runtime import loop
from cascade_trt.runtime.drafting import Origin
from cascade_trt.runtime.noise import Stream
from cascade_trt.runtime.plan import TokenPlan
from cascade_trt.runtime.rules import LOG_Q, LOGITS, Cause, Decision, Draws, Node, Rule
from cascade_trt.runtime.rules.exact import Exact
from cascade_trt.runtime.sampling import Sampling
from cascade_trt.runtime.slots import TokenSequence
from cascade_trt.runtime.tree import Tree, get_tree, tree_from_branching

PREFIX = 6
SAMPLING = Sampling(3.0, 1.0, 0, 1.0)


@dataclass
class Anything:
    """Accepts whichever child its choices say, and notes what it was shown."""

    choices: list[int]
    name: str = "anything"
    noise: Stream | None = None
    needs: frozenset[str] = frozenset({LOGITS, LOG_Q})
    compares_siblings: bool = False
    seen: list[tuple[Node, Draws]] = field(default_factory=list)

    def decide(self, node: Node, draws: Draws) -> Decision:
        choice = self.choices[len(self.seen) % len(self.choices)] % (len(node.nodes) + 1)
        self.seen.append((node, draws))
        if choice == len(node.nodes):
            return Decision(VOCAB - 1, None)
        return Decision(node.tokens[choice], node.nodes[choice])


class Moves:
    """A cache that notes its moves."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[int], int, list[int]]] = []

    def move(self, rows: range, start: int, path: list[int]) -> None:
        self.calls.append((list(rows), start, list(path)))


def verified(tree: Tree, slots: int, rows: int = 2) -> Any:
    """A lane as the target and the source of guesses leave it; node n of slot p carries the token (n + p) % V."""
    rng = np.random.default_rng(0)
    source = SimpleNamespace(
        q_rows=[{node: row for row, node in enumerate(tree.internal)}] * slots,
        log_q=np.zeros((slots, len(tree.internal), VOCAB), np.float32),
        origins=np.tile(np.int8([0, *(1 + n % 3 for n in range(1, tree.size))]), (slots, 1)),
    )
    source.log_q[:] = np.arange(len(tree.internal))[:, None]
    lane = SimpleNamespace(
        tree=tree, rows=rows, rows_of=lambda slot: slice(slot * rows, (slot + 1) * rows), prefix_len=PREFIX,
        logits=-np.sort(-rng.normal(size=(slots, tree.size, VOCAB)).astype(np.float32)),
        kept_ids=rng.permuted(np.tile(np.arange(VOCAB), (slots, tree.size, 1)), axis=2),
        drawn=np.zeros((slots, tree.size), np.int64), second=None, similarity=None, states=None,
        tokens=(np.arange(tree.size) + np.arange(slots)[:, None]) % VOCAB, source=source,
        noise=np.zeros((slots, tree.depth + 1, VOCAB), np.float32), depths=np.tile(tree.depths, (slots, 1)),
        trees=[tree] * slots, write_index=np.zeros(slots * rows, np.int64),
        positions=np.zeros((slots * rows, tree.size), np.int64), memory=SimpleNamespace(target=Moves()), runs=[],
    )  # fmt: skip
    lane.run_target = lambda count, fetch: lane.runs.append((count, sorted(fetch)))
    return lane


def sequence(plan: TokenPlan, rule: Rule, done: int, rows: int = 2) -> TokenSequence:
    """A sequence with `done` tokens; its rows' positions count from different places."""
    found = TokenSequence(9, SAMPLING, rule, plan, -np.arange(rows))
    found.done = done
    return found


@given(trees(), plans(), st.lists(st.integers(0, 3), min_size=6, max_size=6), st.data())
def test_walk(tree: Tree, plan: TokenPlan, choices: list[int], data: st.DataObject) -> None:
    """A path runs from parent to child, has a token for each node, never passes the end, and obeys forced tokens."""
    if plan.length == 1:
        return
    done = data.draw(st.integers(1, plan.length - 1))
    lane, rule = verified(tree, 1), Anything(choices)
    one = sequence(plan, rule, done)
    accepted = loop.accept(lane, [one])[0]
    assert accepted is not None
    path, tokens = accepted.path, accepted.tokens
    assert path[0] == 0
    assert all(tree.parents[node] == before for before, node in pairwise(path))
    assert all(before < node for before, node in pairwise(path))
    assert len(tokens) == len(path) <= min(tree.depth + 1, one.room)
    assert tokens[:-1] == [int(lane.tokens[0, node]) for node in path[1:]]
    assert accepted.start == done
    origins = [int(lane.source.origins[0, node]) for node in path[1:]]
    assert accepted.origins[: len(origins)] == origins and len(accepted.origins) == len(tokens)
    assert accepted.origins[-1] == Origin.TARGET or len(tokens) == one.room  # the bonus, unless the sequence ends first
    asked = iter(rule.seen)
    for index, token, cause, must in zip(path, tokens, accepted.causes, plan.forced[done:], strict=False):
        if must >= 0:
            assert (token, cause) == (must, Cause.FORCED)
            continue
        node, draws = next(asked)  # the rule is asked for the tokens that are drawn, and for no other
        assert node.index == index
        assert (draws.seed, draws.position) == (9, done + tree.depths[index])
        assert node.row_start == (draws.position in plan.code_positions[:: plan.columns])
        np.testing.assert_array_equal(node.ids, lane.kept_ids[0, index])
        new = [lane.source.origins[0, child] == Origin.NEW for child in node.nodes]
        assert node.blind == set(np.flatnonzero(new))
        if tree.children[index]:
            assert node.log_q is not None
            assert node.log_q[0] == tree.internal.index(index)  # the distribution of this node, not of another
        else:
            assert node.log_q is None
    assert next(asked, None) is None


def test_a_walk_follows_the_targets_draws_where_the_rule_asks_for_nothing_else() -> None:
    """`exact` goes from node to node by the drawn tokens; `ar` in a tree takes the first only."""
    tree = tree_from_branching("t", [[2], [1, 1]])  # nodes 1 and 2 below the root, 3 and 4 below them
    plan = TokenPlan(3, 3, VOCAB)
    lane = verified(tree, 1)
    lane.drawn[0] = [2, 0, 4, 0, 13]  # the root draws node 2's token, node 2 that of node 4, node 4 another
    lane.logits[:] = np.nan  # nobody looks
    walked = loop.walk(lane, 0, sequence(plan, Exact(), 2))
    assert (walked.path, walked.tokens) == ([0, 2, 4], [2, 4, 13])
    assert walked.causes == [Cause.STRICT, Cause.STRICT, Cause.DRAWN]
    assert walked.origins == [lane.source.origins[0, 2], lane.source.origins[0, 4], Origin.TARGET]
    plain = TokenSequence(9, SAMPLING, None, plan, np.zeros(2, np.int64))
    plain.done = 2
    walked = loop.walk(lane, 0, plain)
    assert (walked.path, walked.tokens, walked.origins) == ([0], [2], [Origin.TARGET])


def test_who_said_a_token_first() -> None:
    """The drafter its node, the round before its guesses, nobody a new place, the target the bonus token."""
    tree = get_tree("mixed_4")
    plan = TokenPlan(3, 4, VOCAB)
    lane = verified(tree, 1)
    lane.source.origins[0] = [Origin.TARGET, Origin.EAGLE, Origin.JACOBI, Origin.JACOBI, Origin.NEW]
    lane.drawn[0] = [*lane.tokens[0, 1:], 17]
    one = sequence(plan, Exact(), 1)
    walked = loop.accept(lane, [one])
    loop.emit(lane, [one], walked)
    said = [Origin.TARGET, Origin.EAGLE, Origin.JACOBI, Origin.JACOBI, Origin.NEW, Origin.TARGET]
    assert one.code_origins[: one.done].tolist() == said
    assert one.trees == {"mixed_4": 1} and one.rounds == 1


def test_a_rule_without_needs_is_asked_all_the_same() -> None:
    """Only `exact` is known to follow the draws; any other rule decides by itself, and finds ids and logits."""
    tree = tree_from_branching("t", [[1]])
    rule = Anything([1], needs=frozenset())  # takes no child
    lane = verified(tree, 1)
    lane.drawn[0] = lane.tokens[0, 1]
    walked = loop.walk(lane, 0, sequence(TokenPlan(3, 3, VOCAB), rule, 2))
    assert walked.tokens == [VOCAB - 1] and len(rule.seen[0][0].ids) == VOCAB


def test_a_node_that_is_not_finite_ends_only_its_image() -> None:
    tree = tree_from_branching("t", [[1], [1]])
    plan = TokenPlan(3, 3, VOCAB)
    lane = verified(tree, 3)
    lane.drawn[:] = lane.tokens[:, [1, 2, 0]]  # each walk goes down to the leaf
    lane.drawn[1, 1] = -1  # visited
    lane.drawn[2, 0], lane.drawn[2, 1] = 19, -1  # leaves at the root, so the second node is not visited
    accepted = loop.accept(lane, [sequence(plan, Exact(), 1) for _ in range(3)])
    assert accepted[0] is not None and accepted[1] is None and accepted[2] is not None
    assert accepted[2].tokens == [19]


@given(trees(), plans(), st.lists(st.integers(0, 3), min_size=400, max_size=400), st.sampled_from([1, 2]))
def test_lengths_over_a_whole_image(tree: Tree, plan: TokenPlan, choices: list[int], rows: int) -> None:
    """Round after round: lengths advance by what was accepted, the rows of a slot move alike, empty slots rest."""
    rule = Anything(choices)
    sequences: list[TokenSequence | None] = [sequence(plan, rule, 1, rows), None, sequence(plan, rule, 1, rows)]
    lane = verified(tree, 3, rows)
    while any(one is not None for one in sequences):
        sequences = [one if one is not None and one.room else None for one in sequences]
        if not any(one is not None for one in sequences):
            break
        before = {slot: one.done for slot, one in loop.occupied(sequences)}
        loop.verify(lane, sequences)
        assert lane.runs[-1] == (3, ["ids", "logits"])
        accepted = loop.accept(lane, sequences)
        loop.commit(lane, sequences, accepted)
        loop.emit(lane, sequences, accepted)
        assert set(accepted) == set(before)
        for slot, one in loop.occupied(sequences):
            walked, start = accepted[slot], PREFIX + before[slot] - 1
            assert walked is not None
            own = slice(slot * rows, (slot + 1) * rows)
            assert (lane.write_index[own] == start).all()
            for row, positions in enumerate(lane.positions[own]):
                np.testing.assert_array_equal(positions, start - row + tree.depths)
            assert one.done == before[slot] + len(walked.tokens) <= plan.length
            np.testing.assert_array_equal(one.tokens[before[slot] : one.done], walked.tokens)
            assert (list(range(own.start, own.stop)), start, walked.path) in lane.memory.target.calls[-len(before) :]
            np.testing.assert_array_equal(one.causes[before[slot] : one.done], walked.causes)
            np.testing.assert_array_equal(one.origins[before[slot] : one.done], walked.origins)
            assert one.newest is walked and walked.start == before[slot]  # what the drafter reads next
    assert len(lane.memory.target.calls) > 0 or plan.length == 1


@given(plans())
def test_codes_of_a_sequence(plan: TokenPlan) -> None:
    """Only codes are an image's; those that are drawn are counted as the sequence grows."""
    one = TokenSequence(0, SAMPLING, None, plan, np.zeros(2, np.int64))
    assert len(one.codes) == plan.rows * plan.columns
    for done in range(plan.length + 1):
        one.done = done
        assert one.drawn == int((plan.forced[:done] < 0).sum())
    assert one.drawn == plan.image_tokens and one.room == 0
