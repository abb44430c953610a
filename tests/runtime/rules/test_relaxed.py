"""What holds for every relaxed rule, whatever the node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rule_cases import root_node

from cascade_trt.runtime.errors import CascadeError
from cascade_trt.runtime.noise import Stream
from cascade_trt.runtime.rules import LOG_Q, RULE_NAMES, Cause, Draws, Node, get_rule
from cascade_trt.runtime.rules.cascade import Cascade
from cascade_trt.runtime.rules.cool import Cool
from cascade_trt.runtime.rules.gsd import Gsd
from cascade_trt.runtime.rules.lantern import Lantern, LanternPlus
from cascade_trt.runtime.rules.registry import over
from cascade_trt.runtime.rules.relaxed import CHILDREN
from cascade_trt.runtime.rules.states import StateTable
from cascade_trt.runtime.rules.swap import Swap
from cascade_trt.runtime.tree import tree_from_branching

VOCAB = 12
TABLE = np.array([[y for y in np.argsort(np.abs(np.arange(VOCAB) - x), kind="stable") if y != x] for x in range(VOCAB)])
_ROWS = np.random.default_rng(4).normal(size=(VOCAB, 3))
STATES = StateTable(
    (_ROWS / np.linalg.norm(_ROWS, axis=1, keepdims=True)).astype(np.float16),
    np.random.default_rng(5).dirichlet(np.ones(VOCAB)).astype(np.float32),
)
BASES = {"sampled": "strict", "topk": "strict-topk", "coupled": "exact"}


@dataclass(frozen=True)
class Case:
    """A node before its children are drafted."""

    p: np.ndarray
    log_q: np.ndarray
    similarity: np.ndarray
    count: int
    draws: Draws
    more: dict[str, Any]

    def node(self, children: str) -> Node:
        stream = CHILDREN[children]
        noise = 0 if stream is None else self.draws.gumbel(stream, np.arange(VOCAB))
        tokens = np.argsort(-(self.log_q + noise), kind="stable")[: self.count].tolist()
        tree = tree_from_branching("case", [[self.count], [1, 0, 2][: self.count]])
        return root_node(self.p, tokens, self.log_q, self.similarity, tree, **self.more)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    p = rng.dirichlet(np.full(VOCAB, 0.5)) + 1e-9
    log_q = np.log(rng.dirichlet(np.full(VOCAB, 0.5)) + 1e-9)
    count = draw(st.integers(1, 5))
    states = rng.normal(size=(10, 3))
    states /= np.linalg.norm(states, axis=1, keepdims=True)
    more = {"row_start": draw(st.booleans()), "relaxed_run": draw(st.integers(0, 2)),
            "blind": draw(st.frozensets(st.integers(0, 4), max_size=2))}  # fmt: skip
    return Case(p / p.sum(), (log_q - np.logaddexp.reduce(log_q)).astype(np.float32), np.abs(states @ states.T), count,
                Draws(draw(st.integers(0, 1000)), 7, VOCAB), more)  # fmt: skip


def relaxations(children: str) -> list[Any]:
    rules: list[Any] = [
        Cascade(children=children, tau_pos=0.5, tau_seq=0.5, guard=0.0, cap=0),
        Cascade(children=children, tau_pos=0.5, tau_seq=None),
        Lantern(children=children, delta=0.3, k=5, table=TABLE),
        LanternPlus(children=children, lambda_=4.0, table=TABLE),
        Cool(children=children, delta=2.0),
    ]
    if children == "coupled":
        rules += [by_draw(0.4), Cool(children=children, delta=2.0, lookahead=True),
                  Cascade(children=children, tau_pos=0.5, tau_seq=0.5, guard=0.0, cap=0, lookahead=True)]  # fmt: skip
    return rules if children == "topk" else [*rules, Gsd(children=children, size=4)]


def by_draw(tau_draw: float | None, **more: Any) -> Swap:
    return Swap(tau_draw=tau_draw, states=STATES, **more)


def switched_off(children: str) -> list[Any]:
    return [
        Cascade(children=children, tau_pos=None, tau_seq=None),
        Lantern(children=children, delta=0.0, table=TABLE),
        LanternPlus(children=children, lambda_=1.0, table=TABLE),
        Cool(children=children, delta=1.0, nu=0.0),
        *([by_draw(None)] if children == "coupled" else []),
    ] + ([] if children == "topk" else [Gsd(children=children, size=1)])


@given(cases(), st.sampled_from(sorted(CHILDREN)))
def test_switched_off_it_is_the_strict_rule(case: Case, children: str) -> None:
    node = case.node(children)
    expected = get_rule(BASES[children]).decide(node, case.draws)
    for rule in switched_off(children):
        assert rule.decide(node, case.draws) == expected, rule.name


@given(cases(), st.integers(1, 12))
def test_coupled_rules_decide_without_the_drafters_law(case: Case, kept: int) -> None:
    """q cancels out on the coupled tree, except where a rule weighs it, too: that one needs it."""
    whole = case.node("coupled")
    node = Node(**{**vars(whole), "ids": whole.ids[:kept], "logits": whole.logits[:kept]})  # type: ignore[arg-type]
    without = Node(**{**vars(node), "log_q": None, "notes": {}})  # type: ignore[arg-type]
    for rule in relaxations("coupled"):
        assert (LOG_Q in rule.needs) == isinstance(rule, Gsd)
        if LOG_Q not in rule.needs:
            assert rule.decide(without, case.draws) == rule.decide(node, case.draws), rule.name
    for rule in relaxations("sampled"):
        assert LOG_Q in rule.needs
    for rule in relaxations("topk"):
        assert LOG_Q not in rule.needs


@given(cases(), st.sampled_from(sorted(CHILDREN)), st.integers(1, 12))
def test_what_is_accepted_lies_in_the_support(case: Case, children: str, kept: int) -> None:
    """The sampler keeps `kept` tokens: nothing else comes out, relaxed or not, and the token is the child's."""
    whole = case.node(children)
    node = Node(**{**vars(whole), "ids": whole.ids[:kept], "logits": whole.logits[:kept]})  # type: ignore[arg-type]
    for rule in relaxations(children):
        decision = rule.decide(node, case.draws)
        assert decision.token in node.ids
        if decision.child is None:
            assert decision.cause is Cause.DRAWN
        else:
            assert node.tokens[list(node.nodes).index(decision.child)] == decision.token
            assert decision.cause is not Cause.DRAWN
        if decision.cause.relaxed:
            place = node.place(decision.token)
            assert place is not None and node.p[place] >= rule.guard * node.p[0]
            assert not (rule.row_ends and node.row_start)
            assert not rule.cap or node.relaxed_run < rule.cap
            assert list(node.nodes).index(decision.child) not in node.blind  # somebody has guessed it


@given(cases(), st.sampled_from(sorted(CHILDREN)), st.floats(0, 1), st.floats(0, 1))
def test_more_is_accepted_as_a_threshold_falls(case: Case, children: str, one: float, two: float) -> None:
    low, high = sorted((one, two))
    node = case.node(children)
    pairs = [
        (Cascade(children=children, tau_pos=low, tau_seq=None), Cascade(children=children, tau_pos=high, tau_seq=None)),
        (Cascade(children=children, tau_pos=None, tau_seq=low), Cascade(children=children, tau_pos=None, tau_seq=high)),
        (Lantern(children=children, delta=high, table=TABLE), Lantern(children=children, delta=low, table=TABLE)),
        (Cool(children=children, delta=1 + high), Cool(children=children, delta=1 + low)),
    ]
    if children == "coupled":
        pairs.append((by_draw(low), by_draw(high)))
    for looser, tighter in pairs:
        if tighter.decide(node, case.draws).child is not None:
            assert looser.decide(node, case.draws).child is not None, (looser.name, tighter.name)


@pytest.mark.parametrize("name", ["cascade:tau_pos=0.0,tau_seq=0.0,guard=0.0,cap=0", "cascade:children=coupled"])
def test_at_temperature_zero_nothing_is_relaxed(name: str) -> None:
    """The sampler keeps one token, so the support holds nothing else."""
    everything_alike = np.ones((3, 3))
    node = root_node(
        np.array([1.0]), [5, 0], np.full(VOCAB, -np.log(VOCAB), np.float32), everything_alike
    )  # fmt: skip
    decision = get_rule(name).decide(node, Draws(0, 0, VOCAB))
    assert (decision.token, decision.child, decision.cause) == (0, 2, Cause.STRICT)


@pytest.mark.parametrize("rule", [*relaxations("sampled"), *relaxations("coupled"), get_rule("strict")])
def test_names_spell_the_rule(rule: Any) -> None:
    assert get_rule(rule.name, TABLE, STATES) == rule


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cascade:tau_pos=1.2", "tau_pos must lie between 0 and 1, not 1.2"),
        ("cascade:tau_seq=-0.1", "tau_seq must lie between 0 and 1"),
        ("cascade:tau_pos=high", "tau_pos must be a number, not 'high'"),
        ("cascade:tau=0.5", "cannot read 'tau=0.5'"),
        ("cascade:tau_pos", "write setting=value"),
        ("cascade:row_ends=yes", "must be on or off"),
        ("cascade:cap=-1", "cap must be 0"),
        ("cascade:cap=1.5", "a whole number"),
        ("cascade:children=greedy", "children must be one of sampled, topk, coupled"),
        ("cascade:tau_draw=0.5", "cannot read 'tau_draw=0.5'"),
        ("cascade:lookahead=on", "only a coupled tree knows beforehand"),
        ("swap:children=sampled,lookahead=off", "only a coupled tree shares"),
        ("swap:tau_draw=1.5", "tau_draw must lie between 0 and 1"),
        ("swap:tau_draw=on", "tau_draw must be a number, not 'on'"),
        ("swap:balance=-1", "balance must lie between 0 and 1"),
        ("lantern:delta=2", "delta must lie between 0 and 1"),
        ("lantern:delta=1,delta=0", "lantern has delta twice"),
        ("cascade:tau_pos=0.9,tau_pos=0.9", "cascade has tau_pos twice"),
        ("lantern++:lambda=2,k=3,lambda=2", "has lambda twice"),
        ("lantern:k=0", "k must be at least 1"),
        ("lantern++:lambda=0.5", "lambda must be at least 1"),
        ("gsd:children=topk", "top-k children lack"),
        ("gsd:size=0", "size must be at least 1"),
        ("cool:delta=-1", "delta must be 0 or more"),
        ("strict:delta=1", "rule strict has no settings"),
        ("relaxed", "unknown rule 'relaxed'"),
    ],
)
def test_wrong_settings_are_one_sentence(text: str, said: str) -> None:
    with pytest.raises(CascadeError) as error:
        get_rule(text, TABLE, STATES)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_lantern_needs_its_table() -> None:
    for name in ("lantern", "lantern++"):
        with pytest.raises(CascadeError, match="neighbour table"):
            get_rule(name)


def test_swap_needs_its_table() -> None:
    with pytest.raises(CascadeError, match="run `cascade-trt calibrate states`"):
        get_rule("swap:tau_draw=0.5", TABLE)


@pytest.mark.parametrize(
    ("text", "point", "means"),
    [
        ("cascade", None, "cascade"),
        ("cascade", "cascade:tau_pos=0.8,guard=0.1", "cascade:guard=0.1,tau_pos=0.8"),
        ("cascade:guard=0.01", "cascade:tau_pos=0.8,guard=0.1", "cascade:guard=0.01,tau_pos=0.8"),
        ("cascade:cap=3", "cascade", "cascade:cap=3"),
        ("cascade:guard=0.01,tau_pos=0.7", "cascade:tau_pos=0.8,guard=0.1", "cascade:guard=0.01,tau_pos=0.7"),
    ],
)
def test_settings_are_laid_over_an_operating_point(text: str, point: str | None, means: str) -> None:
    assert get_rule(over(text, point)) == get_rule(means)


def test_a_setting_that_comes_twice_is_refused_over_an_operating_point_too() -> None:
    with pytest.raises(CascadeError, match="has guard twice"):
        get_rule(over("cascade:guard=0.01,guard=0.02", "cascade:tau_pos=0.8,guard=0.1"))


def test_every_rule_can_be_made() -> None:
    for name in RULE_NAMES[1:]:
        assert get_rule(name, TABLE, STATES).noise in (*Stream, None)
