"""Both strict rules leave the target's distribution as it is, whatever the drafter proposes (chi-square)."""

from __future__ import annotations

import numpy as np
import pytest
from rule_cases import root_node
from scipy import stats

from cascade_trt.runtime.noise import Stream
from cascade_trt.runtime.rules import Draws, Node, get_rule

VOCAB = 7
DRAWS = 100_000
P = np.array([0.34, 0.22, 0.17, 0.12, 0.08, 0.05, 0.02])
LAWS = {
    "near": np.array([0.30, 0.25, 0.15, 0.14, 0.06, 0.06, 0.04]),
    "far": np.array([0.02, 0.03, 0.05, 0.10, 0.20, 0.25, 0.35]),
}


def node(tokens: list[int], log_q: np.ndarray, p: np.ndarray = P) -> Node:
    return root_node(p, tokens, log_q)


@pytest.mark.slow
@pytest.mark.parametrize("children", [1, 2, 4])
@pytest.mark.parametrize("distribution", LAWS)
@pytest.mark.parametrize("name", ["strict", "strict-topk", "exact"])
def test_law_of_the_next_token(name: str, distribution: str, children: int) -> None:
    rule = get_rule(name)
    log_q = np.log(LAWS[distribution]).astype(np.float32)
    counts = np.zeros(VOCAB)
    for position in range(DRAWS):
        draws = Draws(11, position, VOCAB)
        noise = 0 if rule.noise is None else draws.gumbel(rule.noise, np.arange(VOCAB))
        tokens = np.argsort(-(log_q + noise), kind="stable")[:children].tolist()
        counts[rule.decide(node(tokens, log_q), draws).token] += 1
    assert stats.chisquare(counts, P * DRAWS).pvalue > 1e-3


def test_a_perfect_drafter_is_always_accepted() -> None:
    """With q = p the first sampled child always passes."""
    rule = get_rule("strict")
    log_q = np.log(P).astype(np.float32)
    for position in range(200):
        draws = Draws(3, position, VOCAB)
        first = int(np.argmax(log_q + draws.gumbel(Stream.DRAFT, np.arange(VOCAB))))
        decision = rule.decide(node([first], log_q), draws)
        assert (decision.token, decision.child) == (first, 1)


def test_sampled_drafts_are_accepted_more_often_than_top_k() -> None:
    """On a flat distribution a deterministic child has only its own probability, a sampled one 1 - TV(p, q)."""
    accepted = {"strict": 0, "strict-topk": 0}
    log_q = np.log(LAWS["near"]).astype(np.float32)
    for name in accepted:
        rule = get_rule(name)
        for position in range(2000):
            draws = Draws(5, position, VOCAB)
            noise = 0 if rule.noise is None else draws.gumbel(rule.noise, np.arange(VOCAB))
            tokens = [int(np.argmax(log_q + noise))]
            accepted[name] += rule.decide(node(tokens, log_q), draws).child is not None
    assert accepted["strict"] / 2000 == pytest.approx(np.minimum(P, LAWS["near"]).sum(), abs=0.03)
    assert accepted["strict-topk"] / 2000 == pytest.approx(P[0], abs=0.03)


def test_tokens_outside_the_support_are_rejected() -> None:
    """A child that top-k cut off has p = 0; the bonus token comes from the support."""
    rule = get_rule("strict")
    p = np.array([0.6, 0.4])
    log_q = np.log(LAWS["far"]).astype(np.float32)
    kept = root_node(p, [6, 5], log_q)
    for position in range(200):
        decision = rule.decide(kept, Draws(1, position, VOCAB))
        assert decision.child is None
        assert decision.token in (0, 1)
