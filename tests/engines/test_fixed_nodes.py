"""Calls padded or split for an engine of one number of nodes answer as the plain call does (fake_trt.py computes)."""

from __future__ import annotations

from pathlib import Path

import fake_trt
import numpy as np
import pytest
from support import build, random_features, save_checkpoints

from cascade_trt.engines.tensorrt.fixed_nodes import FixedNodes, PaddedIds, Piece, pieces
from cascade_trt.engines.tensorrt.fixed_pairs import FixedPairs
from cascade_trt.engines.tensorrt.profiles import engine_profiles
from cascade_trt.engines.tensorrt.run import PlanEngine
from cascade_trt.engines.verify import Call, compare_calls, record, time_calls
from cascade_trt.runtime.backends import Engine
from cascade_trt.runtime.backends.host import HostBuffer, host_buffer
from cascade_trt.runtime.pipeline import Pipeline

pytest.importorskip("polygraphy", reason="polygraphy is not installed: pip install 'cascade-trt[rtx]'")
SIZES = [33, 9, 5, 1]  # of the engine; calls have 20 nodes (prefix), 9 (tree) and 1


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A bundle of two slots whose prefix, padded by a different length in each prompt, is longer than its tree."""
    folder = tmp_path_factory.mktemp("fixed")
    checkpoints = save_checkpoints(folder / "checkpoints", prefix_len=20)
    build(*checkpoints, "--precision", "fp16", "--tree", "small_9", "--batch", "2", "--out", folder / "b")
    return Pipeline.load(folder / "b", threads=1, warm=False)


@pytest.fixture(scope="module")
def calls(pipe: Pipeline) -> list[Call]:
    return record(pipe, prompts(pipe), 2, seed=0)


def prompts(pipe: Pipeline) -> dict[str, np.ndarray]:
    given = random_features(pipe, 2)
    return given | {"features_mask": np.arange(20)[None] >= np.array([[3], [13]])}


def with_fixed(pipe: Pipeline, fixed: int, folder: Path) -> Pipeline:
    """The bundle of `pipe` once more, its target on a plan of `fixed` nodes."""
    other, graph = Pipeline.load(pipe.folder, threads=1, warm=False), pipe.folder / pipe.manifest.engines["target"].file
    profiles = engine_profiles(pipe.manifest, "target", {"fixed_nodes": fixed})
    plan = fake_trt.write_plan(folder / "target.plan", graph, profiles)
    target = FixedNodes(PlanEngine(fake_trt.flavour(), plan, fake_trt.HostDevice()), profiles)
    other.wrap_engines(lambda name, engine: target if name == "target" else engine)
    return other


def test_the_most_nodes_of_a_call_and_their_only_profile(pipe: Pipeline) -> None:
    assert pipe.manifest.most_nodes == 33
    profiles = engine_profiles(pipe.manifest, "target", {"fixed_nodes": 33})
    assert profiles == [{"P": p, "R": 2 * p, "G": 2, "N": 33, "L": 33} for p in (1, 2)]


@pytest.mark.parametrize("fixed", SIZES)
def test_outputs_and_caches_are_those_of_the_plain_call(
    pipe: Pipeline, calls: list[Call], tmp_path: Path, fixed: int
) -> None:
    """Every slot of every cache, those after the call's last node included."""
    wanted = [call for call in calls if call.engine == "target"]
    # The prefix fills one slot; trees and plain decoding come with both, until one image is done.
    shapes = {call.inputs["embeds"].shape[:2] for call in wanted}
    assert {(2, 20), (4, 9), (4, 1)} <= shapes <= {(2, 20), (4, 9), (4, 1), (2, 9), (2, 1)}
    other = with_fixed(pipe, fixed, tmp_path)
    found = compare_calls(wanted, other, "fp32")
    assert len(found) == sum(len(call.outputs) for call in wanted)
    assert all(item.passed for item in found), [item for item in found if not item.passed]
    assert {item.tensor for item in found} >= {"drawn", "ids", "states", "similarity", "hidden", "present_value.1"}
    assert all(milliseconds > 0 for _, milliseconds in time_calls(wanted, other))


@pytest.mark.parametrize("fixed", SIZES)
def test_every_piece_draws_with_the_noise_of_its_own_nodes(
    pipe: Pipeline, calls: list[Call], tmp_path: Path, fixed: int
) -> None:
    """Rows of noise in no order, and so loud that each row has its winner: `drawn` names the rows that were read."""
    call = next(c for c in calls if c.engine == "target" and c.inputs["embeds"].shape[1] == 9)
    slots, levels, vocab = call.inputs["noise"].shape
    rng = np.random.default_rng(0)
    winners = np.stack([rng.choice(vocab, levels, replace=False) for _ in range(slots)])  # [P, L]
    noise = np.zeros((slots, levels, vocab), np.float32)
    np.put_along_axis(noise, winners[..., None], 1e4, axis=2)
    depths = rng.integers(0, levels, (slots, 9))
    everything = {"top_k": np.full(slots, vocab), "top_p": np.ones(slots, np.float32)}
    inputs = {**call.inputs, **everything, "noise": noise, "depths": depths}
    assert pipe.manifest.target.top_k == vocab  # so the winner is kept, whatever its logit
    one, two = (run(some, inputs, call.outputs) for some in (pipe, with_fixed(pipe, fixed, tmp_path)))
    np.testing.assert_array_equal(two["drawn"], np.take_along_axis(winners, depths, axis=1))
    np.testing.assert_array_equal(two["drawn"], one["drawn"])
    np.testing.assert_allclose(two["states"], one["states"], rtol=0, atol=2e-3 * np.abs(one["states"]).max())


def run(pipe: Pipeline, inputs: dict[str, np.ndarray], like: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The target's outputs but for its cache, which is a copy."""
    given = {name: HostBuffer(array.copy()) for name, array in inputs.items()}
    wanted = {name: array for name, array in like.items() if not name.startswith("present_")}
    outputs = {name: host_buffer(array.shape, array.dtype.name) for name, array in wanted.items()}
    present = {name: given[name.replace("present_", "past_", 1)] for name in like.keys() - wanted.keys()}
    pipe.engines()["target"].bind(given, {**outputs, **present}).run(tuple(outputs))
    return {name: buffer.host for name, buffer in outputs.items()}


@pytest.mark.parametrize(
    ("fixed", "rule", "tree"),
    [(9, "ar", None), (9, "exact", "small_9"), (9, "exact", "jacobi_5x3"), (33, "ar", None), (33, "exact", "small_9"),
     (33, "exact", "jacobi_32"), (33, "exact", "jacobi_20x12")],
)  # fmt: skip
def test_a_drawing_is_the_same(pipe: Pipeline, tmp_path: Path, fixed: int, rule: str, tree: str | None) -> None:
    """To the last image token, after which padding still has room in the cache; with any tree that fits into a call of
    the engine."""
    given, other = prompts(pipe), with_fixed(pipe, fixed, tmp_path)
    one, two = (pipeline.generate(**given, rule=rule, tree=tree, seed=3) for pipeline in (pipe, other))
    assert (one.codes == two.codes).all()


@pytest.mark.parametrize("name", ["mixed_24", "mixed_32", "mixed_9x4", "jacobi_16", "small_6"])
def test_plans_of_one_shape_serve_every_tree(tmp_path: Path, name: str) -> None:
    """Target, drafter and embeddings on plans as for Ampere, with trees that the bundle was built with and others."""
    checkpoints, folder = save_checkpoints(tmp_path / "checkpoints", grid=6), tmp_path / "b"
    trees = ("--tree", "mixed_24", "--tree", "small_6")
    build(*checkpoints, "--precision", "fp16", *trees, "--batch", "2", "--out", folder)
    pipe, other = (Pipeline.load(folder, threads=1, warm=False) for _ in range(2))

    def on_plan(engine: str, kind: type, options: dict[str, int]) -> Engine:
        profiles, graph = engine_profiles(pipe.manifest, engine, options), folder / pipe.manifest.engines[engine].file
        plan = fake_trt.write_plan(tmp_path / f"{engine}.plan", graph, profiles)
        return kind(PlanEngine(fake_trt.flavour(), plan, fake_trt.HostDevice()), profiles)

    engines = {
        "target": on_plan("target", FixedNodes, {"fixed_nodes": 33}), "embed": on_plan("embed", PaddedIds, {}),
        "draft.chain_1": on_plan("draft.chain_1", FixedPairs, {"fixed_pairs": 25}),
        "draft.small_6": on_plan("draft.small_6", FixedPairs, {"fixed_pairs": 4}),
    }  # fmt: skip
    other.wrap_engines(lambda name, engine: engines.get(name, engine))
    one, two = (p.generate(**random_features(p, 2), rule="exact", tree=name, seed=3) for p in (pipe, other))
    np.testing.assert_array_equal(one.codes, two.codes)
    np.testing.assert_array_equal(one.rounds, two.rounds)


def test_padding_that_would_leave_the_cache_is_refused(pipe: Pipeline, calls: list[Call], tmp_path: Path) -> None:
    call = next(call for call in calls if call.engine == "target" and call.inputs["embeds"].shape[1] == 1)
    end = call.inputs["past_key.0"].shape[2]
    call = Call(call.engine, {**call.inputs, "write_index": np.full(4, end - 8)}, call.outputs)
    with pytest.raises(ValueError, match="beyond the cache's"):
        compare_calls([call], with_fixed(pipe, 9, tmp_path), "fp16")


def test_cosines_without_the_states_that_they_are_made_of_are_refused(
    pipe: Pipeline, calls: list[Call], tmp_path: Path
) -> None:
    call = next(call for call in calls if call.engine == "target")
    like = {name: array for name, array in call.outputs.items() if name != "states"}
    like["similarity"] = np.zeros((1, 20, 20), np.float32)
    with pytest.raises(ValueError, match="without states"):
        run(with_fixed(pipe, 9, tmp_path), call.inputs, like)


def test_a_causal_prefix_is_cut_every_so_many_nodes() -> None:
    mask = np.tri(7, dtype=bool)[None]
    assert pieces(mask, 3) == [Piece(0, 3), Piece(3, 3), Piece(6, 1)]
    assert pieces(mask, 7) == pieces(mask, 58) == [Piece(0, 7)]
    padded = mask & (np.arange(7) >= 4) | np.eye(7, dtype=bool)  # four padded slots, which see only themselves
    assert pieces(padded, 3) == pieces(mask, 3)


def test_nodes_that_see_different_slots_before_them_are_not_called_together() -> None:
    """A tree's branches: the second child of the root must not see the first one's descendants."""
    parents = [-1, 0, 0, 1, 2]
    mask = np.eye(5, dtype=bool)
    for node, parent in enumerate(parents[1:], start=1):
        mask[node] |= mask[parent]
    assert pieces(mask[None], 3) == [Piece(0, 3), Piece(3, 1), Piece(4, 1)]
