"""First calls of a drafter, split or padded for an engine of one number of pairs (fake_trt.py computes)."""

from __future__ import annotations

from pathlib import Path

import fake_trt
import numpy as np
import pytest
from support import build, random_features, save_checkpoints

from cascade_trt.engines.tensorrt.fixed_pairs import FixedPairs
from cascade_trt.engines.tensorrt.profiles import engine_profiles
from cascade_trt.engines.tensorrt.run import PlanEngine
from cascade_trt.engines.verify import compare_calls, engines_of, record, replace_engines, time_calls
from cascade_trt.runtime.backends import Engine
from cascade_trt.runtime.pipeline import Pipeline

pytest.importorskip("polygraphy", reason="polygraphy is not installed: pip install 'cascade-trt[rtx]'")
ENGINE, PAIRS = "draft.small_9", 5  # of its steady call


@pytest.fixture(scope="module", params=[3, 5, 10, 13])
def pipe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A bundle for two prompts; the prefix is shorter than the steady call, as long, twice as long, or between."""
    folder = tmp_path_factory.mktemp("pairs")
    checkpoints = save_checkpoints(folder / "checkpoints", prefix_len=request.param)
    build(*checkpoints, "--precision", "fp16", "--tree", "small_9", "--batch", "2", "--out", folder / "b")
    return Pipeline.load(folder / "b", threads=1, warm=False)


def with_fixed(pipe: Pipeline, folder: Path) -> Pipeline:
    """The bundle of `pipe` once more, its drafter on a plan of PAIRS pairs."""
    other, graph = Pipeline.load(pipe.folder, threads=1, warm=False), pipe.folder / pipe.manifest.engines[ENGINE].file
    profiles = engine_profiles(pipe.manifest, ENGINE, {"fixed_pairs": PAIRS})
    assert {profile["M"] for profile in profiles} == {PAIRS}
    plan = fake_trt.write_plan(folder / "draft.plan", graph, profiles)
    drafter = FixedPairs(PlanEngine(fake_trt.flavour(), plan, fake_trt.HostDevice()), PAIRS)
    engines = engines_of(other)
    replace_engines(other, lambda name: drafter if name == ENGINE else engines[name])  # type: ignore[arg-type]
    return other


def test_outputs_and_caches_are_those_of_the_plain_call(pipe: Pipeline, tmp_path: Path) -> None:
    """Trees and laws, and every slot that a later call sees; steps have memory of their own."""
    calls = [call for call in record(pipe, random_features(pipe, 2), 2, seed=0) if call.engine == ENGINE]
    assert {call.inputs["path"].shape[1] for call in calls} == {pipe.manifest.model.prefix_len, PAIRS}
    other = with_fixed(pipe, tmp_path)
    found = compare_calls(calls, other, "fp32")
    assert {item.tensor for item in found} >= {"tree_tokens", "embeds", "log_q", "present_key.0", "present_value.3"}
    assert all(item.passed for item in found), [item for item in found if not item.passed]
    assert all(milliseconds > 0 for _, milliseconds in time_calls(calls, other))


def test_a_drawing_is_the_same(pipe: Pipeline, tmp_path: Path) -> None:
    """Steps share their memory, as in any drawing."""
    given, other = random_features(pipe, 2), with_fixed(pipe, tmp_path)
    one, two = (pipeline.generate(**given, rule="exact", seed=3) for pipeline in (pipe, other))
    assert (one.codes == two.codes).all() and (one.rounds == two.rounds).all()


def test_prompts_of_different_lengths_end_at_their_own_root(pipe: Pipeline, tmp_path: Path) -> None:
    """The runtime's first call never is one, but the graph takes it."""
    length = pipe.manifest.model.prefix_len
    call = next(call for call in record(pipe, random_features(pipe, 2), 1, seed=0) if call.engine == ENGINE)
    for count in ([length, 1], [max(length - 2, 1), length]):
        inputs = {**call.inputs, "count": np.array(count)}
        outputs = [run(engines_of(some)[ENGINE], inputs, call.outputs) for some in (pipe, with_fixed(pipe, tmp_path))]
        for name in ("tree_tokens", "log_q"):
            np.testing.assert_allclose(outputs[0][name], outputs[1][name], rtol=0, atol=1e-2)


def run(engine: Engine, inputs: dict[str, np.ndarray], like: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    inputs = {name: array.copy() for name, array in inputs.items()}
    past = {name: name.replace("present_", "past_", 1) for name in like}
    outputs = {name: inputs.get(past[name], np.zeros_like(array)) for name, array in like.items()}
    engine.bind(inputs, outputs).run()
    return outputs
