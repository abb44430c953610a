"""Guesses of the round before against a plain reference: what nodes carry, what is kept, and whole sequences."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tree_cases import VOCAB, plans, trees_with_guesses

from cascade_trt.runtime import loop
from cascade_trt.runtime.drafting import Origin
from cascade_trt.runtime.drafting.jacobi import fill, new_place, remember, steps
from cascade_trt.runtime.plan import TokenPlan
from cascade_trt.runtime.rules.exact import Exact
from cascade_trt.runtime.sampling import Sampling
from cascade_trt.runtime.slots import TokenSequence
from cascade_trt.runtime.tree import Tree, get_tree, tree_from_paths

SAMPLING = Sampling(1.0, 1.0, 0, 1.0)
FEW = 4  # kinds of tokens, so that siblings often have the same
FORCING = TokenPlan(3, 3, VOCAB, VOCAB, [VOCAB + 1])  # begin, three codes, row end, ...

sequence_plans = plans(most=5).filter(lambda plan: plan.length > 1)


def sequence_of(plan: TokenPlan, done: int, rng: np.random.Generator) -> TokenSequence:
    """With `done` tokens and any guesses, some of them missing; forced tokens where the plan has them."""
    one = TokenSequence(0, SAMPLING, Exact(), plan, np.zeros(1, np.int64))
    one.tokens[:] = np.where(plan.forced >= 0, plan.forced, rng.integers(0, FEW, plan.length))
    one.done = done
    one.tokens[done:] = 0
    one.guesses[:] = rng.integers(-1, FEW, one.guesses.shape)
    return one


# what nodes carry -------------------------------------------------------------------------------------------
def filled(tree: Tree, sequence: TokenSequence, drafted: list[int]) -> list[tuple[int, Origin | None]]:
    """Token and origin of every node, from the whole text that ends at its parent. None: nobody asks for it."""
    texts = {0: sequence.tokens[: sequence.done].tolist()}
    found: list[tuple[int, Origin | None]] = [(texts[0][-1], None)]
    for node in range(1, tree.size):
        text, others = texts[tree.parents[node]], []
        for other in range(1, tree.size):
            if other != node and tree.parents[other] == tree.parents[node]:
                if tree.sources[other] == "eagle":
                    others.append(drafted[other])  # the drafter has spoken before any guess is made
                elif other < node:
                    others.append(found[other][0])
        token, origin = drafted[node], None
        if tree.sources[node] == "jacobi":
            token, origin = guessed(text, others, sequence)
        found.append((token, origin))
        texts[node] = [*text, token]
    return found


def guessed(text: list[int], others: list[int], sequence: TokenSequence) -> tuple[int, Origin | None]:
    """The guess of the token after `text`, siblings having those of `others`."""
    position, forced = len(text), sequence.plan.forced
    if position >= sequence.plan.length:
        return text[-1], None
    if forced[position] >= 0:
        return int(forced[position]), Origin.JACOBI
    for guess in sequence.guesses[:, position].tolist():
        if guess >= 0 and guess not in others:
            return guess, Origin.JACOBI
    codes, columns = [token for place, token in enumerate(text) if forced[place] < 0], sequence.plan.columns
    near = [codes[-columns]] if len(codes) >= columns else []
    near += codes[-1:]
    return next((token for token in near if token not in others), near[0] if near else 0), Origin.NEW


@given(trees_with_guesses(), sequence_plans, st.data())
def test_nodes_carry_guesses_else_the_code_above(tree: Tree, plan: TokenPlan, data: st.DataObject) -> None:
    """Forced tokens where the sequence forces them, no token twice among siblings while there is a choice."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    sequence = sequence_of(plan, data.draw(st.integers(1, plan.length - 1)), rng)
    tokens, origins = rng.integers(0, FEW, tree.size).tolist(), [int(Origin.EAGLE)] * tree.size
    tokens[0] = int(sequence.tokens[sequence.done - 1])
    wanted = filled(tree, sequence, tokens)
    before = sequence.guesses.copy()
    fill(tokens, origins, tree, steps(tree), sequence)
    assert tokens == [token for token, _ in wanted]
    for node, (_, origin) in enumerate(wanted):
        if node in tree.guessed and origin is not None:
            assert origins[node] == origin
        elif node not in tree.guessed:
            assert origins[node] == Origin.EAGLE
    np.testing.assert_array_equal(sequence.guesses, before)


@given(trees_with_guesses())
def test_guessed_nodes_are_filled_behind_those_that_they_look_at(tree: Tree) -> None:
    found = steps(tree)
    assert [node for node, _, _ in found] == sorted(tree.guessed)
    for node, depth, others in found:
        assert depth == tree.depths[node] > 0
        siblings = set(tree.children[tree.parents[node]])
        assert set(others) == {n for n in siblings if n < node or (n != node and n in tree.drafted_nodes)}


def test_a_new_place_is_the_code_above_whatever_lies_between() -> None:
    """In the text, in the tree, across the ends of rows; in the first row the code before; 0 where there is none."""
    one = TokenSequence(0, SAMPLING, Exact(), FORCING, np.zeros(1, np.int64))
    one.tokens[:4], one.done = [VOCAB + 1, 5, 6, 7], 4  # begin and the first row; position 4 is its end
    nodes = [7, VOCAB, 11, 12, 13, VOCAB, 14]  # a chain behind the newest token: the row's end, the second row, ...
    chain = tuple(range(len(nodes)))
    assert [new_place(nodes, chain[: depth + 1], one, 3 + depth) for depth in (2, 3, 4, 6)] == [5, 6, 7, 11]
    assert new_place(nodes, chain[:2], one, 2) == 5  # as if the first row were drawn only now
    assert new_place(nodes, chain[:2], one, 1) == 0
    one.done = 2
    assert new_place([5, 8, 9], (0, 1, 2), one, 3) == 8  # the code before is a node


def test_the_second_chain_guesses_what_came_second() -> None:
    plan, tree = TokenPlan(4, 4, VOCAB), get_tree("jacobi_2x2")  # 1 and 2 below the root, 3 and 4 below them
    one = TokenSequence(0, SAMPLING, Exact(), plan, np.zeros(1, np.int64))
    one.tokens[0], one.done = 9, 1
    one.guesses[:, 1:3] = [[3, 5], [4, 6]]
    tokens, origins = [9, 0, 0, 0, 0], [0] * 5
    fill(tokens, origins, tree, steps(tree), one)
    assert tokens == [9, 3, 4, 5, 5]  # 5 behind both: it has no sibling
    assert origins[1:] == [Origin.JACOBI] * 4
    one.guesses[1, 1] = 3  # the sampler kept one token: no rival
    fill(tokens, origins, tree, steps(tree), one)
    assert tokens == [9, 3, 9, 5, 5] and origins[2] == Origin.NEW
    mixed = get_tree("mixed_2x2")
    one.guesses[1, 1] = 4
    for drafted, rival in ((3, 4), (4, 3), (7, 3)):  # the first guess that the drafter has not made
        tokens = [9, drafted, 0, 0, 0]
        fill(tokens, origins, mixed, steps(mixed), one)
        assert tokens == [9, drafted, rival, 5, 5]


# what is kept -----------------------------------------------------------------------------------------------
@given(trees_with_guesses(), sequence_plans, st.booleans(), st.data())
def test_draws_behind_the_walk_are_kept_by_position(
    tree: Tree, plan: TokenPlan, with_second: bool, data: st.DataObject
) -> None:
    """Of each position that was reached: the draw behind the walk's first descendant, else the level's first node."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    end = data.draw(st.integers(0, tree.size - 1))
    before = data.draw(st.integers(1, plan.length - 1))
    sequence = sequence_of(plan, min(plan.length, before + int(tree.depths[end]) + 1), rng)
    drawn, second = rng.integers(-1, FEW, (2, tree.size))
    old, done = sequence.guesses.copy(), sequence.done
    remember(sequence, tree, end, drawn, second if with_second else None)
    paths = [(), *map(tuple, tree.paths())]
    for position in range(plan.length):
        depth = position - before  # of the node behind which this position was drawn
        reached = position >= done and depth <= tree.depth
        if reached:
            first = (*paths[end], *[0] * (depth - len(paths[end])))
            node = paths.index(first) if first in paths else [len(path) for path in paths].index(depth)
            assert sequence.guesses[0, position] == drawn[node]
        for row, is_kept in enumerate((True, with_second)):
            if reached and is_kept and row:
                assert sequence.guesses[1, position] == second[node]
            elif not is_kept or not reached:  # what a longer tree has left there
                assert sequence.guesses[row, position] == old[row, position]


# whole sequences --------------------------------------------------------------------------------------------
Guess = Callable[[TokenSequence, Tree, list[int], list[int]], None]


def drawn_after(text: list[int], plan: TokenPlan) -> int:
    """A target that looks back three tokens: what it draws depends on the place, too."""
    must = int(plan.forced[len(text)]) if len(text) < plan.length else 0
    return must if must >= 0 else zlib.crc32(bytes([len(text), *text[-3:]])) % FEW


def plain(plan: TokenPlan) -> list[int]:
    text: list[int] = []
    while len(text) < plan.length:
        text.append(drawn_after(text, plan))
    return text


def by_rounds(tree: Tree, plan: TokenPlan, guess: Guess, drafter: Callable[[list[int]], int]) -> TokenSequence:
    """A sequence drawn round by round with the runtime's own walk; `guess` fills guessed nodes."""
    sequence = TokenSequence(0, SAMPLING, Exact(), plan, np.zeros(1, np.int64))
    sequence.tokens[0], sequence.done = drawn_after([], plan), 1
    while sequence.room:
        text = sequence.tokens[: sequence.done].tolist()
        tokens, origins = [text[-1]] + [0] * (tree.size - 1), [0] + [int(Origin.EAGLE)] * (tree.size - 1)
        texts = [text]
        for node in tree.drafted_nodes[1:]:  # the drafter says the same of all siblings: not clever, but allowed
            tokens[node] = drafter([*text, *(tokens[n] for n in tree.lines[node][1:-1])])
        guess(sequence, tree, tokens, origins)
        texts = [[*text, *(tokens[n] for n in line[1:])] for line in tree.lines]
        lane: Any = SimpleNamespace(
            tree=tree, trees=[tree], tokens=np.array([tokens]), source=SimpleNamespace(origins=np.array([origins])),
            drawn=np.array([[drawn_after(t, plan) if len(t) < plan.length else 0 for t in texts]]),
            second=np.array([[zlib.crc32(bytes(t)) % FEW for t in texts]]),
        )  # fmt: skip
        accepted = loop.accept(lane, [sequence])
        loop.emit(lane, [sequence], accepted)
    return sequence


def as_it_is(sequence: TokenSequence, tree: Tree, tokens: list[int], origins: list[int]) -> None:
    fill(tokens, origins, tree, steps(tree), sequence)


@given(trees_with_guesses(), sequence_plans, st.integers(0, 3))
def test_any_tree_draws_the_sequence_of_plain_decoding(tree: Tree, plan: TokenPlan, skill: int) -> None:
    """Whatever a drafter says, here one that is right for some texts; a round brings at least a token."""

    def drafter(text: list[int]) -> int:
        token = drawn_after(text, plan)
        return token if len(text) % 4 < skill else (token + 1) % FEW

    drawn = by_rounds(tree, plan, as_it_is, drafter)
    assert drawn.tokens.tolist() == plain(plan)
    assert sum(drawn.trees.values()) <= plan.length - 1
    for origin, cause in zip(drawn.code_origins, drawn.code_causes, strict=True):
        assert (origin == Origin.TARGET) == (cause == loop.Cause.DRAWN)


@pytest.mark.parametrize("plan", [TokenPlan(6, 6, VOCAB), FORCING])
@pytest.mark.parametrize("spec", ["jacobi_1", "jacobi_4", "jacobi_7x3", "jacobi_40"])
def test_wrong_and_right_guesses(plan: TokenPlan, spec: str) -> None:
    """Wrong ones bring a token a round; the sequence itself all tokens that a tree can hold."""
    tree, text, missing = get_tree(spec), plain(plan), plan.length - 1
    assert isinstance(tree, Tree)

    def say(sequence: TokenSequence, tree: Tree, tokens: list[int], origins: list[int], shift: int) -> None:
        for node, depth, elders in steps(tree):
            position = sequence.done + depth - 1
            said = text[position] if position < plan.length else 0
            wrong = shift or len(elders) > 0
            tokens[node] = (said + 1 + len(elders)) % (VOCAB + 2) if wrong else said
            origins[node] = Origin.JACOBI

    wrong = by_rounds(tree, plan, lambda *given: say(*given, shift=1), lambda _: 0)
    assert wrong.tokens.tolist() == text and wrong.trees == {spec: missing}
    assert not wrong.origins.any()  # all are the target's own
    right = by_rounds(tree, plan, lambda *given: say(*given, shift=0), lambda _: 0)
    assert right.tokens.tolist() == text and right.trees == {spec: math.ceil(missing / (tree.depth + 1))}
    assert (right.origins == Origin.JACOBI).sum() == missing - missing // (tree.depth + 1)


def test_settled_guesses_are_accepted_to_the_end() -> None:
    """A target whose draws do not depend on the text: one round draws all that the second accepts."""
    plan, tree = TokenPlan(2, 10, VOCAB), get_tree("jacobi_19")
    assert isinstance(tree, Tree)
    sequence = TokenSequence(0, SAMPLING, Exact(), plan, np.zeros(1, np.int64))
    sequence.done, counts, origins = 1, [], [[0] * 20]
    drawn = np.arange(1, 21)[None]
    while sequence.room:
        tokens, said = [0] * 20, [0] * 20
        fill(tokens, said, tree, steps(tree), sequence)
        lane: Any = SimpleNamespace(tree=tree, trees=[tree], tokens=np.array([tokens]), second=None, drawn=drawn,
                                    source=SimpleNamespace(origins=np.array([said])))  # fmt: skip
        accepted = loop.accept(lane, [sequence])
        loop.emit(lane, [sequence], accepted)
        counts.append(len(accepted[0].tokens))  # type: ignore[union-attr]
        origins.append(said)
        drawn = drawn + counts[-1]
    assert counts == [1, 18] and set(origins[1][1:]) == {Origin.NEW} and set(origins[2][1:19]) == {Origin.JACOBI}


def test_paths_with_sources_of_any_order_are_served() -> None:
    """A guess may come before its drafted sibling, which has its token first: the guess does not repeat it."""
    tree = tree_from_paths("own", [[0], [1], [1, 0]], ["jacobi", "eagle", "jacobi"])
    one = TokenSequence(0, SAMPLING, Exact(), TokenPlan(2, 2, VOCAB), np.zeros(1, np.int64))
    one.tokens[0], one.done = 9, 1
    one.guesses[0, 1:3] = 5, 6
    tokens, origins = [9, 0, 5, 0], [0, 0, int(Origin.EAGLE), 0]
    fill(tokens, origins, tree, steps(tree), one)
    assert tokens == [9, 9, 5, 6] and origins[1] == Origin.NEW
    tokens[2] = 7
    fill(tokens, origins, tree, steps(tree), one)
    assert tokens == [9, 5, 7, 6] and origins[1] == Origin.JACOBI
