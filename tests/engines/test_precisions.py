"""Every graph of the fixture and of the demo model, compiled in each precision for three GPUs."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest_trt import TARGETS, quiet, require_rtx
from support import build, fixture_arguments

from cascade_trt.engines.compile import add_plans
from cascade_trt.engines.inspect import io_problems, read_report
from cascade_trt.engines.tensorrt.target import parse_target
from cascade_trt.export.open import DEMO

pytestmark = pytest.mark.slow


def compiles(bundle: Path, precision: str) -> None:
    """A plan for each graph, its inputs and outputs as the manifest says, caches in place.

    sm89 and sm120 share plans; in half precision no layer copies a cache, whatever the GPU.
    """
    require_rtx()
    older, *newer = (parse_target(name) for name in TARGETS)
    add_plans(bundle, [older], quiet)
    manifest = add_plans(bundle, newer, quiet, one_plan=True).manifest
    wanted = {(engine, target) for engine in manifest.engines for target in TARGETS}
    assert {(plan.engine, plan.target) for plan in manifest.plans} == wanted
    for plan in manifest.plans:
        report = read_report(bundle, plan)
        assert plan.precision == precision and precision in report.precision_mix()
        assert io_problems(report, manifest, plan.engine) == []
        assert report.cache_rewrites() == [] and report.reformats() == []
        if precision != "fp32":
            assert report.cache_reformats() == []
            drafted = {name: tree for name in manifest.engines if (tree := manifest.tree_of(name)) is not None}
            attentions = {"target": manifest.model.n_layer, **{name: tree.depth for name, tree in drafted.items()}}
            if plan.engine in attentions:
                assert len(report.attention()) == attentions[plan.engine] * len(plan.profiles)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_the_fixture(tmp_path: Path, precision: str) -> None:
    build(*fixture_arguments(tmp_path / "b"), "--tree", "small_6", "--precision", precision)
    compiles(tmp_path / "b", precision)


@pytest.mark.skipif(not (DEMO / "target.safetensors").is_file(), reason="the demo model's weights are not here")
def test_the_demo_model(tmp_path: Path) -> None:
    build("emoji", "--precision", "fp16", "--out", tmp_path / "b")
    compiles(tmp_path / "b", "fp16")
