"""The synthetic model's fp16 graphs compile with TensorRT-RTX: grouped keys are read and updated in place."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from conftest_trt import TARGETS, quiet, require_rtx

from cascade_trt.engines.compile import add_plans
from cascade_trt.engines.inspect import aliases, io_problems, read_report
from cascade_trt.engines.tensorrt.attention import AttentionForm
from cascade_trt.engines.tensorrt.grouping import SCRATCH
from cascade_trt.engines.tensorrt.target import parse_target
from cascade_trt.runtime.bundle import read_manifest
from synthetic.family import build_synthetic

pytestmark = pytest.mark.slow
TREES = ("mixed_8", "small_9", "dynamic_9x4x3")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_rtx()
    out, manifest = build_synthetic(tmp_path_factory.mktemp("synthetic"), TREES, precision="fp16")
    added = add_plans(out, [parse_target(name) for name in TARGETS], quiet)
    assert added.built == len(TARGETS) * len(manifest.engines)
    return out


def test_every_engine_reads_back_as_its_graph(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    for plan in manifest.plans:
        assert io_problems(read_report(bundle, plan), manifest, plan.engine) == [], (plan.target, plan.engine)


def test_caches_of_grouped_keys_are_read_and_updated_in_place(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    model, judged = manifest.model, 0
    drafted = {name: tree for name in manifest.engines if (tree := manifest.tree_of(name)) is not None}
    runs = {"target": model.n_layer, **{name: tree.depth for name, tree in drafted.items()}}
    for plan in manifest.plans:
        layers, report = runs.get(plan.engine, 0), read_report(bundle, plan)
        every = dict.fromkeys(range(len(plan.profiles)), layers) if layers else {}
        where = plan.target, plan.engine
        assert Counter(layer.profile for layer in report.attention()) == every, where
        assert Counter(layer.profile for layer, _ in report.cache_updates()) == {k: 2 * n for k, n in every.items()}
        assert report.cache_rewrites() == report.cache_reformats() == report.reformats() == [], where
        assert len(aliases(report)) == 2 * layers
        caches = [tensor for tensor in report.io if tensor.name in report.caches]
        assert {tensor.shape[1] for tensor in caches} <= {model.n_kv_head}
        shown = [tensor for tensor in report.io if tensor.name.startswith(SCRATCH)]
        assert len(shown) == (layers if plan.options["attention"] == AttentionForm.DOUBLED else 0)
        assert {tensor.shape[1] for tensor in shown} <= {model.n_head}  # grouped anyway: nothing is computed twice
        judged += layers > 0
    assert judged == len(TARGETS) * (1 + len(TREES))
