"""The fixture: the images and tokens of the original LlamaGen code, through the whole pipeline."""

from __future__ import annotations

import numpy as np
import pytest
from support import Golden

from cascade_trt.runtime.pipeline import Pipeline
from cascade_trt.runtime.tree import TREE_NAMES

GUESSED = ("jacobi_16", "jacobi_12x8", "mixed_16", "mixed_12x8")
SETTINGS = [
    ("ar", None),
    *((rule, tree) for rule in ("exact", "strict", "strict-topk") for tree in TREE_NAMES),
    *((rule, tree) for rule in ("exact", "strict-topk") for tree in GUESSED),
]


@pytest.mark.parametrize(("rule", "tree"), SETTINGS)
def test_greedy_tokens(tiny: Pipeline, golden: Golden, rule: str, tree: str | None) -> None:
    output = tiny.generate(**golden.given, temperature=0, guidance_scale=3.0, rule=rule, tree=tree)
    np.testing.assert_array_equal(output.codes, golden.values["greedy_tokens"])


def test_image(tiny: Pipeline, golden: Golden) -> None:
    """PNG bytes are those of the golden pixels, but for rounding at the edge of a step."""
    output = tiny.generate(**golden.given, temperature=0, guidance_scale=3.0, rule="ar")
    wanted = np.clip(127.5 * golden.values["image"][0] + 128, 0, 255).astype(np.uint8).transpose(1, 2, 0)
    assert np.abs(np.asarray(output.images[0]).astype(int) - wanted).max() <= 1


def test_padding_side_and_mask_type_do_not_matter(tiny: Pipeline, golden: Golden) -> None:
    """LlamaGen moves valid features to the end, so right-padded features give the same image."""
    features, mask = golden.values["caption_features"], golden.values["caption_mask"].astype(bool)
    moved, moved_mask = np.full_like(features, 7.0), np.zeros(mask.shape, np.uint8)  # padding is ignored
    for row in range(len(mask)):
        count = int(mask[row].sum())
        moved[row, :count], moved_mask[row, :count] = features[row, mask[row]], 1
    output = tiny.generate(features=moved, features_mask=moved_mask, temperature=0, guidance_scale=3.0)
    np.testing.assert_array_equal(output.codes, golden.values["greedy_tokens"])
