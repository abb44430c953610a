"""What is read of a bundle before anything is loaded: graphs by their outlines, arrays by their headers, sizes."""

from __future__ import annotations

import io
import json
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from cascade_trt.runtime.arrays import outline
from cascade_trt.runtime.backends.host import HostCache
from cascade_trt.runtime.bundle import MANIFEST, KernelInfo, Manifest, PlanInfo, read_manifest
from cascade_trt.runtime.errors import CascadeError
from cascade_trt.runtime.files import check_files
from cascade_trt.runtime.graph_check import check_graphs
from cascade_trt.runtime.onnx_file import OnnxFile, TensorInfo, read_onnx
from cascade_trt.runtime.pipeline import Pipeline
from cascade_trt.runtime.schema import Within, build

_DTYPES = {1: "float32", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 16: "bfloat16"}


def declared(values: Any) -> dict[str, TensorInfo]:
    """As the onnx package reads them."""
    found = {}
    for value in values:
        tensor = value.type.tensor_type
        sizes = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)
        found[value.name] = TensorInfo(_DTYPES.get(tensor.elem_type, ""), sizes)
    return found


def test_outlines_are_what_onnx_reads(tiny: Pipeline, text_bundle: Path) -> None:
    files = [path for folder in (tiny.folder, text_bundle) for path in folder.glob("*.onnx")]
    assert len(files) > 10
    for path in files:
        model = onnx.load(path, load_external_data=False)
        found = read_onnx(path)
        assert found.inputs == declared(model.graph.input) and found.outputs == declared(model.graph.output)
        entries = [entry for tensor in model.graph.initializer for entry in tensor.external_data]
        assert found.locations == {entry.value for entry in entries if entry.key == "location"}


def external(location: str) -> TensorProto:
    tensor = TensorProto(name=location, data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="offset", value="0")
    tensor.external_data.add(key="location", value=location)
    return tensor


def test_weights_are_found_wherever_a_graph_hides_them(tmp_path: Path) -> None:
    """In branches, attributes and functions, too."""
    inner = helper.make_graph([helper.make_node("Constant", [], ["c"], value=external("a"))], "g", [], [])
    branch = helper.make_graph([], "b", [], [], initializer=[external("b")])
    nodes = [helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=branch)]
    graph = helper.make_graph(nodes, "g", [], [], initializer=[external("c")])
    constant = helper.make_node("Constant", [], ["z"], value=external("d"))
    function = helper.make_function("own", "f", [], ["z"], [constant], [helper.make_opsetid("", 24)])
    onnx.save(helper.make_model(graph, functions=[function]), tmp_path / "graph.onnx")
    assert read_onnx(tmp_path / "graph.onnx").locations == {"a", "b", "c", "d"}


@settings(deadline=None, max_examples=100)
@given(place=st.floats(0, 1), byte=st.integers(0, 255), cut=st.floats(0, 1))
def test_damaged_graphs_are_read_or_refused(text_bundle: Path, place: float, byte: int, cut: float) -> None:
    path = text_bundle.parent / "damaged.onnx"
    content = bytearray((text_bundle / "draft.pair_4.onnx").read_bytes())
    content[int(place * (len(content) - 1))] = byte
    for data in (content, content[: int(cut * len(content))]):
        path.write_bytes(data)
        with suppress(CascadeError):
            assert isinstance(read_onnx(path), OnnxFile)


def test_every_engine_is_compared(tiny: Pipeline) -> None:
    """Each of a manifest's sizes is one that some graph declares."""
    check_graphs(tiny.folder, tiny.manifest)
    content = json.loads(tiny.manifest.to_json())
    sizes = [("model", name) for name in ("dim", "features", "n_layer", "n_kv_head", "head_dim", "pixels")]
    sizes += [("drafter", name) for name in ("n_kv_head", "head_dim", "slots")]
    sizes += [("target", name) for name in ("slots", "window")]
    for part, name in sizes:
        larger = json.loads(json.dumps(content))
        larger[part][name] *= 2
        larger[part] |= {"n_head": 64} if "n_head" in larger[part] else {}  # which all numbers of heads divide
        with pytest.raises(CascadeError, match="is not the graph that the manifest of bundle"):
            check_graphs(tiny.folder, build(Manifest, larger, "manifest"))


def test_what_a_build_writes_is_in_order(tiny: Pipeline, small_vocabulary: Pipeline, text_bundle: Path) -> None:
    for folder in (tiny.folder, small_vocabulary.folder, text_bundle):
        check_files(folder, read_manifest(folder), thorough=True)


SM90 = KernelInfo("kernels/a.sm90.cubin", "sm90", "nvrtc 13.5", "0", 1, "1")


PLAN = PlanInfo(
    "embed", "rtx:sm89", "tensorrt-rtx/sm89/embed.plan", "tensorrt-rtx/sm89/embed.layers.json", "key", "tensorrt-rtx",
    "1.7.1.116", "8.9", "linux-x86_64", "fp32", {}, [{"P": 1, "N": 1}], {}, 1, "0", 1.0, 1,
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        *[({"target": name}, "which is no target")
          for name in ("rtx:sm1", "rtx", "rtx:", "rtx:89", "sm89", "cuda", "rtx:sm89+sm120", "tensorrt:sm89", "")],
        *[({"compute_capability": name}, "which no GPU of it has") for name in ("x", "", "89", "8.6", "8.9.0", "8,9")],
        *[({"backend": name}, "is another's") for name in ("tensorrt", "ort-cpu", "")],
        ({"target": "tensorrt"}, "is another's"),
        *[({"backend_version": name}, "which is none") for name in ("", "x", "1", "1.7 1", "../1.7")],
        *[({"platform": name}, "no platform") for name in ("", "linux", "linux-", "../x-y", "linux-x86-64")],
        *[({"precision": name}, "its engine another") for name in ("fp16", "")],
        ({"engine": "draft.other"}, "which the bundle has not"),
        *[({"file": name}, "files of their own") for name in ("target.onnx", "embed.layers.json", "x")],
        *[({"report": name}, "files of their own") for name in ("target.data", "b.json", PLAN.file)],
        ({"file": "../a.plan"}, "may lie outside of it"), ({"report": "/a.layers.json"}, "may lie outside of it"),
        *[({"profiles": [sizes]}, "sizes that no call has")
          for sizes in ({}, {"N": 1}, {"P": 0}, {"P": 1, "N": 0}, {"P": 1, "N": 1 << 19}, {"P": 1 << 17})],
        ({"profiles": []}, "must have 1 to 256 entries"), ({"options": {"fixed_nodes": 0}}, "has fixed_nodes of 0"),
    ],
)  # fmt: skip
def test_entries_of_plans(tiny: Pipeline, changes: dict[str, Any], said: str) -> None:
    content = json.loads(tiny.manifest.to_json())
    assert build(Manifest, content | {"plans": [asdict(PLAN)]}, "manifest").plans == [PLAN]
    with pytest.raises(CascadeError, match=said) as refused:
        build(Manifest, content | {"plans": [asdict(PLAN) | changes]}, "manifest")
    assert str(refused.value).endswith(": build the bundle again.")


def test_plans_that_are_named_twice(tiny: Pipeline) -> None:
    """One file may serve several GPUs, and is one engine then."""
    newer = replace(PLAN, target="rtx:sm120", compute_capability="12.0")
    local = replace(PLAN, target="tensorrt", backend="tensorrt", compute_capability="9.0", file="a.plan",
                    report="a.layers.json", backend_version="11.4.0.106")  # fmt: skip
    assert replace(tiny.manifest, plans=[PLAN, newer, local]).plans == [PLAN, newer, local]
    for other, said in (
        (PLAN, "has the engine embed for rtx:sm89 twice"), (replace(newer, engine="decode"), "named twice"),
        (replace(newer, sha256="1"), "named twice"), (replace(newer, report="b.layers.json"), "named twice"),
        (replace(newer, file="b.plan"), "named twice"), (replace(local, file=PLAN.file), "named twice"),
    ):  # fmt: skip
        with pytest.raises(CascadeError, match=said):
            replace(tiny.manifest, plans=[PLAN, other])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        *[({"architecture": name}, "which is no architecture")
          for name in ("90", "sm_90", "sm9", "sm090", "sm9a", "SM90", "sm90 ", "sm9000", "sm٩٠")],
        *[({"file": name}, "may lie outside of it") for name in ("../a.cubin", "/a.cubin", "kernels/../a.cubin", ".")],
        *[({"file": name}, "no .cubin file of their own") for name in ("target.onnx", "notes.txt", PLAN.file)],
        *[({"bytes": count}, "bytes must lie between 1 and") for count in (0, -1, 1 << 40)],
        ({"bytes": 1.5}, "bytes must be int"), ({"file": None}, "file must be str"), ({"more": 1}, "unknown entries"),
    ],
)  # fmt: skip
def test_entries_of_kernels(tiny: Pipeline, changes: dict[str, Any], said: str) -> None:
    content = json.loads(tiny.manifest.to_json()) | {"plans": [asdict(PLAN)]}
    assert build(Manifest, content | {"kernels": [asdict(SM90)]}, "manifest").kernels == [SM90]
    with pytest.raises(CascadeError, match=said):
        build(Manifest, content | {"kernels": [asdict(SM90) | changes]}, "manifest")


def test_kernels_that_are_named_twice(tiny: Pipeline) -> None:
    sm80 = replace(SM90, architecture="sm80", file="kernels/a.sm80.cubin")
    assert replace(tiny.manifest, kernels=[sm80, SM90]).kernels == [sm80, SM90]
    with pytest.raises(CascadeError, match="has kernels for sm90 twice"):
        replace(tiny.manifest, kernels=[SM90, replace(sm80, architecture="sm90")])
    with pytest.raises(CascadeError, match="no .cubin file of their own"):
        replace(tiny.manifest, kernels=[SM90, replace(sm80, file=SM90.file)])


def test_a_bundle_from_before_there_were_kernels(tiny: Pipeline) -> None:
    content = json.loads(tiny.manifest.to_json())
    assert content.pop("kernels") == []
    assert build(Manifest, content, "manifest") == tiny.manifest


@settings(deadline=None)
@given(content=st.binary(max_size=200), size=st.integers(0, 1 << 40))
def test_no_header_is_believed(content: bytes, size: int) -> None:
    for data in (content, b"\x93NUMPY\x01\x00" + len(content).to_bytes(2, "little") + content):
        with pytest.raises(ValueError):
            outline(io.BytesIO(data), size)


@pytest.mark.parametrize("array", [np.zeros((3, 4), np.uint16), np.zeros((0, 4)), np.float32(1), np.ones(5, bool)])
def test_arrays_by_their_headers(array: np.ndarray) -> None:
    file = io.BytesIO()
    np.save(file, array)
    size = file.seek(0, io.SEEK_END)
    for told in (size, size - 1, size + 1):
        file.seek(0)
        if told == size:
            assert outline(file, told) == (np.shape(array), array.dtype)
        else:
            with pytest.raises(ValueError, match="not of the size"):
                outline(file, told)


def test_a_cache_beyond_all_memory() -> None:
    with pytest.raises(CascadeError, match="the cache of 2048 rows needs .* GiB"):
        HostCache(1024, 2048, 64, 1 << 18, 256, "float32")


def test_ranges() -> None:
    few = Annotated[list[Annotated[int, Within(0, 3)]], Within(1, 2)]
    assert build(few, [0, 3], "x") == [0, 3]
    for value, said in (([], "x must have 1 to 2 entries, not 0"), ([1, 2, 3], "not 3"), ([4], "between 0 and 3"),
                        ([True], "must be int"), (5, "x must be a list, not 5"), ([1.0], "must be int")):  # fmt: skip
        with pytest.raises(CascadeError, match=said):
            build(few, value, "x")
    assert build(float, 3, "x") == 3.0 and type(build(float, 3, "x")) is float
    with pytest.raises(CascadeError, match="x must be float"):
        build(float, 1 << 70, "x")


def test_a_manifest_comes_back(tiny: Pipeline, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(tiny.manifest.to_json())
    assert read_manifest(tmp_path) == tiny.manifest
