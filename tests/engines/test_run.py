"""Plans behind the runtime's interface, on a TensorRT that computes with ONNX Runtime (fake_trt.py)."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_trt
import numpy as np
import pytest
from support import random_features

from cascade_trt.engines import verify
from cascade_trt.engines.doctor import DAMAGED, UNKNOWN, USABLE, Verdict
from cascade_trt.engines.gpu import find_gpu
from cascade_trt.engines.tensorrt import run
from cascade_trt.engines.tensorrt.fixed_nodes import FixedNodes, PaddedIds
from cascade_trt.engines.tensorrt.fixed_pairs import FixedPairs
from cascade_trt.engines.tensorrt.profiles import engine_profiles
from cascade_trt.engines.tensorrt.run import PlanEngine
from cascade_trt.engines.verify import compare_calls, record, time_calls, use_plans
from cascade_trt.runtime.backends import Engine
from cascade_trt.runtime.backends.host import host_buffer
from cascade_trt.runtime.errors import CascadeError
from cascade_trt.runtime.pipeline import Pipeline


@pytest.fixture
def pipe(plain_bundle: Path) -> Pipeline:
    return Pipeline.load(plain_bundle, threads=1, warm=False)


def plan_engine(pipe: Pipeline, name: str, folder: Path) -> PlanEngine:
    graph = pipe.folder / pipe.manifest.engines[name].file
    plan = fake_trt.write_plan(folder / f"{name}.plan", graph, engine_profiles(pipe.manifest, name))
    return PlanEngine(fake_trt.flavour(), plan, fake_trt.HostDevice())


def on_plan(pipe: Pipeline, name: str, folder: Path) -> Engine:
    """The same, drafters for any number of pairs."""
    engine = plan_engine(pipe, name, folder)
    if pipe.manifest.tree_of(name) is None:
        return engine
    return FixedPairs(engine, engine_profiles(pipe.manifest, name))


@pytest.mark.parametrize(("rule", "tree"), [("ar", None), ("exact", "small_9")])
def test_a_drawing_on_plans_is_the_same(
    plain_bundle: Path, pipe: Pipeline, tmp_path: Path, rule: str, tree: str | None
) -> None:
    other = Pipeline.load(plain_bundle, threads=1, warm=False)
    other.wrap_engines(lambda name, _: on_plan(other, name, tmp_path))
    given = random_features(pipe, 1)
    one, two = (pipeline.generate(**given, rule=rule, tree=tree, seed=3) for pipeline in (pipe, other))
    assert (one.codes == two.codes).all()
    assert np.array_equal(np.asarray(one.images[0]), np.asarray(two.images[0]))


def test_recorded_calls_agree(plain_bundle: Path, pipe: Pipeline, tmp_path: Path) -> None:
    pytest.importorskip("polygraphy", reason="polygraphy is not installed: pip install 'cascade-trt[rtx]'")
    calls = record(pipe, random_features(pipe, 1), 2, seed=0)
    other = Pipeline.load(plain_bundle, threads=1, warm=False)
    other.wrap_engines(lambda name, _: on_plan(other, name, tmp_path))
    found = compare_calls(calls, other, "fp16")
    assert {item.engine for item in found} == {"condition", "target", "embed", "draft.small_9", "decode"}
    assert all(item.passed and item.value in (0.0, 1.0) for item in found)
    times = dict(time_calls(calls, other))
    assert {"target embeds 2x6x64", "target embeds 2x9x64", "target embeds 2x1x64", "embed ids 2x1"} <= set(times)
    assert all(value > 0 for value in times.values())


def test_scratch_outputs_get_memory_and_shapes_must_be_known(pipe: Pipeline, tmp_path: Path) -> None:
    engine = plan_engine(pipe, "embed", tmp_path)
    ids, embeds = host_buffer((2, 1), "int64"), host_buffer((2, 1, pipe.manifest.model.dim), "float16")
    call = engine.bind({"ids": ids}, {"embeds": embeds})
    device = engine._device
    assert isinstance(device, fake_trt.HostDevice)
    assert len(device.buffers) == 3 and 2 * np.prod(fake_trt.SCRATCH_SHAPE) in map(len, device.buffers.values())
    call.run()
    assert np.abs(embeds.host).max() > 0
    assert (engine.dtype("ids"), engine.dtype("embeds")) == ("int64", "float16")
    with pytest.raises(ValueError, match="not among the bound outputs"):
        call.run(("logits",))
    target = plan_engine(pipe, "target", tmp_path)
    with pytest.raises(CascadeError, match=r"target.plan has no profile for embeds \[2, 4, 64\]"):
        target.bind({"embeds": host_buffer((2, 4, 64), "float16")}, {})


def test_failures_are_sentences(pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd.plan").write_bytes(b"odd")
    with pytest.raises(CascadeError, match=r"tensorrt-rtx 1.7.1.116 does not load .*odd.plan.*doctor"):
        PlanEngine(fake_trt.flavour(), tmp_path / "odd.plan", fake_trt.HostDevice())
    engine = plan_engine(pipe, "embed", tmp_path)
    call = engine.bind({"ids": host_buffer((2, 1), "int64")}, {"embeds": host_buffer((2, 1, 64), "float16")})
    monkeypatch.setattr(fake_trt.FakeContext, "execute_async_v3", lambda *_: False)
    with pytest.raises(CascadeError, match="could not run the engine"):
        call.run()
    monkeypatch.setattr(fake_trt.FakeEngine, "get_tensor_dtype", lambda *_: None)
    with pytest.raises(CascadeError, match="ids is bfloat16"):
        engine.dtype("ids")


def test_cudas_refusal_is_a_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("polygraphy", reason="polygraphy is not installed: pip install 'cascade-trt[rtx]'")
    if find_gpu() is not None:
        pytest.skip("there is a GPU here")
    with pytest.raises(CascadeError, match=r"the GPU cannot be used \(.*\): see `cascade-trt doctor`"):
        run.CudaDevice()
    assert "CUDA Error" not in capfd.readouterr().out


def test_use_plans_asks_the_doctor_first(
    compiled_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = tmp_path / "bundle"
    shutil.copytree(compiled_bundle, own)
    pipe = Pipeline.load(own, threads=1, warm=False)
    with pytest.raises(CascadeError, match="no engines for rtx:sm121: run `cascade-trt compile"):
        use_plans(pipe, "rtx:sm121")
    for verdict in (UNKNOWN, DAMAGED):
        monkeypatch.setattr(verify, "judge_bundle", lambda *_, v=verdict: [Verdict("rtx:sm89", v, "a reason.")])
        with pytest.raises(CascadeError, match="rtx:sm89 cannot be verified: a reason."):
            use_plans(pipe, "rtx:sm89")
    # With a GPU: every engine of the bundle is taken from that target's plans.
    monkeypatch.setattr(verify, "judge_bundle", lambda *_: [Verdict("rtx:sm89", USABLE, "fits.")])
    monkeypatch.setattr(verify, "import_tensorrt", lambda _: fake_trt.flavour())
    monkeypatch.setattr(run, "CudaDevice", fake_trt.HostDevice)
    plans = []
    for plan in pipe.manifest.plans:
        graph = own / pipe.manifest.engines[plan.engine].file
        file = fake_trt.write_plan(own / f"{plan.target[4:]}.{plan.engine}", graph, plan.profiles)
        plans.append(replace(plan, file=file.name))
    pipe.manifest = replace(pipe.manifest, plans=plans)
    given: dict[str, Any] = {**random_features(pipe, 1), "tree": "small_9", "seed": 1}
    before = pipe.generate(**given)
    use_plans(pipe, "rtx:sm89")
    kinds = {name: type(engine) for name, engine in pipe.engines().items()}
    assert kinds.pop("embed") is PaddedIds and kinds.pop("draft.small_9") is FixedPairs
    assert set(kinds.values()) == {PlanEngine}
    assert (pipe.generate(**given).codes == before.codes).all()
    # Ampere's target takes one number of nodes, its drafter one of pairs.
    monkeypatch.setattr(verify, "judge_bundle", lambda *_: [Verdict("rtx:sm86", USABLE, "fits.")])
    use_plans(pipe, "rtx:sm86")
    assert isinstance(pipe.engines()["target"], FixedNodes)
    assert isinstance(pipe.engines()["draft.small_9"], FixedPairs)
    assert (pipe.generate(**given).codes == before.codes).all()
