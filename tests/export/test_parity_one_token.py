"""An image of one token, whose narrow decoder normalises groups of one value, is built, compared and drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support import build, random_features, save_checkpoints

from cascade_trt.runtime.bundle import CLASS, read_manifest
from cascade_trt.runtime.pipeline import Pipeline


@pytest.mark.parametrize("condition", [CLASS, "text"])
def test_a_grid_of_one(tmp_path: Path, condition: str) -> None:
    arguments = save_checkpoints(tmp_path / "checkpoints", vocab=16, grid=1, condition=condition)
    build(*arguments, "--out", tmp_path / "bundle")
    parity = read_manifest(tmp_path / "bundle").parity
    assert parity["decode"]["outputs"]["image"]["relative"] < 1e-3
    pipe = Pipeline.load(tmp_path / "bundle", threads=1)
    given = {"class_ids": [1, 2]} if condition == CLASS else random_features(pipe, 2)
    plain, drafted = (pipe.generate(**given, rule=rule, seed=3).codes for rule in ("ar", "exact"))
    assert plain.shape == (2, 1)
    np.testing.assert_array_equal(plain, drafted)
