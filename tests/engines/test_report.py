"""The layer report: TensorRT's own forms read alike, and what the compiled engines say."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest_trt import TARGETS

from cascade_trt.engines.inspect import aliases, io_problems, read_report, summarise, tensor_rows
from cascade_trt.engines.tensorrt.attention import AttentionForm
from cascade_trt.engines.tensorrt.grouping import SCRATCH
from cascade_trt.engines.tensorrt.report import IOTensor, Layer, LayerReport, Tensor, parse_inspector, parse_log
from cascade_trt.runtime.bundle import Manifest, PlanInfo, read_manifest

LOG = """Layers:
Name: __myl_Scat_myl1_22, LayerType: kgen, Inputs: [ { Name: present_key.0 [profile 1], Dimensions: [2,4,8,32], \
Strides: [1,1,1,1], StrideOrder: [3,2,1,0], Datatype: Half, Format: (Linear) Row major }], Constants: [ { Name: c, \
Dimensions: [1], Datatype: Half, Format: x }], Outputs: [ { Name: present_key.0 [profile 1], Dimensions: [2,4,8,32], \
Strides: [1], Datatype: Half, Format: (Linear) Row major }], TacticName: t, StreamId: 0, \
Metadata: [ONNX Layer: /a/TensorScatter]\x1f[ONNX Layer: /a/Split]
Name: __myl_Resh_myl1_23, LayerType: kgen, Inputs: [ { Name: present_key.0 [profile 1], Dimensions: [2,4,8,32], \
Datatype: Half, Format: x }], Constants: [], Outputs: [ { Name: tmp, Dimensions: [8,8,32], Datatype: Half, \
Format: x }], TacticName: t, StreamId: 0, Metadata:

I/O Tensors:
 Name: past_key.0, IOMode: Input, DataType: Half, Dimensions: [2,4,8,32], Location: Device
 Name: present_key.0, IOMode: Output, DataType: Half, Dimensions: [2,4,8,32], Location: Device"""
DTYPES = {np.dtype(np.float16): "fp16", np.dtype(np.float32): "fp32", np.dtype(np.int64): "int64",
          np.dtype(np.bool_): "bool"}  # fmt: skip


def test_the_build_log_is_read() -> None:
    report = parse_log([LOG])
    update, copy = report.layers
    assert update.profile == 1 and update.onnx == ("/a/TensorScatter", "/a/Split")
    assert [name for _, name in report.cache_updates()] == ["present_key.0"]
    assert report.cache_reformats() == [(copy, "present_key.0")] and report.cache_rewrites() == []
    assert aliases(report) == {"present_key.0": "past_key.0"}
    assert LayerReport.from_json(report.to_json()) == report


def test_both_forms_of_the_inspector_are_read() -> None:
    tensor = {"Name": "present_key.0", "Dimensions": [2, 4, 8, 32]}
    new, old = {"Datatype": "Half"}, {"Format/Datatype": "Row major linear FP16 format"}

    def form(key: str, dtype: dict[str, str]) -> LayerReport:
        layer = {"Name": "k", "LayerType": "kgen", "Inputs": [tensor | dtype], "Outputs": [tensor | dtype]}
        return parse_inspector({"Layers": [layer], key: [tensor | dtype | {"IOMode": "Output"}]})

    newer, older = form("I/O Tensors", new), form("Bindings", old)
    assert newer == older
    assert newer.io[0].dtype == "fp16" and len(newer.cache_updates()) == 1
    bare = parse_inspector({"Layers": ["a", "b [profile 1]"], "Bindings": ["x"]})
    assert [(layer.name, layer.profile) for layer in bare.layers] == [("a", 0), ("b", 1)]


def plans(bundle: Path) -> list[tuple[Manifest, PlanInfo, LayerReport]]:
    manifest = read_manifest(bundle)
    return [(manifest, plan, read_report(bundle, plan)) for plan in manifest.plans]


def test_inputs_and_outputs_read_back_as_the_graph_has_them(compiled_bundle: Path) -> None:
    """Names, order, dtypes and fixed sizes of every engine against its ONNX graph; scratch outputs come last."""
    for manifest, plan, report in plans(compiled_bundle):
        file = compiled_bundle / manifest.engines[plan.engine].file
        graph = onnx.load(file, load_external_data=False).graph
        for mode, values in (("input", graph.input), ("output", graph.output)):
            read = [tensor for tensor in report.io if tensor.mode == mode and not tensor.name.startswith(SCRATCH)]
            assert [tensor.name for tensor in read] == [value.name for value in values]
            for tensor, value in zip(read, values, strict=True):
                kind = value.type.tensor_type
                assert tensor.dtype == DTYPES[onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)], tensor.name
                for size, dim in zip(tensor.shape, kind.shape.dim, strict=True):
                    allowed = {-1} | {profile.get(dim.dim_param, dim.dim_value) for profile in plan.profiles}
                    assert size in allowed, (plan.engine, tensor.name)
        assert io_problems(report, manifest, plan.engine) == []
        scratch = [tensor for tensor in report.io if tensor.name.startswith(SCRATCH)]
        doubled = plan.options["attention"] == AttentionForm.DOUBLED
        assert doubled == (attentions(manifest, plan) > 0 and plan.target != "rtx:sm86")
        assert len(scratch) == (attentions(manifest, plan) if doubled else 0)
        assert report.io[len(report.io) - len(scratch):] == tuple(scratch)
        assert {tensor.shape[1] for tensor in scratch} <= {2 * manifest.model.n_head}


def attentions(manifest: Manifest, plan: PlanInfo) -> int:
    """Layers of the target; the drafter's one layer runs on the pairs and on each level but the last."""
    drafted = manifest.tree_of(plan.engine)
    return {"target": manifest.model.n_layer}.get(plan.engine, 0) if drafted is None else drafted.depth


def test_caches_are_updated_in_place_and_attention_is_fused(compiled_bundle: Path) -> None:
    """In every profile: one fused attention and two in-place updates a layer (a drafter's: each time that it runs),
    nothing rewritten or reformatted."""
    for manifest, plan, report in plans(compiled_bundle):
        layers = attentions(manifest, plan)
        every = dict.fromkeys(range(len(plan.profiles)), layers) if layers else {}
        assert Counter(layer.profile for layer in report.attention()) == every
        assert Counter(layer.profile for layer, _ in report.cache_updates()) == {k: 2 * n for k, n in every.items()}
        assert report.cache_rewrites() == [] and report.reformats() == []
        assert len(aliases(report)) == 2 * layers
        assert plan.network.get("KV_CACHE_UPDATE", 0) == 2 * layers
        assert plan.network.get("ATTENTION_INPUT", 0) == layers


def test_caches_are_read_in_place(compiled_bundle: Path) -> None:
    """No layer copies a cache, on any GPU: attention and the update are the only ones that touch it."""
    for manifest, plan, report in plans(compiled_bundle):
        assert report.cache_reformats() == [], (plan.target, plan.engine)
        touching = [layer for layer in report.layers if (layer.reads | layer.writes) & set(report.caches)]
        known = [*report.attention(), *(layer for layer, _ in report.cache_updates())]
        assert all(layer in known for layer in touching), (plan.target, plan.engine)
        assert bool(touching) == (attentions(manifest, plan) > 0)


@pytest.mark.parametrize(
    ("shape", "is_copy"),
    [((8, 190, 32), True), ((8, 32, 190), True), ((8, 192, 32), True), ((2, 4, 2, 190, 32), True),
     ((2, 4, 190, 16), False), ((4, 2, 190, 32), True), ((2, 2, 190, 32), True), ((1520, 32), True),
     ((2, 1, 120, 190), False), ((2, 8, 120, 32), False), ((8, 6, 32), False)],
)  # fmt: skip
def test_what_counts_as_a_copy(shape: tuple[int, ...], is_copy: bool) -> None:
    """Flattened, transposed, padded, repeated or half caches do; masks, queries and answers do not."""
    cache = Tensor("present_key.0", "fp16", (2, 4, 190, 32))
    io = (IOTensor("present_key.0", "output", "fp16", cache.shape),)
    layer = Layer("k", "kgen", 0, (cache,), (Tensor("t", "fp16", shape),), ())
    assert bool(LayerReport((layer,), io).cache_reformats()) is is_copy
    product = Layer("k", "gemm", 0, (cache,), (Tensor("t", "fp16", shape),), ())
    assert LayerReport((product,), io).cache_reformats() == []


def spanned(name: str) -> int:
    """How many tensors a row stands for: three for "past_key.1..3"."""
    first, dots, last = name.partition("..")
    return int(last) - int(first.rpartition(".")[2]) + 1 if dots else 1


def test_rows_hold_successive_numbers() -> None:
    """Scratch outputs of a drafter have the sizes of its levels, which need not follow each other."""
    sizes = {"scratch.0": 5, "scratch.1": 1, "scratch.2": 2, "scratch.3": 1, "scratch.4": 1, "x": 1}
    io = tuple(IOTensor(name, "output", "fp16", (2, 8, size, 32)) for name, size in sizes.items())
    names = [row.name for row in tensor_rows(LayerReport((), io))]
    assert names == ["scratch.0", "scratch.1", "scratch.2", "scratch.3..4", "x"]


def test_tensors_are_listed_with_their_aliases(compiled_bundle: Path) -> None:
    for manifest, plan, report in plans(compiled_bundle):
        rows = {row.name: row for row in tensor_rows(report)}
        assert sum(spanned(name) for name in rows) == len(report.io)
        if plan.engine == "draft.small_9":
            assert rows["present_key.0..3"].alias == "past_key.0..3"
        if plan.engine == "target":
            last = manifest.model.n_layer - 1
            present = rows[f"present_key.0..{last}"]
            assert present.alias == f"past_key.0..{last}" and present.mode == "output" and present.dtype == "fp16"
            assert rows[f"past_key.0..{last}"].shape == present.shape and rows["logits"].alias == ""
    command = [sys.executable, "-m", "cascade_trt", "info", str(compiled_bundle), "--tensors"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "target: rtx:sm89 rtx:sm120" in shown and "present_value.0..1" in shown and "scratch.0..1" in shown


def test_info_shows_the_engines(compiled_bundle: Path) -> None:
    command = [sys.executable, "-m", "cascade_trt", "info", str(compiled_bundle)]
    shown = " ".join(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert all(f"{target}: tensorrt-rtx" in shown for target in TARGETS)
    assert "KV" in shown and "draft.small_9" in shown
    assert shown.count("target: 33 nodes in every call") == 1  # sm86's
    assert shown.count("draft.small_9: 5 pairs in every call") == 1
    as_json = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout
    assert {plan["engine"] for plan in json.loads(as_json)["plans"]} == set(read_manifest(compiled_bundle).engines)
    target = next(plan for plan in read_manifest(compiled_bundle).plans if plan.engine == "target")
    summary = summarise(compiled_bundle, target)
    assert summary.precisions.get("fp16", 0) > summary.precisions.get("fp32", 0)


@pytest.mark.parametrize("text", ["", "{", '{"layers": 1}'])
def test_a_damaged_report_is_a_sentence(own_bundle: Path, text: str) -> None:
    from cascade_trt.runtime.errors import CascadeError

    plan = read_manifest(own_bundle).plans[0]
    (own_bundle / plan.report).write_text(text)
    with pytest.raises(CascadeError, match="cascade-trt compile"):
        summarise(own_bundle, plan)
