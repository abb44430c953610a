"""Every refusal happens before an engine runs, and is one sentence."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from cascade_trt.runtime.errors import CascadeError
from cascade_trt.runtime.pipeline import Pipeline
from cascade_trt.runtime.request import Request, check_conditioning, check_seeds

FEATURES = np.zeros((2, 120, 32), np.float32)


def with_value(value: float) -> np.ndarray:
    features = FEATURES.copy()
    features[1, 3, 4] = value
    return features


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "exactly one"),
        ({"features": FEATURES, "prompts": ["red"]}, "exactly one"),
        ({"class_ids": [1]}, "draws from text"),
        ({"prompts": ["red"]}, "has no text encoder: give features, or build it with `--text FOLDER`"),
        ({"prompts": []}, "non-empty"),
        ({"prompts": [3]}, "non-empty list of texts"),
        ({"prompts": ["red", " "]}, "prompt 2 is empty"),
        ({"prompts": ["red \udcff"]}, "prompt 1 is not valid Unicode"),  # bytes that are not UTF-8 on a command line
        ({"features": FEATURES[:, :5]}, r"\[P, 120, 32\], not \[2, 5, 32\]"),
        ({"features": FEATURES[:, :, :5]}, r"\[P, 120, 32\]"),
        ({"features": FEATURES[0]}, r"\[P, 120, 32\]"),
        ({"features": FEATURES[:0]}, r"\[P, 120, 32\]"),
        ({"features": FEATURES, "features_mask": np.ones((2, 5))}, r"\[2, 120\], not \[2, 5\]"),
        ({"features": FEATURES, "features_mask": np.zeros((2, 120))}, "every slot"),
        ({"features": with_value(np.nan)}, "NaN"),
        ({"features": with_value(np.inf)}, "NaN or infinite"),
        ({"features": with_value(1).astype(np.float64) * 1e300}, "float32 cannot hold"),
        ({"features": with_value(np.nan).astype(ml_dtypes.bfloat16)}, "NaN"),
        ({"features": FEATURES, "seed": -1}, "seed must"),
        ({"features": FEATURES, "seed": 2**63 - 1}, "seed must"),  # the second image's would be 2**63
        ({"features": FEATURES, "seed": [1]}, "1 seeds for 2"),
        ({"features": FEATURES, "seed": [1, -2]}, "seed must"),
        ({"features": FEATURES, "guidance_scale": -1}, "guidance_scale"),
        ({"features": FEATURES, "guidance_scale": np.inf}, "guidance_scale"),
        ({"features": FEATURES, "temperature": np.nan}, "temperature"),
        ({"features": FEATURES, "temperature": -0.1}, "temperature"),
        ({"features": FEATURES, "top_p": 0}, "top_p"),
        ({"features": FEATURES, "top_p": 1.01}, "top_p"),
        ({"features": FEATURES, "top_p": np.nan}, "top_p"),
        ({"features": FEATURES, "top_k": -1}, "top_k"),
        ({"features": FEATURES, "top_k": 1001}, "--max-top-k 1001"),
        ({"features": FEATURES, "rule": "magic"}, "unknown rule 'magic'"),
        ({"features": FEATURES, "tree": "oak"}, "unknown tree 'oak'"),
        ({"features": FEATURES, "tree": "oak", "rule": "ar"}, "unknown tree 'oak'"),
        ({"features": FEATURES, "tree": "chain_6"}, "not 'chain_6'.*: build it again with --tree chain_6"),
        ({"features": FEATURES, "tree": "jacobi_200"}, "takes 60 in a call: build it again with --max-nodes 201"),
        ({"features": FEATURES, "tree": "mixed_200"}, "build it again with --max-nodes 201"),
    ],
)
def test_refusals(tiny: Pipeline, given: dict[str, Any], message: str) -> None:
    def never(_done: int, _total: int) -> None:
        raise AssertionError("an engine ran")

    with pytest.raises(CascadeError, match=message) as caught:
        tiny.generate(**given, callback=never)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    "seed",
    [1.5, "seven", "3", "31", b"ab", bytearray(b"ab"), None, True, np.True_, {1, 2}, np.array(1), np.array([[1, 2]]),
     np.array([1.0, 2.0]), [1.5, 2], ["a", "b"], [True, 1], [[1], [2, 3]], [[1, 2]], torch.tensor(1)],
)  # fmt: skip
def test_a_seed_that_is_no_number(seed: Any) -> None:
    with pytest.raises(CascadeError, match="seed"):
        check_seeds(seed, 2)


def test_seeds() -> None:
    assert check_seeds(np.int64(5), 3) == [5, 6, 7]
    assert check_seeds([2**63 - 1, 0], 2) == [2**63 - 1, 0]
    assert check_seeds(np.array([3, 3]), 2) == [3, 3]
    assert check_seeds(np.uint8(255), 2) == [255, 256]
    assert check_seeds(range(2), 2) == check_seeds((0, 1), 2) == [0, 1]


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64, 10**50, np.uint64(2**63), [0, 2**64], [0, -1]])
def test_a_seed_out_of_range(seed: Any) -> None:
    with pytest.raises(CascadeError, match=r"a seed must lie between 0 and 2\*\*63 - 1"):
        check_seeds(seed, 2)


@pytest.mark.parametrize(
    "dtype",
    [np.float16, np.float64, np.longdouble, ">f4", np.int8, np.uint64, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn],
)
def test_features_of_every_type_are_read_by_their_values(tiny: Pipeline, dtype: Any) -> None:
    features = np.random.default_rng(0).integers(0, 9, FEATURES.shape).astype(dtype)
    checked = check_conditioning(tiny.manifest, None, features, None, None)
    assert checked.features is not None and checked.features.dtype == np.float32
    np.testing.assert_array_equal(checked.features, features.astype(np.float32))


@pytest.mark.parametrize("values", [(0, -np.inf), (0, -1e9), (2, 1), (np.nan, 1), (0, 255), (0, 0.5), (-1, 0)])
def test_a_mask_of_what_is_not_0_or_1(tiny: Pipeline, values: tuple[float, float]) -> None:
    """Other libraries add a mask to scores: 0 where a slot counts."""
    mask = np.where(np.arange(120) < 7, *values)[None].repeat(2, axis=0)
    with pytest.raises(CascadeError, match="features_mask must hold truth values, or 1 for slots that hold features"):
        check_conditioning(tiny.manifest, None, FEATURES, mask, None)


@pytest.mark.parametrize(
    "tensor", [torch.zeros(6, 16).bfloat16(), torch.zeros(6, 16, requires_grad=True), torch.zeros(6, 16).to_sparse(),
               [[1], [2, 3]], [[], 3], np.zeros((6, 16), "V2"), np.zeros((6, 16), "M8[s]"), np.zeros((6, 16), object)],
)  # fmt: skip
def test_features_that_numpy_cannot_read(small_vocabulary: Pipeline, tensor: Any) -> None:
    batch = small_vocabulary.batch(1)
    with pytest.raises(CascadeError, match="features must be an array of numbers"):
        batch.submit(Request(features=tensor))
    with pytest.raises(CascadeError, match="features_mask must be an array of numbers"):
        batch.submit(Request(features=np.zeros((6, 16)), features_mask=tensor))


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32, ml_dtypes.bfloat16])
def test_features_move_to_the_end_and_padding_is_zeroed(tiny: Pipeline, dtype: type) -> None:
    features = np.arange(2 * 120 * 32, dtype=np.float32).reshape(2, 120, 32)
    mask = np.zeros((2, 120), dtype)
    mask[0, [0, 7, 119]], mask[1, :2] = 1, 1
    checked = check_conditioning(tiny.manifest, None, features, mask, None)
    assert checked.features is not None and checked.mask is not None
    np.testing.assert_array_equal(checked.features[0, -3:], features[0, [0, 7, 119]])
    np.testing.assert_array_equal(checked.features[1, -2:], features[1, :2])
    assert not checked.features[~checked.mask].any()
    assert checked.mask.sum(1).tolist() == [3, 2]


def test_nan_in_padding_is_harmless(tiny: Pipeline) -> None:
    features, mask = with_value(np.nan), np.ones((2, 120), bool)
    mask[1, 3] = False
    checked = check_conditioning(tiny.manifest, None, features, mask, None)
    assert checked.features is not None
    assert np.isfinite(checked.features).all()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"features": "red"}, "features must be an array of numbers"),
        ({"features": [[1, 2], [3]]}, "features must be an array of numbers"),
        ({"features": np.ones((1, 6, 16)), "features_mask": "all"}, "features_mask must be an array of numbers"),
        ({"features": np.ones((1, 6, 16), complex)}, "features must be an array of numbers"),
        ({"features": np.ones((6, 16))}, r"features must have the shape \[P, 6, 16\]"),
        ({"prompts": 5}, "prompts must be a text or a list of texts"),
        ({"prompts": ["red", 5]}, "prompts must be a non-empty list of texts"),
        ({"features": np.ones((1, 6, 16)), "seed": 1.5}, "a seed must be a whole number"),
        ({"features": np.ones((1, 6, 16)), "seed": b"a"}, "a seed must be a whole number"),
        ({"features": np.ones((1, 6, 16)), "seed": np.array(3)}, "a seed must be a whole number"),
        ({"features": np.ones((1, 6, 16)), "guidance_scale": 10**400}, "guidance_scale must be a number of ordinary"),
        ({"features": np.ones((1, 6, 16)), "guidance_scale": 3e38}, "guidance_scale must be a number from 0 to 1000"),
        ({"features": np.ones((1, 6, 16)), "temperature": 1e39}, "temperature must be 0 .greedy. or a number from"),
        ({"features": np.ones((1, 6, 16)), "timeout": 10**400}, "timeout must be a number of ordinary"),
        ({"features": np.ones((1, 6, 16)), "options": {"rule": "ar"}}, "options must be DrawOptions"),
        ({"features": np.ones((1, 6, 16)), "callback": 3}, "callback must be a function"),
    ],
)
def test_odd_requests_are_sentences(small_vocabulary: Pipeline, given: dict, sentence: str) -> None:
    with pytest.raises(CascadeError, match=sentence):
        small_vocabulary.generate(**given)
