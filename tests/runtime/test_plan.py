"""The sequence of an image: what it forces where, and where its codes are."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from cascade_trt.runtime.bundle import ConditionInfo
from cascade_trt.runtime.errors import CascadeError
from cascade_trt.runtime.plan import TokenPlan

PLANS = [
    TokenPlan(4, 4, 16), TokenPlan(1, 1, 1), TokenPlan(2, 5, 9, row_end=9), TokenPlan(3, 2, 7, row_end=8, begin=[7]),
    TokenPlan(48, 48, 8192, row_end=8194, begin=[8192, 8193, 8193]),
]  # fmt: skip


@pytest.mark.parametrize("plan", PLANS)
def test_the_sequence_is_begin_then_rows_with_their_ends(plan: TokenPlan) -> None:
    """Written out one token after another; behind the last code nothing is computed."""
    written = list(plan.begin)
    places = []
    for row in range(plan.rows):
        places += [len(written) + column for column in range(plan.columns)]
        written += [-1] * plan.columns
        if plan.row_end is not None and row < plan.rows - 1:
            written.append(plan.row_end)
    assert plan.length == len(written) and plan.image_tokens == len(places)
    assert plan.forced.tolist() == written and plan.code_positions.tolist() == places
    assert plan.has_forced == any(token >= 0 for token in written)
    assert plan.tokens == plan.codes + len({*plan.begin, *([] if plan.row_end is None else [plan.row_end])})
    assert plan.forced.dtype == plan.code_positions.dtype == np.int64
    assert np.flatnonzero(plan.row_starts).tolist() == places[:: plan.columns]
    for position in range(plan.length):
        code = places.index(position) if position in places else 0  # forced positions have no neighbours
        assert plan.left[position] == (places[code - 1] if code else -1)
        assert plan.above[position] == (places[code - plan.columns] if code >= plan.columns else -1)
    assert TokenPlan(**json.loads(json.dumps(asdict(plan)))) == plan


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((0, 4, 16), "rows must be a whole number from 1 to 128, not 0"), ((4, 129, 16), "columns must be"),
        ((4, 4, 0), "at least one code"), ((4, 4, 16, 17), r"syntax tokens \[17\] .* without a gap"),
        ((4, 4, 16, 16, [18]), "without a gap"), ((4, 4, 16, None, [3]), "without a gap"),
    ],
)  # fmt: skip
def test_what_makes_no_sequence_is_a_sentence(arguments: tuple, sentence: str) -> None:
    with pytest.raises(CascadeError, match=sentence):
        TokenPlan(*arguments)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"kind": "text", "length": 3, "width": 2}, "kind 'text'"),
        ({"kind": "features", "length": 3, "width": 2, "positions": "both"}, "positions 'both'"),
        ({"kind": "features", "length": 3}, "length and width must be positive, not 3 and 0"),
        ({"kind": "class", "length": 0, "classes": 4}, "length and number of classes must be positive"),
        ({"kind": "features", "length": 3, "width": 2, "uncond_length": 4}, "uncond_length must be from 1 to 3, not 4"),
    ],
)  # fmt: skip
def test_what_is_no_condition_is_a_sentence(arguments: dict, sentence: str) -> None:
    with pytest.raises(CascadeError, match=sentence):
        ConditionInfo(**arguments)
