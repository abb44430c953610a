"""Whole images on plans, behind the backend for TensorRT (fake_trt.py computes)."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import fake_trt
import numpy as np
import pytest
from host_cuda import HostDriver
from support import build, random_features, save_checkpoints

from cascade_trt.engines import verify
from cascade_trt.engines.doctor import DAMAGED, UNKNOWN, USABLE, Verdict
from cascade_trt.engines.tensorrt.profiles import engine_profiles
from cascade_trt.engines.verify import compare_calls, load_plans, record, time_calls
from cascade_trt.runtime.backends.device import CudaDevice
from cascade_trt.runtime.pipeline import Pipeline


@pytest.fixture
def pipe(plain_bundle: Path) -> Pipeline:
    return Pipeline.load(plain_bundle, "ort-cpu", threads=1, warm=False)


def same_images(one: Pipeline, two: Pipeline, images: int, rule: str, tree: str | None, **more: object) -> None:
    given = random_features(one, images)
    first, second = (pipe.generate(**given, rule=rule, tree=tree, seed=3, **more) for pipe in (one, two))
    np.testing.assert_array_equal(first.codes, second.codes)
    for pair in zip(first.images, second.images, strict=True):
        assert np.array_equal(*map(np.asarray, pair))


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize(
    ("rule", "tree"),
    [("ar", None), ("exact", "small_9"), ("exact", "jacobi_16"), ("exact", "jacobi_5x3"), ("strict", "small_9")],
)
def test_an_image_is_the_same(
    pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str, tree: str | None, graphs: bool
) -> None:
    """Also with trees that the bundle was not built with: calls are filled up."""
    same_images(pipe, fake_trt.draws_on(monkeypatch, fake_trt.compiled(pipe.folder, tmp_path), graphs), 2, rule, tree)
