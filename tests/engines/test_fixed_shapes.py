"""Calls filled up or cut into pieces for engines of few shapes answer as the plain calls do (fake_trt.py computes)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fake_trt
import numpy as np
import pytest
from support import build, random_features, save_checkpoints, standard_graphs_only

from cascade_trt.engines.tensorrt.profiles import engine_profiles
from cascade_trt.engines.verify import Call, compare_calls, record, time_calls
from cascade_trt.runtime.backends.tensorrt_shapes import Piece, cut
from cascade_trt.runtime.pipeline import Pipeline

pytest.importorskip("polygraphy", reason="polygraphy is not installed: pip install 'cascade-trt[rtx]'")
SIZES = [33, 9, 5, 1]  # of the engine; calls have 20 nodes (prefix), 9 (tree) and 1
DRAFTER, PAIRS = "draft.small_9", 5  # of its steady call


def bundle(folder: Path, prefix: int) -> Pipeline:
    """Two slots, a tree of nine nodes, a prefix of so many."""
    checkpoints = save_checkpoints(folder / "checkpoints", prefix_len=prefix)
    build(*checkpoints, "--precision", "fp16", "--tree", "small_9", "--batch", "2", "--out", folder / "b")
    same = standard_graphs_only(folder / "b")  # the CPU computes what TensorRT reads
    return Pipeline.load(same, "ort-cpu", threads=1, warm=False)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """The prefix, padded by a different length in each prompt, is longer than the tree."""
    return bundle(tmp_path_factory.mktemp("nodes"), 20)


@pytest.fixture(scope="module")
def calls(pipe: Pipeline) -> list[Call]:
    return record(pipe, prompts(pipe), 2, seed=0)


@pytest.fixture(scope="module", params=[3, 5, 10, 13])
def pairs_pipe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """The prefix is shorter than the drafter's steady call, as long, twice as long, or between."""
    return bundle(tmp_path_factory.mktemp("pairs"), request.param)


def prompts(pipe: Pipeline) -> dict[str, np.ndarray]:
    given = random_features(pipe, 2)
    return given | {"features_mask": np.arange(20)[None] >= np.array([[3], [13]])}


def fixed(
    monkeypatch: pytest.MonkeyPatch, pipe: Pipeline, folder: Path, options: Mapping[str, Mapping[str, Any]],
    profiles: Mapping[str, Sequence[dict[str, int]]] | None = None,
) -> Pipeline:  # fmt: skip
    """The bundle of `pipe` once more, on plans with these options."""
    return fake_trt.draws_on(monkeypatch, fake_trt.compiled(pipe.folder, folder, profiles, options))


def of_nodes(
    monkeypatch: pytest.MonkeyPatch, pipe: Pipeline, folder: Path, count: int
) -> Pipeline:
    """On a target of so many nodes, as for Ampere."""
    return fixed(monkeypatch, pipe, folder, {"target": {"fixed_nodes": count}})


def test_the_most_nodes_of_a_call_and_their_only_profile(pipe: Pipeline) -> None:
    assert pipe.manifest.most_nodes == 33
    profiles = engine_profiles(pipe.manifest, "target", {"fixed_nodes": 33})
    assert profiles == [{"P": p, "R": 2 * p, "G": 2, "N": 33, "L": 33} for p in (1, 2)]


@pytest.mark.parametrize("count", SIZES)
def test_outputs_and_caches_are_those_of_the_plain_call(
    pipe: Pipeline, calls: list[Call], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Every output, and every slot of a cache that a later call sees."""
    wanted = [call for call in calls if call.engine == "target" and call.inputs["embeds"].shape[1] <= max(count, 20)]
    if count < 9:  # trees are no longer than the engine's calls: they are not cut
        wanted = [call for call in wanted if call.inputs["embeds"].shape[1] in (20, 1)]
    shapes = {call.inputs["embeds"].shape[:2] for call in wanted}
    assert {(2, 20), (4, 1)} <= shapes and (count < 9 or (4, 9) in shapes)
    other = of_nodes(monkeypatch, pipe, tmp_path, count)
    found = compare_calls(wanted, other, "fp32")
    assert len(found) == sum(len(call.outputs) for call in wanted)
    assert all(item.passed for item in found), [item for item in found if not item.passed]
    assert {item.tensor for item in found} >= {"drawn", "ids", "states", "similarity", "hidden", "present_value.1"}
    assert all(milliseconds > 0 for _, milliseconds in time_calls(wanted, other))


@pytest.mark.parametrize("count", [33, 9])
def test_every_node_draws_with_its_own_noise(
    pipe: Pipeline, calls: list[Call], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
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
    other = of_nodes(monkeypatch, pipe, tmp_path, count)
    one, two = (run(some, "target", inputs, call.outputs) for some in (pipe, other))
    np.testing.assert_array_equal(two["drawn"], np.take_along_axis(winners, depths, axis=1))
    np.testing.assert_array_equal(two["drawn"], one["drawn"])
    np.testing.assert_allclose(two["states"], one["states"], rtol=0, atol=2e-3 * np.abs(one["states"]).max())


def run(
    pipe: Pipeline, engine: str, inputs: Mapping[str, np.ndarray], like: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The outputs of a pipeline's engine but for its caches."""
    backend, loaded = pipe.backend.backend, pipe.engines()[engine]
    given = {name: backend.buffer(array.shape, array.dtype.name, "in") for name, array in inputs.items()}
    for name, array in inputs.items():
        given[name].host[...] = array
    wanted = {name: array for name, array in like.items() if not name.startswith("present_")}
    outputs = {name: backend.buffer(array.shape, array.dtype.name, "out") for name, array in wanted.items()}
    present = {name: given[name.replace("present_", "past_", 1)] for name in like.keys() - wanted.keys()}
    loaded.bind(given, {**outputs, **present}).run(tuple(outputs))
    return {name: buffer.host for name, buffer in outputs.items()}


@pytest.mark.parametrize(
    ("count", "rule", "tree"),
    [(9, "ar", None), (9, "exact", "small_9"), (9, "exact", "jacobi_5x3"), (33, "ar", None), (33, "exact", "small_9"),
     (33, "exact", "jacobi_32"), (33, "exact", "jacobi_20x12")],
)  # fmt: skip
def test_a_drawing_is_the_same(
    pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, rule: str, tree: str | None
) -> None:
    """To the last image token, behind which what is filled up still has room in the cache; with any tree that fits into
    a call of the engine."""
    given, other = prompts(pipe), of_nodes(monkeypatch, pipe, tmp_path, count)
    one, two = (pipeline.generate(**given, rule=rule, tree=tree, seed=3) for pipeline in (pipe, other))
    np.testing.assert_array_equal(one.codes, two.codes)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = tmp_path_factory.mktemp("mixed")
    checkpoints, trees = save_checkpoints(folder / "c", grid=6), ("--tree", "mixed_24", "--tree", "small_6")
    build(*checkpoints, "--precision", "fp16", *trees, "--batch", "2", "--out", folder / "b")
    same = standard_graphs_only(folder / "b")  # the CPU computes what TensorRT reads
    return Pipeline.load(same, "ort-cpu", threads=1, warm=False)


@pytest.mark.parametrize("ampere", [True, False])
@pytest.mark.parametrize("name", ["mixed_24", "mixed_32", "mixed_9x4", "jacobi_16", "small_6"])
def test_plans_serve_every_tree(
    mixed: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, ampere: bool
) -> None:
    """Those that the bundle was built with and others, on plans of one shape and on those of newer cards."""
    options = {"target": {"fixed_nodes": 33}, "draft.chain_1": {"fixed_pairs": 25}, "draft.small_6": {"fixed_pairs": 4}}
    other = fixed(monkeypatch, mixed, tmp_path, options if ampere else {})
    one, two = (p.generate(**random_features(p, 2), rule="exact", tree=name, seed=3) for p in (mixed, other))
    np.testing.assert_array_equal(one.codes, two.codes)
    np.testing.assert_array_equal(one.rounds, two.rounds)


def test_cosines_of_nodes_in_different_pieces_are_refused(
    pipe: Pipeline, calls: list[Call], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = next(call for call in calls if call.engine == "target")
    like = {"similarity": np.zeros((1, 20, 20), np.float32)}
    with pytest.raises(ValueError, match="similarity of nodes in different pieces"):
        run(of_nodes(monkeypatch, pipe, tmp_path, 9), "target", call.inputs, like)


# drafters ---------------------------------------------------------------------------------------------------
def of_pairs(
    monkeypatch: pytest.MonkeyPatch, pipe: Pipeline, folder: Path, in_pieces: bool = True,
    more: Sequence[dict[str, int]] = (),
) -> Pipeline:  # fmt: skip
    """On a drafter of PAIRS pairs in every call, with `more` profiles than the bundle's; or on one with a profile for
    the prefix, too."""
    own = {"fixed_pairs": PAIRS} if in_pieces else {}
    return fixed(
        monkeypatch, pipe, folder, {DRAFTER: own}, {DRAFTER: [*engine_profiles(pipe.manifest, DRAFTER, own), *more]}
    )


@pytest.mark.parametrize("in_pieces", [True, False])
def test_a_drafters_outputs_and_caches_are_those_of_the_plain_call(
    pairs_pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_pieces: bool
) -> None:
    """Trees and distributions, and every slot that a later call sees; steps have memory of their own. Filled up or in
    pieces, and where the call was recorded behind a target call of fewer nodes."""
    pipe = pairs_pipe
    calls = [call for call in record(pipe, random_features(pipe, 2), 2, seed=0) if call.engine == DRAFTER]
    length = pipe.manifest.model.condition.length  # of the prefix, which fills one slot
    shapes = {call.inputs["path"].shape for call in calls}
    steady = [call for call in calls if len(call.inputs["count"]) == 2]
    assert (1, length) in shapes and len(steady) >= 2
    assert all(call.inputs["path"].shape[1] <= PAIRS for call in steady)  # they read what a round has accepted
    calls += [Call(call.engine, few_states(call.inputs), call.outputs) for call in steady]
    other = of_pairs(monkeypatch, pipe, tmp_path, in_pieces)
    found = compare_calls(calls, other, "fp32")
    assert {item.tensor for item in found} >= {"tree_tokens", "embeds", "log_q", "present_key.0", "present_value.3"}
    assert all(item.passed for item in found), [item for item in found if not item.passed]
    assert all(milliseconds > 0 for _, milliseconds in time_calls(calls, other))


def few_states(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same call with the hidden states that it reads alone, as behind a smaller target call."""
    return {**inputs, "hidden": inputs["hidden"][:, : inputs["path"].max() + 1]}


@pytest.mark.parametrize("in_pieces", [True, False])
def test_a_drawing_with_a_drafter_is_the_same(
    pairs_pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_pieces: bool
) -> None:
    """Steps share their memory, as in any drawing."""
    given, other = random_features(pairs_pipe, 2), of_pairs(monkeypatch, pairs_pipe, tmp_path, in_pieces)
    one, two = (pipe.generate(**given, rule="exact", tree="small_9", seed=3) for pipe in (pairs_pipe, other))
    np.testing.assert_array_equal(one.codes, two.codes)
    np.testing.assert_array_equal(one.rounds, two.rounds)


def test_prompts_of_different_lengths_end_at_their_own_root(
    pairs_pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two slots in a first call, which the runtime never makes, but the graph takes it."""
    pipe, length = pairs_pipe, pairs_pipe.manifest.model.condition.length
    calls = record(pipe, random_features(pipe, 2), 2, seed=0)
    one, two = [call for call in calls if call.engine == DRAFTER and call.inputs["path"].shape == (1, length)][:2]
    inputs = {name: np.concatenate([one.inputs[name], two.inputs[name]]) for name in one.inputs}
    inputs |= {"rows_of_prompt": np.array([[0, 1], [2, 3]]), "prompt_of_row": np.array([0, 0, 1, 1])}
    like = {name: np.concatenate([one.outputs[name], two.outputs[name]]) for name in one.outputs}
    more = [{"P": 2, "R": 4, "G": 2, "M": PAIRS, "N_hidden": length}]
    other = of_pairs(monkeypatch, pipe, tmp_path, more=more)
    for count in ([length, 1], [max(length - 2, 1), length]):
        given = {**inputs, "count": np.array(count)}
        outputs = [run(some, DRAFTER, given, like) for some in (pipe, other)]
        for name in ("tree_tokens", "log_q"):
            np.testing.assert_allclose(outputs[0][name], outputs[1][name], rtol=0, atol=1e-2)


# pieces -----------------------------------------------------------------------------------------------------
def test_a_causal_prefix_is_cut_every_so_many_nodes() -> None:
    mask = np.tri(7, dtype=bool)[None]
    assert cut(mask, 3) == [Piece(0, 3), Piece(3, 3), Piece(6, 1)]
    assert cut(mask, 7) == cut(mask, 58) == [Piece(0, 7)]
    padded = mask & (np.arange(7) >= 4) | np.eye(7, dtype=bool)  # four padded slots, which see only themselves
    assert cut(padded, 3) == cut(mask, 3)


def test_nodes_that_see_different_slots_before_them_are_not_called_together() -> None:
    """A tree's branches: the second child of the root must not see the first one's descendants."""
    parents = [-1, 0, 0, 1, 2]
    mask = np.eye(5, dtype=bool)
    for node, parent in enumerate(parents[1:], start=1):
        mask[node] |= mask[parent]
    assert cut(mask[None], 3) == [Piece(0, 3), Piece(3, 1), Piece(4, 1)]
