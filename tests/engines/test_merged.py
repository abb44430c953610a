"""A bundle with several trees has one file that is no engine of its own: tools around engines leave it in place."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest_trt import quiet
from support import build, random_features, save_checkpoints

from cascade_trt.cli import cli
from cascade_trt.engines.compile import add_plans
from cascade_trt.engines.doctor import DAMAGED, USABLE, judge_bundle, look_around
from cascade_trt.engines.tensorrt.target import parse_target
from cascade_trt.engines.verify import compare_calls, record
from cascade_trt.runtime.bundle import read_manifest
from cascade_trt.runtime.files import check_files
from cascade_trt.runtime.pipeline import Pipeline

DRAFTS = ["draft.small_9", "draft.dynamic_9x3x4"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merged")
    trees = [part for name in DRAFTS for part in ("--tree", name.removeprefix("draft."))]
    build(*save_checkpoints(folder / "checkpoints"), *trees, "--out", folder / "bundle")
    return folder / "bundle"


@pytest.fixture
def bundle(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "bundle"))


def test_plans_are_compiled_from_the_single_graphs(bundle: Path, fake_worker: list[str]) -> None:
    before = read_manifest(bundle)
    added = add_plans(bundle, [parse_target("rtx:sm89")], quiet)
    assert sorted(name.split()[-1] for name in fake_worker) == sorted(
        ["condition", "decode", "embed", "target", *DRAFTS]
    )
    manifest = read_manifest(bundle)
    assert manifest.merged == before.merged == added.manifest.merged
    assert manifest.merged is not None and manifest.merged.engines == DRAFTS
    check_files(bundle, manifest, thorough=True)
    assert add_plans(bundle, [parse_target("rtx:sm89")], quiet).built == 0
    with Pipeline.load(bundle, threads=1) as pipe:
        assert len(pipe.generate(**random_features(pipe, 1)).images) == 1


def test_doctor_and_info_check_the_merged_file(bundle: Path) -> None:
    """They find the bundle in order, and damage to that file."""
    assert [v.verdict for v in judge_bundle(bundle, look_around()) if v.what == "ort-cpu"] == [USABLE]
    shown = CliRunner().invoke(cli, ["info", str(bundle), "--verify"])
    assert shown.exit_code == 0, shown.output
    content = (bundle / "draft.onnx").read_bytes()
    (bundle / "draft.onnx").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (verdict,) = judge_bundle(bundle, look_around())
    assert verdict.verdict == DAMAGED and "draft.onnx has changed" in verdict.sentence
    shown = CliRunner().invoke(cli, ["info", str(bundle), "--verify"])
    assert shown.exit_code == 2 and "draft.onnx has changed" in shown.output
    (bundle / "draft.onnx").unlink()
    assert "lacks its file draft.onnx" in judge_bundle(bundle, look_around())[0].sentence


def test_recorded_calls_of_every_tree_agree_with_the_single_graphs(bundle: Path) -> None:
    pytest.importorskip("polygraphy", reason="polygraphy is not installed: pip install 'cascade-trt[rtx]'")
    merged = Pipeline.load(bundle, threads=1, warm=False)
    single = Pipeline(bundle, replace(merged.manifest, merged=None), merged.backend)
    calls = record(merged, random_features(merged, 1), 2, seed=0)
    assert {call.engine for call in calls} == {"condition", "target", "embed", "decode", *DRAFTS}
    for item in compare_calls(calls, single, "fp32"):
        assert item.passed and item.value in (0.0, 1.0), item
