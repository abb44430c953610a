"""Thresholds from recorded cosines, and the choice among measured points."""

from __future__ import annotations

import pytest

from cascade_trt.calibration.thresholds import (
    Candidate,
    Point,
    cascade_candidates,
    operating_point,
    quantile,
    swap_candidates,
)
from cascade_trt.calibration.watch import Similarities
from cascade_trt.runtime.errors import CascadeError
from cascade_trt.runtime.rules import get_rule
from cascade_trt.runtime.rules.cascade import Cascade


def seen(breadth: list[float], depth: list[float]) -> Similarities:
    similarities = Similarities()
    similarities.breadth[1] += breadth
    similarities.depth[1] += depth
    return similarities


def point(signals: str, speed_up: float, lost: float | None) -> Point:
    accuracy = None if lost is None else 0.8
    return Point(f"cascade {signals}", signals, 0.9, speed_up, 3.0, 0.1, accuracy, lost, lost, lost)


def test_quantiles_run_over_all_depths() -> None:
    assert quantile({1: [0.0, 1.0], 2: [0.5]}, 0.5) == 0.5
    assert quantile({1: [-0.5, -0.4]}, 0.5) == 0.0  # thresholds lie in 0 ... 1
    assert quantile({}, 0.5) is None


def test_each_signal_alone_and_both() -> None:
    found = cascade_candidates(seen([0.2, 0.4, 0.6], [0.7, 0.8, 0.9]), "coupled", (0.5, 0.9))
    assert [(c.signals, c.quantile) for c in found] == [
        ("none", None), ("breadth", 0.5), ("depth", 0.5), ("both", 0.5),
        ("breadth", 0.9), ("depth", 0.9), ("both", 0.9),
    ]  # fmt: skip
    rules = [get_rule(candidate.rule) for candidate in found]
    assert all(isinstance(rule, Cascade) and rule.children == "coupled" for rule in rules)
    assert [(rule.tau_pos, rule.tau_seq) for rule in rules[:4]] == [(None, None), (0.4, None), (None, 0.8), (0.4, 0.8)]


def test_the_draw_has_quantiles_of_its_own() -> None:
    recorded = Similarities(draw={1: [0.2, 0.4], 2: [0.6]})
    found = swap_candidates(recorded, (0.0, 0.5))
    assert [(c.signals, c.quantile) for c in found] == [("none", None), ("draw", 0.0), ("draw", 0.5)]
    assert [c.rule.partition("tau_draw=")[2] for c in found[1:]] == ["0.2000", "0.4000"]
    dear = swap_candidates(Similarities(draw={1: [-3.0, -2.0, 0.5]}), (0.1, 0.5, 1.0))
    assert [c.quantile for c in dear] == [None, 0.1, 1.0]  # 0.1 and 0.5 both are below 0: one rule


def test_a_chain_has_no_siblings() -> None:
    found = cascade_candidates(seen([], [0.5]), "sampled", (0.5,))
    assert found == [
        Candidate("cascade:tau_pos=off,tau_seq=off", "none", None),
        Candidate("cascade:tau_pos=off,tau_seq=0.5000", "depth", 0.5),
    ]


def test_the_fastest_within_the_tolerance() -> None:
    points = [point("none", 1.4, 0.03), point("breadth", 1.6, 0.01), point("depth", 1.9, 0.02), point("both", 2.5, 0.2)]
    assert operating_point(points, 0.02).signals == "depth"
    assert operating_point(points, 0.5).signals == "both"
    assert operating_point([points[0], points[3]], 0.0).signals == "none"  # exact's own distribution needs no tolerance
    with pytest.raises(CascadeError, match="give a --judge"):
        operating_point([point("both", 2.0, None)], 0.1)
