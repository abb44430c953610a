"""Small cases worked by hand, one for each idea of each rule.

The distribution is p = (.4, .3, .2, .1) over the tokens 0 to 3 and q is uniform, so that a first child x passes the
strict test when u * 1/4 < p(x). `u` is replaced by a fixed number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from rule_cases import root_node

from cascade_trt.runtime.noise import Stream
from cascade_trt.runtime.rules import Cause, Draws, Node
from cascade_trt.runtime.rules.cascade import Cascade
from cascade_trt.runtime.rules.cool import Cool
from cascade_trt.runtime.rules.gsd import Gsd
from cascade_trt.runtime.rules.lantern import Lantern, LanternPlus
from cascade_trt.runtime.rules.residual import Residual
from cascade_trt.runtime.rules.states import StateTable
from cascade_trt.runtime.rules.swap import Swap
from cascade_trt.runtime.tree import tree_from_branching

P = np.array([0.4, 0.3, 0.2, 0.1])
UNIFORM = np.log(np.full(4, 0.25)).astype(np.float32)
TABLE = np.array([[1, 2, 3], [0, 2, 3], [3, 1, 0], [2, 1, 0]])


@dataclass(frozen=True)
class Fixed(Draws):
    """Every acceptance number is `u`, all noise is zero (so that draws are the likeliest token)."""

    u: float = 0.5

    def uniform(self, stream: Stream, token: int) -> float:  # noqa: ARG002
        return self.u

    def gumbel(self, stream: Stream, ids: np.ndarray) -> np.ndarray:  # noqa: ARG002
        return np.zeros(len(ids), np.float32)


def draws(u: float) -> Fixed:
    return Fixed(seed=0, position=0, vocab_size=4, u=u)


def alike(*pairs: tuple[int, int, float], size: int = 4) -> np.ndarray:
    """Similarity [N, N] with these cosines between nodes, 0 elsewhere."""
    matrix = np.eye(size)
    for one, two, cosine in pairs:
        matrix[one, two] = matrix[two, one] = cosine
    return matrix


def case(tokens: list[int], *pairs: tuple[int, int, float], **more: object) -> Node:
    return root_node(P, tokens, UNIFORM, alike(*pairs, size=len(tokens) + 1), **more)  # type: ignore[arg-type]


def test_cascade_lends_the_probability_of_similar_siblings() -> None:
    """Child 3 alone passes for u < .1/.25 = .4; with its sibling 2 (cosine .95) for u < .3/.25: always."""
    rule = Cascade(tau_pos=0.9, tau_seq=None, guard=0.0)
    node = case([3, 2], (1, 2, 0.95))
    decision = rule.decide(node, draws(0.9))
    assert (decision.token, decision.child, decision.cause) == (3, 1, Cause.INTERCHANGEABLE)
    assert rule.decide(node, draws(0.3)).cause is Cause.STRICT
    assert Cascade(tau_pos=0.96, tau_seq=None, guard=0.0).decide(node, draws(0.9)).token != 3


def test_cascade_guard_cap_and_row_ends() -> None:
    node = case([3, 2], (1, 2, 0.95))
    assert Cascade(tau_pos=0.9, tau_seq=None, guard=0.25).decide(node, draws(0.9)).token == 3  # .1 >= .25 * .4
    assert Cascade(tau_pos=0.9, tau_seq=None, guard=0.26).decide(node, draws(0.9)).token != 3
    rule = Cascade(tau_pos=0.9, tau_seq=None, guard=0.0, cap=2)
    assert rule.decide(case([3, 2], (1, 2, 0.95), relaxed_run=1), draws(0.9)).token == 3
    assert rule.decide(case([3, 2], (1, 2, 0.95), relaxed_run=2), draws(0.9)).token != 3
    assert rule.decide(case([3, 2], (1, 2, 0.95), row_start=True), draws(0.9)).token != 3


def test_cascade_gives_the_likeliest_child_a_second_chance() -> None:
    """Children 3 and 2 fail for u = .9 (.1/.25, then what is left of p(2)); 2 is the likelier one."""
    rule = Cascade(tau_pos=None, tau_seq=0.8, guard=0.0)
    node = case([3, 2], (0, 2, 0.85))
    decision = rule.decide(node, draws(0.9))
    assert (decision.token, decision.child, decision.cause) == (2, 2, Cause.CONVERGED)
    assert rule.decide(case([3, 2], (0, 2, 0.75), (0, 1, 0.99)), draws(0.9)).child is None


def test_cascade_on_the_coupled_tree() -> None:
    """The target's draw (without noise: token 0) wins if it was drafted. If not, child 1 needs .3 + lent >= .4."""
    rule = Cascade(children="coupled", tau_pos=0.9, tau_seq=None, guard=0.0)
    assert rule.decide(case([1, 0], (1, 2, 0.0)), draws(0.5)).cause is Cause.STRICT
    lent = rule.decide(case([3, 1], (1, 2, 0.95)), draws(0.5))  # .3 + .1 reaches .4; child 3's .1 + .3 as well
    assert (lent.token, lent.cause) in {(1, Cause.INTERCHANGEABLE), (3, Cause.INTERCHANGEABLE)}
    refused = rule.decide(case([3, 1], (1, 2, 0.85)), draws(0.5))
    assert (refused.token, refused.child) == (0, None)
    assert rule.decide(case([2, 3], (1, 2, 0.95)), draws(0.5)).child is None  # .2 + .1 < .4


# Rows of tokens 1 and 2 at cosine .8 and .6 to that of token 0, token 3 was never seen; 1 is four times as common as 2.
STATES = StateTable(
    np.array([[1, 0], [0.8, 0.6], [0.6, 0.8], [0, 0]], np.float16), np.array([0.3, 0.4, 0.1, 0.2], np.float32)
)


def by_draw(tau_draw: float, **more: Any) -> Swap:
    return Swap(tau_draw=tau_draw, states=STATES, **more)


def test_a_child_costs_less_the_more_it_is_like_the_draw_and_the_less_it_lost_by() -> None:
    """Token 0 is drawn. 1 lost by a tenth of a nat and 2 by four; 3 by two, so that its price is 1 - its cosine."""
    scores = np.array([5.0, 4.9, 1.0, 3.0], np.float32)
    prices = by_draw(0.5, balance=0).prices(case([1, 2, 3]), [0, 1, 2], scores)
    np.testing.assert_allclose(prices, [0.2 * 0.1 / 2, 0.4 * 4 / 2, 1.0], atol=1e-3)


def test_common_tokens_are_held_back() -> None:
    """Both lost by two nats. At full balance 1 costs .2 * .4/.3 = .27, 2 costs .4 * .1/.3 = .13."""
    scores = np.array([5.0, 3.0, 3.0, 0.0], np.float32)
    prices = by_draw(0.8, balance=1).prices(case([1, 2]), [0, 1], scores)
    np.testing.assert_allclose(prices, [0.2667, 0.1333], atol=1e-3)


def test_swap_takes_the_child_that_is_most_like_the_draw() -> None:
    """Without noise the target draws 0, and 1 loses by log(.4/.3): price .2 * .288 / 2 = .029; 2 costs .139, 3 .693."""
    node = case([2, 1, 3])
    decision = by_draw(0.97, balance=0, lookahead=False).decide(node, draws(0.5))
    assert (decision.token, decision.child, decision.cause) == (1, 2, Cause.SWAPPED)
    refused = by_draw(0.98, balance=0, lookahead=False).decide(node, draws(0.5))
    assert (refused.token, refused.child, refused.cause) == (0, None, Cause.DRAWN)
    assert by_draw(0.3, balance=0).decide(case([3]), draws(0.5)).token == 3
    assert by_draw(0.31, balance=0).decide(case([3]), draws(0.5)).child is None
    assert by_draw(0.5).decide(case([1, 0]), draws(0.5)).cause is Cause.STRICT  # the draw itself was drafted


def test_what_brings_more_may_cost_more() -> None:
    """Child 1 costs .029 and brings one token, child 2 costs .139. Behind 2 the target draws 0, which was drafted
    there; behind that 0 it draws 0 again, which was not: its child 1 costs .029 and brings one token. At tau_draw = .92
    a token pays .08, so that stand-in leaves .051, the worth of .64 tokens: 2 brings 1 + 1 + .64 = 2.64 and leaves
    .211 - .139 = .073, more than the .051 of child 1."""
    tree = tree_from_branching("uneven", [[2], [0, 1], [1]])
    leaf = (root_node(P, [], UNIFORM, alike(size=5)), draws(0.5))
    deeper = root_node(P, [1], UNIFORM, alike(size=2), behind=lambda _child, _relaxed: leaf)
    second = root_node(P, [0], UNIFORM, alike(size=2), behind=lambda _child, _relaxed: (deeper, draws(0.5)))

    def decide(tau_draw: float, **more: Any) -> int | None:
        def behind(child: int, relaxed: bool) -> tuple[Node, Draws]:
            assert relaxed
            return leaf if child == 0 else (second, draws(0.5))

        for seen in (second, deeper):
            seen.notes.clear()
        node = root_node(P, [1, 2], UNIFORM, alike(size=5), tree, behind=behind)
        return by_draw(tau_draw, balance=0, **more).decide(node, draws(0.5)).child

    assert decide(0.92) == 2
    assert decide(0.92, lookahead=False) == 1
    assert decide(0.93) == 2  # 2 + .041 / .07 tokens pay .181, less .139 = .043; child 1 leaves .07 - .029 = .041
    assert decide(0.95) == 1
    assert decide(0.98) is None
    row_start = root_node(P, [1, 2], UNIFORM, alike(size=5), tree, row_start=True)
    assert by_draw(0.75, row_ends=True).decide(row_start, draws(0.5)).child is None


def test_lantern_budget() -> None:
    """Neighbours of 3 are 2 (.2), 1 (.3), 0 (.4): delta .25 lets the first lend, .55 the first two."""
    node, distribution = case([3]), Residual(case([3]), sampled=True)
    for delta, wide in ((0.1, 0.1), (0.25, 0.3), (0.55, 0.6), (1.0, 1.0)):
        assert Lantern(delta=delta, table=TABLE).weigh(node, distribution, 0)[0] == pytest.approx(wide)
    assert Lantern(delta=1.0, k=1, table=TABLE).weigh(node, distribution, 0)[0] == pytest.approx(0.3)
    decision = Lantern(delta=0.25, table=TABLE).decide(node, draws(0.9))
    assert (decision.token, decision.cause) == (3, Cause.RELAXED)
    assert Lantern(delta=0.1, table=TABLE).decide(node, draws(0.9)).child is None


def test_lantern_plus_budget() -> None:
    """lambda 3.1 lets the neighbours of 3 lend at most .21: token 2 alone."""
    node, distribution = case([3]), Residual(case([3]), sampled=True)
    for lambda_, wide in ((2.9, 0.1), (3.1, 0.3), (6.1, 0.6)):
        assert LanternPlus(lambda_=lambda_, table=TABLE).weigh(node, distribution, 0)[0] == pytest.approx(wide)


def test_gsd_sums_both_sides_over_the_group() -> None:
    """Size 2 around token 2 (rank 2) is ranks 1 and 2: p(G) = .5, q(G) = .5; p_thr .05 leaves x alone."""
    node, distribution = case([2]), Residual(case([2]), sampled=True)
    assert Gsd(size=2).weigh(node, distribution, 0) == pytest.approx((0.5, 0.5))
    assert Gsd(size=2, p_thr=0.05).weigh(node, distribution, 0) == pytest.approx((0.2, 0.25))
    assert Gsd(size=10, p_thr=0.9).weigh(node, distribution, 0) == pytest.approx((1.0, 1.0))
    assert Gsd(size=2).decide(node, draws(0.9)).cause is Cause.RELAXED  # .2 / .25 alone would fail


def test_cool_relaxes_early_and_tightens_late() -> None:
    rule = Cool(delta=1.5, nu=0.7)
    weights = [rule.weight(depth, 3) for depth in range(3)]
    assert np.mean(weights) == pytest.approx(1.5)
    assert weights[1] / weights[0] == pytest.approx(np.exp(-0.7))
    node, distribution = case([2]), Residual(case([2]), sampled=True)
    assert Cool(delta=1.2, nu=0.0).weigh(node, distribution, 0) == pytest.approx((0.24, 0.25))
