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
from cascade_trt.engines.verify import Call, compare_calls, record, time_calls
from cascade_trt.runtime.backends import Engine
from cascade_trt.runtime.backends.host import HostBuffer, host_buffer
from cascade_trt.runtime.pipeline import Pipeline

pytest.importorskip("polygraphy", reason="polygraphy is not installed: pip install 'cascade-trt[rtx]'")
ENGINE, PAIRS = "draft.small_9", 5  # of its steady call


@pytest.fixture(scope="module", params=[3, 5, 10, 13])
def pipe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A bundle of two slots; the prefix is shorter than the steady call, as long, twice as long, or between."""
    folder = tmp_path_factory.mktemp("pairs")
    checkpoints = save_checkpoints(folder / "checkpoints", prefix_len=request.param)
    build(*checkpoints, "--precision", "fp16", "--tree", "small_9", "--batch", "2", "--out", folder / "b")
    return Pipeline.load(folder / "b", threads=1, warm=False)


def with_fixed(
    pipe: Pipeline, folder: Path, more: list[dict[str, int]] | None = None, fixed: bool = True
) -> Pipeline:
    """The bundle of `pipe` once more, its drafter on a plan of PAIRS pairs, with `more` profiles than the bundle's; or
    on one with a profile for the prefix, too."""
    other, graph = Pipeline.load(pipe.folder, threads=1, warm=False), pipe.folder / pipe.manifest.engines[ENGINE].file
    profiles = [*engine_profiles(pipe.manifest, ENGINE, {"fixed_pairs": PAIRS} if fixed else {}), *(more or [])]
    assert {profile["M"] for profile in profiles} <= {PAIRS, pipe.manifest.model.condition.length}
    plan = fake_trt.write_plan(folder / "draft.plan", graph, profiles)
    drafter = FixedPairs(PlanEngine(fake_trt.flavour(), plan, fake_trt.HostDevice()), profiles)
    other.wrap_engines(lambda name, engine: drafter if name == ENGINE else engine)
    return other


@pytest.mark.parametrize("fixed", [True, False])
def test_outputs_and_caches_are_those_of_the_plain_call(pipe: Pipeline, tmp_path: Path, fixed: bool) -> None:
    """Trees and distributions, and every slot that a later call sees; steps have memory of their own. Padded or in
    pieces, and where the call was recorded behind a target call of fewer nodes."""
    calls = [call for call in record(pipe, random_features(pipe, 2), 2, seed=0) if call.engine == ENGINE]
    length = pipe.manifest.model.condition.length  # of the prefix, which fills one slot
    shapes = {call.inputs["path"].shape for call in calls}
    steady = [call for call in calls if len(call.inputs["count"]) == 2]
    assert (1, length) in shapes and len(steady) >= 2
    assert all(call.inputs["path"].shape[1] <= PAIRS for call in steady)  # they read what a round has accepted
    calls += [Call(call.engine, few_states(call.inputs), call.outputs) for call in steady]
    other = with_fixed(pipe, tmp_path, fixed=fixed)
    found = compare_calls(calls, other, "fp32")
    assert {item.tensor for item in found} >= {"tree_tokens", "embeds", "log_q", "present_key.0", "present_value.3"}
    assert all(item.passed for item in found), [item for item in found if not item.passed]
    assert all(milliseconds > 0 for _, milliseconds in time_calls(calls, other))


def few_states(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same call with the hidden states that it reads alone, as behind a smaller target call."""
    return {**inputs, "hidden": inputs["hidden"][:, : inputs["path"].max() + 1]}


@pytest.mark.parametrize("fixed", [True, False])
def test_a_drawing_is_the_same(pipe: Pipeline, tmp_path: Path, fixed: bool) -> None:
    """Steps share their memory, as in any drawing."""
    given, other = random_features(pipe, 2), with_fixed(pipe, tmp_path, fixed=fixed)
    one, two = (pipeline.generate(**given, rule="exact", tree="small_9", seed=3) for pipeline in (pipe, other))
    assert (one.codes == two.codes).all() and (one.rounds == two.rounds).all()


def test_padding_that_would_leave_the_cache_is_refused(pipe: Pipeline, tmp_path: Path) -> None:
    calls = [call for call in record(pipe, random_features(pipe, 2), 2, seed=0) if call.engine == ENGINE]
    call = next(call for call in calls if len(call.inputs["count"]) == 2 and call.inputs["path"].shape[1] < PAIRS)
    end = call.inputs["past_key.0"].shape[2]
    call = Call(call.engine, {**call.inputs, "write_index": np.full(4, end - 4)}, call.outputs)
    with pytest.raises(ValueError, match="beyond the cache's"):
        compare_calls([call], with_fixed(pipe, tmp_path), "fp16")


def test_prompts_of_different_lengths_end_at_their_own_root(pipe: Pipeline, tmp_path: Path) -> None:
    """Two slots in a first call, which the runtime never makes, but the graph takes it."""
    length = pipe.manifest.model.condition.length
    calls = record(pipe, random_features(pipe, 2), 2, seed=0)
    calls = [call for call in calls if call.engine == ENGINE and call.inputs["path"].shape == (1, length)]
    one, two = (call for call in calls[:2])
    inputs = {name: np.concatenate([one.inputs[name], two.inputs[name]]) for name in one.inputs}
    inputs |= {"rows_of_prompt": np.array([[0, 1], [2, 3]]), "prompt_of_row": np.array([0, 0, 1, 1])}
    like = {name: np.concatenate([one.outputs[name], two.outputs[name]]) for name in one.outputs}
    fixed = with_fixed(pipe, tmp_path, [{"P": 2, "R": 4, "G": 2, "M": PAIRS, "N_hidden": length}])
    for count in ([length, 1], [max(length - 2, 1), length]):
        given = {**inputs, "count": np.array(count)}
        outputs = [run(some.engines()[ENGINE], given, like) for some in (pipe, fixed)]
        for name in ("tree_tokens", "log_q"):
            np.testing.assert_allclose(outputs[0][name], outputs[1][name], rtol=0, atol=1e-2)


def run(engine: Engine, inputs: dict[str, np.ndarray], like: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    given = {name: HostBuffer(array.copy()) for name, array in inputs.items()}
    outputs = {name: given.get(name.replace("present_", "past_", 1)) or host_buffer(array.shape, array.dtype.name)
               for name, array in like.items()}  # fmt: skip
    engine.bind(given, outputs).run(tuple(outputs))
    return {name: buffer.host for name, buffer in outputs.items()}
