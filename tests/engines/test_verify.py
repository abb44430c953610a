"""Recorded calls: equal bundles agree exactly, half precision within its tolerance, and damage is named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import build, random_features, save_checkpoints

from cascade_trt.engines.verify import Call, compare_calls, compare_drawings, record
from cascade_trt.runtime.pipeline import Pipeline

pytest.importorskip("polygraphy", reason="polygraphy is not installed: pip install 'cascade-trt[rtx]'")


@pytest.fixture(scope="module")
def exact_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fp32 twin of `plain_bundle`: the same weights, since the seed is."""
    folder = tmp_path_factory.mktemp("fp32")
    build(*save_checkpoints(folder / "checkpoints"), "--tree", "small_9", "--out", folder / "bundle")
    return folder / "bundle"


@pytest.fixture(scope="module")
def pipes(plain_bundle: Path, exact_bundle: Path) -> tuple[Pipeline, Pipeline]:
    return tuple(Pipeline.load(folder, threads=1, warm=False) for folder in (exact_bundle, plain_bundle))  # type: ignore[return-value]


@pytest.fixture(scope="module")
def calls(pipes: tuple[Pipeline, Pipeline]) -> list[Call]:
    return record(pipes[0], random_features(pipes[0], 1), 2, seed=0)


def test_every_engine_of_a_drawing_is_recorded(calls: list[Call]) -> None:
    assert {call.engine for call in calls} == {"condition", "target", "embed", "draft.small_9", "decode"}
    nodes = [call.inputs["embeds"].shape[1] for call in calls if call.engine == "target"]
    assert nodes == [6, 9, 9, 6, 1, 1]  # prefix, tree, then plain decoding
    assert all(array.size for call in calls for array in call.outputs.values())


def test_a_bundle_agrees_with_itself_exactly(pipes: tuple[Pipeline, Pipeline], calls: list[Call]) -> None:
    for item in compare_calls(calls, pipes[0], "fp32"):
        assert item.passed and item.value in (0.0, 1.0), item


def test_half_precision_is_within_its_tolerance(pipes: tuple[Pipeline, Pipeline], calls: list[Call]) -> None:
    found = compare_calls(calls, pipes[1], "fp16")
    assert all(item.passed for item in found), [item for item in found if not item.passed]
    assert any(0 < item.value < 1 for item in found if item.tensor == "logits")
    whole = compare_drawings(*pipes, random_features(pipes[0], 1), seed=0)
    assert 0 <= whole.agreement <= 1 and np.isfinite(whole.pixels)


def test_the_first_tensor_that_differs_is_named(pipes: tuple[Pipeline, Pipeline], calls: list[Call]) -> None:
    wrong = [Call(c.engine, c.inputs, {k: v.copy() for k, v in c.outputs.items()}) for c in calls]
    place = next(index for index, call in enumerate(wrong) if call.engine == "target")
    wrong[place].outputs["hidden"] += 1
    failed = [item for item in compare_calls(wrong, pipes[0], "fp32") if not item.passed]
    assert (failed[0].call, failed[0].engine, failed[0].tensor) == (place, "target", "hidden")


def test_the_command(plain_bundle: Path, exact_bundle: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cascade_trt", "verify"]
    shown = subprocess.run(
        [*command, str(plain_bundle), "--against", str(exact_bundle), "--json"],
        capture_output=True, text=True, check=False,
    )
    assert shown.returncode == 0, shown.stderr
    assert set(json.loads(shown.stdout)) == {"calls", "outputs", "drawing", "milliseconds"}
    build(*save_checkpoints(tmp_path / "c", grid=6), "--tree", "small_9", "--out", tmp_path / "other")
    shown = subprocess.run(
        [*command, str(plain_bundle), "--against", str(tmp_path / "other")], capture_output=True, text=True, check=False
    )
    assert shown.returncode == 2 and "the bundles differ" in shown.stderr
