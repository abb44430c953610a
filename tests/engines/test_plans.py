"""Whole images on plans, behind the backend for TensorRT (fake_trt.py computes)."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_trt
import numpy as np
import onnx
import pytest
from host_cuda import host_device
from onnx import TensorProto, helper
from playing import Alone, request_of
from support import build, random_features, save_checkpoints

from cascade_trt.engines import verify
from cascade_trt.engines.doctor import DAMAGED, UNKNOWN, USABLE, Verdict
from cascade_trt.engines.verify import Call, compare_calls, load_plans, record, time_calls
from cascade_trt.runtime.auto import Choice
from cascade_trt.runtime.backends import tensorrt
from cascade_trt.runtime.bundle import MANIFEST, read_manifest
from cascade_trt.runtime.errors import CascadeError
from cascade_trt.runtime.options import DrawOptions
from cascade_trt.runtime.pipeline import Pipeline
from cascade_trt.runtime.plans import Plans
from cascade_trt.runtime.request import Drawing
from cascade_trt.runtime.rules import Rule
from cascade_trt.runtime.slots import Memory
from cascade_trt.runtime.tree import AUTO, NO_TREE


@pytest.fixture
def pipe(plain_bundle: Path) -> Pipeline:
    return Pipeline.load(plain_bundle, "ort-cpu", threads=1, warm=False)


def same_images(one: Pipeline, two: Pipeline, images: int, rule: str, tree: str | None) -> None:
    given = random_features(one, images)
    first, second = (pipe.generate(**given, rule=rule, tree=tree, seed=3) for pipe in (one, two))
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


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A bundle for three images at a time."""
    folder = tmp_path_factory.mktemp("three")
    trees = ("--tree", "small_9", "--tree", "mixed_8")
    build(*save_checkpoints(folder / "c"), "--precision", "fp16", *trees, "--batch", "3", "--out", folder / "b")
    return Pipeline.load(folder / "b", "ort-cpu", threads=1, warm=False)


@pytest.mark.parametrize("counts", [(1, 2, 3), (3,), (1, 3)])
@pytest.mark.parametrize("tree", ["small_9", "mixed_8", None])
def test_calls_on_the_numbers_of_slots_that_were_compiled(
    three: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts: tuple[int, ...], tree: str | None
) -> None:
    """More images than slots, so that some are drawn alone; a bundle may be compiled for its batch only."""
    plans = fake_trt.compiled(three.folder, tmp_path, fake_trt.for_slots(three.folder, counts))
    same_images(three, fake_trt.draws_on(monkeypatch, plans), 4, "exact" if tree else "ar", tree)


def test_trees_change_between_rounds(three: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each drafter reads what target calls of other trees have left: there are profiles for it."""
    other = fake_trt.draws_on(monkeypatch, fake_trt.compiled(three.folder, tmp_path))
    alone = Alone(three, None, [DrawOptions()])
    batch = other.batch_for(Turns(["small_9", "mixed_8", NO_TREE, "mixed_8", "small_9", "jacobi_8"]), 2)
    jobs = [batch.submit(request_of(other, place, 3 + place, DrawOptions())) for place in range(2)]
    while not batch.idle:
        batch.step()
    for place, job in enumerate(jobs):
        np.testing.assert_array_equal(job.result().codes, alone(place, 3 + place, 0))


class Turns:
    """The trees of the rounds, one after the other and round again; the contract of `runtime/chooser.py`."""

    asked = AUTO

    def __init__(self, trees: list[str]) -> None:
        self.first, self._trees = trees[0], itertools.cycle(trees)

    def serves(self, rule: Rule, tree: str | None) -> bool:  # noqa: ARG002
        return tree == AUTO

    def choose(self, drawings: Sequence[Drawing], current: str) -> Choice:  # noqa: ARG002
        return Choice(next(self._trees), "its turn")

    def observe(self, tree: str, tokens: int, rounds: int, busy: int, milliseconds: float | None) -> None:
        """Nothing follows from it."""


def test_what_no_engine_was_compiled_for_is_refused(
    three: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = fake_trt.draws_on(monkeypatch, fake_trt.compiled(three.folder, tmp_path))
    allocate, allocated = Memory.allocate, list[int]()
    monkeypatch.setattr(Memory, "allocate", lambda *given: (allocated.append(given[-1]), allocate(*given))[1])
    said = r"draw at most 3 images at a time \(--batch\), not 5: .* build the bundle again with --batch 5 and compile"
    for make in (other.batch, lambda slots: other.workspace(slots=slots)):
        with pytest.raises(CascadeError, match=said):
            make(5)
    assert other.batch(3).slots == 3 == allocated[0]
    with pytest.raises(CascadeError, match=r"has no profile for \w+ \[1, .*: draw with guidance as"):
        other.generate(**random_features(three, 1), guidance_scale=1.0)


# verify -----------------------------------------------------------------------------------------------------
def test_recorded_calls_agree(pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("polygraphy", reason="polygraphy is not installed: pip install 'cascade-trt[rtx]'")
    calls = record(pipe, random_features(pipe, 1), 2, seed=0)
    other = fake_trt.draws_on(monkeypatch, fake_trt.compiled(pipe.folder, tmp_path))
    found = compare_calls(calls, other, "fp16")
    assert {item.engine for item in found} == {"condition", "target", "embed", "draft.small_9", "decode"}
    assert all(item.passed for item in found)
    fused = {name for name, info in pipe.manifest.engines.items() if info.fused is not None}  # TensorRT's is the other
    assert all(item.value in (0.0, 1.0) or (item.engine in fused and item.value < 4e-3) for item in found)
    times = dict(time_calls(calls, other))
    assert {"target embeds 2x6x64", "target embeds 2x9x64", "target embeds 2x1x64", "embed ids 2x1"} <= set(times)
    assert all(value > 0 for value in times.values())


def test_verify_asks_the_doctor_first(
    compiled_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = tmp_path / "bundle"
    shutil.copytree(compiled_bundle, own)
    with pytest.raises(CascadeError, match="no engines for rtx:sm121: run `cascade-trt compile"):
        load_plans(own, "rtx:sm121")
    for verdict in (UNKNOWN, DAMAGED):
        monkeypatch.setattr(verify, "judge_bundle", lambda *_, v=verdict: [Verdict("rtx:sm89", v, "a reason.")])
        with pytest.raises(CascadeError, match="rtx:sm89 cannot be verified: a reason."):
            load_plans(own, "rtx:sm89")
    # With a GPU: every engine of the bundle is that target's plan, Ampere's of one number of nodes among them.
    manifest = read_manifest(own)
    given = {**random_features(Pipeline.load(own, "ort-cpu", warm=False), 1), "tree": "small_9", "seed": 1}
    before = Pipeline.load(own, "ort-cpu", threads=1, warm=False).generate(**given)
    plans = []
    for plan in manifest.plans:
        file = fake_trt.write_plan(own / plan.file, own / manifest.engines[plan.engine].file, plan.profiles)
        made = fake_trt.plan_info(plan.engine, file, plan.profiles)
        plans.append(replace(plan, bytes=made.bytes, sha256=made.sha256, backend_version=fake_trt.VERSION))
    (own / MANIFEST).write_text(replace(manifest, plans=plans).to_json())
    for target, capability in (("rtx:sm89", (8, 9)), ("rtx:sm86", (8, 6))):
        device, driver = host_device(capability)
        fake_trt.install(monkeypatch, driver)
        monkeypatch.setattr(tensorrt, "CudaDevice", lambda _, device=device: device)
        monkeypatch.setattr(verify, "judge_bundle", lambda *_, t=target: [Verdict(t, USABLE, "fits.")])
        pipe = load_plans(own, target)
        assert pipe.backend.name == "tensorrt-rtx"
        assert (pipe.generate(**given).codes == before.codes).all()
        folder = target.replace("rtx:", "tensorrt-rtx/")
        assert {engine.file for engine in pipe.engines().values()} == {  # type: ignore[attr-defined]
            f"{folder}/{name}.plan" for name in manifest.engines
        }


def test_half_precision_of_bfloat16_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is bfloat16 of an engine is converted, there and back."""
    pytest.importorskip("polygraphy", reason="polygraphy is not installed: pip install 'cascade-trt[rtx]'")
    value = partial(helper.make_tensor_value_info, elem_type=TensorProto.BFLOAT16, shape=["R", "N"])
    same = helper.make_graph([helper.make_node("Identity", ["x"], ["same"])], "same", [value("x")], [value("same")])
    onnx.save(helper.make_model(same, opset_imports=[helper.make_opsetid("", 24)], ir_version=11), tmp_path / "a.onnx")
    dims = [{"R": 1, "N": 3}]
    plan = fake_trt.plan_info("a", fake_trt.write_plan(tmp_path / "a.plan", tmp_path / "a.onnx", dims), dims)
    device, driver = host_device()
    backend = fake_trt.backend(monkeypatch, Plans(tmp_path, {"a": "a.onnx"}, [plan], 9), device, driver)
    pipe: Any = SimpleNamespace(
        engines=lambda: {"a": backend.load(tmp_path / "a.onnx")}, backend=SimpleNamespace(backend=backend),
        manifest=None,
    )  # fmt: skip
    x = np.array([[1.0, -2.5, 1.001]], np.float32)
    (found,) = compare_calls([Call("a", {"x": x}, {"same": x})], pipe, "bf16")
    assert found.passed and 0 < found.value < 1e-3  # 1.001 has no bfloat16
