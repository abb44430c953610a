"""Recorded calls: equal bundles agree exactly, half precision within its tolerance, and damage is named."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from support import build, random_features, save_checkpoints

from cascade_trt.cli import cli
from cascade_trt.engines.verify import Call, _judge, compare_calls, compare_drawings, record
from cascade_trt.runtime.backends.host import HostBuffer, host_buffer
from cascade_trt.runtime.pipeline import Pipeline


@pytest.fixture(scope="module")
def exact_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fp32 twin of `plain_bundle`: the same weights, since the seed is."""
    folder = tmp_path_factory.mktemp("fp32")
    build(*save_checkpoints(folder / "checkpoints"), "--tree", "small_9", "--out", folder / "bundle")
    return folder / "bundle"


@pytest.fixture(scope="module")
def pipes(plain_bundle: Path, exact_bundle: Path) -> tuple[Pipeline, Pipeline]:
    return tuple(Pipeline.load(folder, threads=1, warm=False) for folder in (exact_bundle, plain_bundle))  # type: ignore[return-value]


@pytest.fixture(scope="module")
def calls(pipes: tuple[Pipeline, Pipeline]) -> list[Call]:
    return record(pipes[0], random_features(pipes[0], 1), 2, seed=0)


def test_every_engine_of_a_drawing_is_recorded(calls: list[Call]) -> None:
    assert {call.engine for call in calls} == {"condition", "target", "embed", "draft.small_9", "decode"}
    nodes = [call.inputs["embeds"].shape[1] for call in calls if call.engine == "target"]
    assert nodes == [6, 9, 9, 6, 1, 1]  # prefix, tree, then plain decoding
    assert all(array.size for call in calls for array in call.outputs.values())


def test_a_bundle_agrees_with_itself_exactly(pipes: tuple[Pipeline, Pipeline], calls: list[Call]) -> None:
    for item in compare_calls(calls, pipes[0], "fp32"):
        assert item.passed and item.value in (0.0, 1.0), item


def test_half_precision_is_within_its_tolerance(pipes: tuple[Pipeline, Pipeline], calls: list[Call]) -> None:
    found = compare_calls(calls, pipes[1], "fp16")
    assert all(item.passed for item in found), [item for item in found if not item.passed]
    assert any(0 < item.value < 1 for item in found if item.tensor == "logits")
    whole = compare_drawings(*pipes, random_features(pipes[0], 1), seed=0)
    assert 0 <= whole.agreement <= 1 and np.isfinite(whole.pixels)


def test_the_first_tensor_that_differs_is_named(pipes: tuple[Pipeline, Pipeline], calls: list[Call]) -> None:
    wrong = [Call(c.engine, c.inputs, {k: v.copy() for k, v in c.outputs.items()}) for c in calls]
    place = next(index for index, call in enumerate(wrong) if call.engine == "target")
    wrong[place].outputs["hidden"] += 1
    failed = [item for item in compare_calls(wrong, pipes[0], "fp32") if not item.passed]
    assert (failed[0].call, failed[0].engine, failed[0].tensor) == (place, "target", "hidden")


def test_every_draw_must_be_the_recorded_one_or_a_tie(pipes: tuple[Pipeline, Pipeline], calls: list[Call]) -> None:
    """Also in calls of a single node, and on the prefix, whose logits are not recorded. Where two tokens run alone,
    the second may stand for the first only if the tolerance of the logits covers its distance."""
    pipe = pipes[0]
    for call in (call for call in calls if call.engine == "target"):
        drawn = call.outputs["drawn"].copy()
        drawn[0, -1] = (drawn[0, -1] + 1) % pipe.manifest.model.vocab_size
        (found,) = [x for x in compare_calls([replaced(call, drawn)], pipe, "fp32") if x.tensor == "drawn"]
        assert not found.passed and found.value == 1 - 1 / drawn.size
    call = next(call for call in calls if call.engine == "target" and "logits" in call.outputs)
    ids, logits = call.outputs["ids"][0, 0], call.outputs["logits"][0, 0]
    depth, limit = call.inputs["depths"][0, 0], 2 * 1e-4 * np.abs(call.outputs["logits"]).max()
    for distance, passed in ((0.9 * limit, True), (1.1 * limit, False)):
        noise = call.inputs["noise"].copy()
        noise[0, depth] = -1e4
        noise[0, depth, ids[:2]] = -logits[0], -logits[1] - distance  # the first two run alone
        drawn = draws(pipe, call, noise)
        assert drawn[0, 0] == ids[0]
        drawn[0, 0] = ids[1]
        swapped = replaced(call, drawn, noise)
        (found,) = [x for x in compare_calls([swapped], pipe, "fp32") if x.tensor == "drawn"]
        assert found.passed is passed


def test_what_came_second_is_judged_behind_the_draw(exact_bundle: Path) -> None:
    """Trees with two guesses of one position read it; another token in its place is told, one that ties is not."""
    pipe = Pipeline.load(exact_bundle, threads=1, warm=False)
    pipe.manifest = replace(pipe.manifest, trees=[pipe.manifest.tree("jacobi_6x3")])
    calls = [call for call in record(pipe, random_features(pipe, 1), 2, seed=0) if "runner_up" in call.outputs]
    assert {call.outputs["runner_up"].shape for call in calls} == {(1, 10)}
    found = [item for item in compare_calls(calls, pipe, "fp32") if item.tensor == "runner_up"]
    assert len(found) == len(calls) == 2 and all(item.value == 1 for item in found)
    call, vocab, node = calls[0], pipe.manifest.model.vocab_size, 7  # the only one of its level
    drawn, second = (call.outputs[name].copy() for name in ("drawn", "runner_up"))
    assert (drawn != second).all()
    for token in ((set(range(3)) - {drawn[0, node], second[0, node]}).pop(), drawn[0, node], -1, vocab):
        wrong = second.copy()
        wrong[0, node] = token
        swapped = Call(call.engine, call.inputs, {**call.outputs, "runner_up": wrong})
        values = {item.tensor: item.value for item in compare_calls([swapped], pipe, "fp32")}
        assert (values["drawn"], values["runner_up"]) == (1, 0.9)
    # Where first and second tie, they may change places; the others, of other levels, stay.
    ids, logits, row = call.outputs["ids"][0, node], call.outputs["logits"][0, node], call.inputs["depths"][0, node]
    noise = call.inputs["noise"].copy()
    noise[0, row], noise[0, row, ids[:2]] = -1e4, -logits[:2]
    drawn[0, node], second[0, node] = ids[1], ids[0]
    swapped = Call(call.engine, {**call.inputs, "noise": noise}, {**call.outputs, "drawn": drawn, "runner_up": second})
    values = {item.tensor: item.value for item in compare_calls([swapped], pipe, "fp32")}
    assert (values["drawn"], values["runner_up"]) == (1, 1)


def replaced(call: Call, drawn: np.ndarray, noise: np.ndarray | None = None) -> Call:
    """`call` as if the reference had drawn other tokens, or with other noise."""
    inputs = call.inputs if noise is None else {**call.inputs, "noise": noise}
    return Call(call.engine, inputs, {**call.outputs, "drawn": drawn})


def draws(pipe: Pipeline, call: Call, noise: np.ndarray) -> np.ndarray:
    """What the target draws [P, N] in `call` with other noise."""
    given = {name: HostBuffer(array.copy()) for name, array in {**call.inputs, "noise": noise}.items()}
    drawn = host_buffer(call.outputs["drawn"].shape, "int64")
    present = {name: given[name.replace("present_", "past_", 1)] for name in call.outputs if "present_" in name}
    pipe.engines()["target"].bind(given, {"drawn": drawn, **present}).run(("drawn",))
    return drawn.host


def test_the_command(plain_bundle: Path, exact_bundle: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cascade_trt", "verify"]
    shown = subprocess.run(
        [*command, str(plain_bundle), "--against", str(exact_bundle), "--json"],
        capture_output=True, text=True, check=False,
    )
    assert shown.returncode == 0, shown.stderr
    assert set(json.loads(shown.stdout)) == {"calls", "outputs", "drawing", "milliseconds"}
    build(*save_checkpoints(tmp_path / "c", grid=6), "--tree", "small_9", "--out", tmp_path / "other")
    shown = subprocess.run(
        [*command, str(plain_bundle), "--against", str(tmp_path / "other")], capture_output=True, text=True, check=False
    )
    assert shown.returncode == 2 and "the bundles differ" in shown.stderr
    for rounds, said in ((0, "--rounds must be at least 1, not 0"), (1000, "--rounds must be at most 100, not 1000")):
        result = CliRunner().invoke(
            cli, ["verify", str(plain_bundle), "--against", str(exact_bundle), "--rounds", str(rounds)]
        )
        assert result.exit_code == 2 and said in result.stderr


@pytest.mark.parametrize(("expected", "actual", "passed"), [
    ([1.0, np.inf], [1.0, np.inf], True), ([1.0, np.inf], [1.0, -np.inf], False), ([1.0, np.nan], [1.0, np.nan], False),
    ([1.0, 100.0], [1.5, 100.0], True), ([1.0, 100.0], [1.5, 102.0], False), ([0.0], [0.0], True),
    ([1.0, np.inf], [1.5, np.inf], False),
])  # fmt: skip
def test_what_is_equal(expected: list[float], actual: list[float], passed: bool) -> None:
    """Within a hundredth of the largest number here; infinities of one sign are, NaN never is."""
    found = _judge(0, "target", "logits", np.array(expected), np.array(actual), 0.01)
    assert found.passed == passed
