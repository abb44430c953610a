"""Settings of any type: what is no setting is one sentence, what is one draws."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade_trt.runtime.errors import CascadeError
from cascade_trt.runtime.options import DrawOptions, as_options, check_sampling
from cascade_trt.runtime.pipeline import Pipeline
from cascade_trt.runtime.rules.exact import Exact
from cascade_trt.runtime.sampling import Sampling


class Unspeakable:
    """Cannot even be shown."""

    def __repr__(self) -> str:
        raise RuntimeError


ODD = [
    "3", b"3", "hot", True, np.True_, [1], {}, 1j, Decimal(3), np.array(3), np.zeros((40, 40)), object, Unspeakable(),
    10**400, -(10**5000), Fraction(10**400),
]  # fmt: skip
KIND = lambda value: type(value).__name__  # noqa: E731
NUMBERS = ("guidance_scale", "temperature", "top_k", "top_p", "timeout")


def refused(**settings: Any) -> str:
    with pytest.raises(CascadeError) as caught:
        DrawOptions(**settings)
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.endswith(".") and len(sentence) < 300
    return sentence


@pytest.mark.parametrize("value", ODD, ids=KIND)
@pytest.mark.parametrize("name", NUMBERS)
def test_what_is_no_number(name: str, value: Any) -> None:
    assert refused(**{name: value}).startswith(f"{name} must be a ")


@pytest.mark.parametrize("value", [1.5, float("nan"), np.float32(3), Fraction(7, 2)])
def test_top_k_is_whole(value: Any) -> None:
    assert refused(top_k=value).startswith("top_k must be a whole number, not")


@pytest.mark.parametrize(
    "value", [5, 10**5000, b"exact", np.array("exact"), Unspeakable(), Exact, "x" * 5000], ids=KIND
)
@pytest.mark.parametrize("name", ["rule", "tree"])
def test_what_is_no_name(name: str, value: Any) -> None:
    assert refused(**{name: value}).startswith(f"{name} must be ")


@pytest.mark.parametrize("value", [3, {"rule": "ar"}, Unspeakable()], ids=KIND)
def test_what_are_no_options(value: Any) -> None:
    with pytest.raises(CascadeError, match="options must be DrawOptions"):
        as_options(value, {})


@pytest.mark.parametrize(
    ("name", "near"),
    [("topk", " (did you mean 'top_k'?)"), ("guidance", " (did you mean 'guidance_scale'?)"), ("Rule", " (did you mean "
     "'rule'?)"), ("colour", "")],
)  # fmt: skip
def test_a_misspelt_option(name: str, near: str) -> None:
    """In the options themselves as in those laid over others."""
    said = f"unknown option {name!r}{near}: choose among guidance_scale, temperature, top_k, "
    assert refused(**{name: 1}).startswith(said)
    with pytest.raises(CascadeError) as caught:
        as_options(DrawOptions(top_k=2), {name: 1})
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize("kind", [int, np.int64, np.uint8, np.float16, np.float64, Fraction])
def test_numbers_of_every_kind(small_vocabulary: Pipeline, kind: Any) -> None:
    three, one, five = kind(3), kind(1), np.int16(5)
    options = DrawOptions(guidance_scale=three, temperature=one, top_k=five, top_p=one, timeout=three)
    assert check_sampling(small_vocabulary.manifest, options) == Sampling(3.0, 1.0, 5, 1.0)


@given(st.sampled_from(["guidance_scale", "temperature", "top_p"]), st.floats())
def test_every_number_that_passes_is_one_in_float32(small_vocabulary: Pipeline, name: str, value: float) -> None:
    """And so is what the engines make of it: the other row's weight, the distribution's division."""
    options = DrawOptions(**{name: value})  # type: ignore[arg-type]
    try:
        sampling = check_sampling(small_vocabulary.manifest, options)
    except CascadeError:
        return
    scale = np.float32(sampling.guidance_scale)
    made = np.array([scale, 1 - scale, 1 / np.float32(sampling.engine_temperature), np.float32(sampling.top_p)])
    assert np.isfinite(made).all()
