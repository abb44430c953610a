"""Compares two bundles, or two backends, of one model on inputs recorded from a real drawing, and end to end.

The reference draws; every call of its engines is recorded (inputs and outputs). The other engines (another bundle's,
or TensorRT's) get the same inputs, in their own precision, and Polygraphy's comparators judge the outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from ..runtime.backends import BoundCall, Buffer, Engine
from ..runtime.backends.host import host_dtype, to_dtype, to_float
from ..runtime.bundle import read_manifest
from ..runtime.errors import CascadeError
from ..runtime.pipeline import Pipeline
from ..runtime.plans import Plans
from ..runtime.rules.registry import PLAIN
from ..runtime.sampling import Sampling
from .doctor import USABLE, judge_bundle, look_around
from .draws import may_draw
from .tensorrt.profiles import drawn_trees
from .tensorrt.target import parse_target

# Largest difference allowed, as a share of the tensor's largest value: about three times what was measured on
# the fixture and the random XL model (docs/tensorrt.md).
TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 8e-2}
_CHOSEN = ("parents", "sources", "depths", "ancestors")  # by the draft graph of a dynamic tree
_DRAWN, _SECOND = "drawn", "runner_up"
INTEGERS = (_DRAWN, _SECOND, "ids", "tree_tokens", *_CHOSEN)  # near ties may swap, so a share of them must agree
_LEAST_AGREEMENT = 0.8  # of draws all: which of them are ties can be told
_BEST = 16  # of the ids, which are sorted by logit, as many are compared, as sets


@dataclass(frozen=True)
class Call:
    """One recorded engine call: copies of all inputs before and all outputs after it."""

    engine: str
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]


@dataclass
class Recording:
    """The first `limit` calls of every engine and shape, in the order in which they happened."""

    limit: int
    calls: list[Call] = field(default_factory=list)

    def wants(self, engine: str, shape: tuple[int, ...]) -> bool:
        seen = [call for call in self.calls if call.engine == engine and _shape(call.inputs) == shape]
        return len(seen) < self.limit


def _shape(inputs: Mapping[str, np.ndarray]) -> tuple[int, ...]:
    return tuple(size for array in inputs.values() for size in array.shape)


class RecordingEngine:
    """Passes everything on to `engine` and keeps what its calls read and wrote."""

    def __init__(self, name: str, engine: Engine, recording: Recording) -> None:
        self._name, self._engine, self._recording = name, engine, recording

    def dtype(self, name: str) -> str:
        return self._engine.dtype(name)

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> BoundCall:
        call, name, recording = self._engine.bind(inputs, outputs), self._name, self._recording

        class Recorded:
            def run(self, fetch: Sequence[str] = ()) -> None:
                before = {key: buffer.host.copy() for key, buffer in inputs.items()}
                if not recording.wants(name, _shape(before)):
                    call.run(fetch)
                    return
                call.run(tuple(outputs))
                after = {key: buffer.host.copy() for key, buffer in outputs.items()}
                recording.calls.append(Call(name, before, after))

        return Recorded()


def record(pipeline: Pipeline, given: Mapping[str, Any], limit: int, seed: int) -> list[Call]:
    """Draws one image, begins one with each further tree and one by plain decoding, and records.

    So every engine of the bundle is called with every shape that it is used with. `pipeline` must be loaded with
    warm=False.
    """
    recording = Recording(limit)
    pipeline.wrap_engines(lambda name, engine: RecordingEngine(name, engine, recording))
    draw = partial(pipeline.generate, **given, seed=seed, temperature=1.0)
    first, *others = drawn_trees(pipeline.manifest)
    draw(tree=first.name)
    for tree in others:
        _begin(partial(draw, tree=tree.name), limit)
    _begin(partial(draw, rule=PLAIN), limit)
    pipeline.wrap_engines(None)
    return recording.calls


def _begin(draw: Callable[..., Any], rounds: int) -> None:
    """The first rounds of a drawing, one more than are recorded: the last may be cut in the middle."""

    class Enough(Exception):
        pass

    left = iter(range(rounds))

    def stop(*_: int) -> None:
        if next(left, None) is None:
            raise Enough

    with suppress(Enough):
        draw(callback=stop)


def load_plans(folder: Path, target: str) -> Pipeline:
    """The bundle in `folder` on its TensorRT engines for `target`, on this machine's GPU.

    Raises CascadeError with `doctor`'s sentence when they are missing or cannot be used here.
    """
    from ..runtime.backends.tensorrt import TensorRtBackend

    verdicts = {verdict.what: verdict for verdict in judge_bundle(folder, look_around())}
    if target not in verdicts:
        raise CascadeError(
            f"{folder} has no engines for {target}: run `cascade-trt compile {folder} --target {target}`."
        )
    if verdicts[target].verdict != USABLE:
        raise CascadeError(f"{target} cannot be verified: {verdicts[target].sentence}")
    backend = TensorRtBackend(parse_target(target).backend, Plans.of(folder, read_manifest(folder)), target=target)
    return Pipeline.load(folder, backend, warm=False)


@dataclass(frozen=True)
class Difference:
    """One output of one recorded call: its largest difference as a share of its scale, or the share of integers that
    are equal (draws: or a tie)."""

    call: int
    engine: str
    tensor: str
    value: float
    limit: float
    passed: bool


def compare_calls(calls: list[Call], pipeline: Pipeline, precision: str) -> list[Difference]:
    """Runs every recorded call on `pipeline`'s engines; the differences, in the order of the calls."""
    tolerance, found = TOLERANCES[precision], []
    for number, call in enumerate(calls):
        if call.engine not in pipeline.engines():
            raise CascadeError(f"the bundle has no engine {call.engine}: build both bundles with the same trees.")
        outputs = _replay(call, pipeline)
        for name, expected in call.outputs.items():
            if name in (_DRAWN, _SECOND):
                share = _share_drawn(call, outputs, (_DRAWN, _SECOND) if name == _SECOND else (_DRAWN,), tolerance)
                found.append(Difference(number, call.engine, name, share, 1.0, share == 1))
                continue
            drafted = name == "embeds" and "tree_tokens" in outputs
            if drafted and (call.outputs["tree_tokens"] != outputs["tree_tokens"]).any():
                continue  # of other tokens, and those are judged by themselves
            wanted, actual = (_committed(call, name, array) for array in (expected, outputs[name]))
            found.append(_judge(number, call.engine, name, wanted, actual, tolerance))
    return found


def _committed(call: Call, name: str, array: np.ndarray) -> np.ndarray:
    """A cache [R, H, S, Dh] without the slots that no later call sees: those of a drafter's drafted nodes, and those
    behind the call's last node, which TensorRT's engines fill up; any other array as it is."""
    if not name.startswith("present_"):
        return array
    given = call.inputs
    pairs = "prompt_of_row" in given
    count = given["count"][given["prompt_of_row"]] if pairs else given["embeds"].shape[1]
    kept = np.arange(array.shape[2]) < (given["write_index"] + count)[:, None]
    return np.where(kept[:, None, :, None], array, 0)


class TimedCall(Protocol):
    """A bound call that can also say how long the GPU takes for it."""

    def run(self, fetch: Sequence[str] = ()) -> None: ...
    def seconds(self, repeats: int = 50) -> float: ...


def time_calls(calls: list[Call], pipeline: Pipeline) -> list[tuple[str, float]]:
    """Milliseconds on the GPU of each recorded shape: ("target embeds 2x6x1280", 2.1). `pipeline` is `load_plans`'."""
    times = {}
    for call in calls:
        first, array = next(iter(call.inputs.items()))
        label = f"{call.engine} {first} {'x'.join(map(str, array.shape))}"
        if label not in times:
            bound = _bound(call, pipeline)[0]
            times[label] = 1000 * cast("TimedCall", bound).seconds()
    return list(times.items())


def _replay(call: Call, pipeline: Pipeline) -> dict[str, np.ndarray]:
    """The outputs of the pipeline's engine on the call's inputs, bfloat16 as float32; caches are updated in place, as
    in a drawing.

    Beside the target's draws come the logits and ids [P, N, K] that they were drawn from, recorded or not.
    """
    more: dict[str, tuple[int, ...]] = {}
    if (drawn := call.outputs.get(_DRAWN)) is not None:
        more = dict.fromkeys(("logits", "ids"), (*drawn.shape, pipeline.manifest.target.top_k))
    bound, outputs = _bound(call, pipeline, more)
    bound.run(tuple(outputs))
    return {name: to_float(buffer.host, buffer.dtype) if buffer.dtype == "bfloat16" else buffer.host
            for name, buffer in outputs.items()}  # fmt: skip


def _bound(
    call: Call, pipeline: Pipeline, more: Mapping[str, tuple[int, ...]] | None = None
) -> tuple[BoundCall, dict[str, Buffer]]:
    """The call on the pipeline's engine, not run yet, and the buffers that it will write: the recorded outputs, and
    `more` by their shapes."""
    engine, backend = pipeline.engines()[call.engine], pipeline.backend.backend
    inputs = {name: backend.buffer(array.shape, engine.dtype(name), "in") for name, array in call.inputs.items()}
    for name, buffer in inputs.items():
        array, half = call.inputs[name], buffer.dtype == "bfloat16"
        buffer.host[...] = to_dtype(array, buffer.dtype) if half else array.astype(host_dtype(buffer.dtype))
    shapes = {name: array.shape for name, array in call.outputs.items()} | dict(more or {})
    outputs = {}
    for name, shape in shapes.items():
        past = name.replace("present_", "past_", 1)
        shared = inputs.get(past) if past != name else None
        outputs[name] = shared or backend.buffer(shape, engine.dtype(name), "out")
    return engine.bind(inputs, outputs), outputs


def _share_drawn(call: Call, outputs: Mapping[str, np.ndarray], names: Sequence[str], tolerance: float) -> float:
    """The share of nodes at which the engine drew the recorded tokens `names`, or others that tie with them: when
    differences of the logits that are allowed would have made it draw the recorded ones."""
    logits, ids, given = outputs["logits"], outputs["ids"], call.inputs
    slack = 2 * tolerance * float(np.abs(logits).max(initial=0))
    wanted, got = (np.stack([tokens[name] for name in names], axis=-1) for tokens in (call.outputs, outputs))
    good = (wanted == got).all(axis=-1)  # [P, N]
    for slot, node in np.argwhere(~good).tolist():
        sampling = Sampling(1.0, 1.0, int(given["top_k"][slot]), float(given["top_p"][slot]))
        ranked, own = logits[slot, node], ids[slot, node]
        race = ranked + given["noise"][slot, given["depths"][slot, node], own]  # [K]
        if (got[slot, node] >= 0).all():
            good[slot, node] = may_draw(
                wanted[slot, node].tolist(), own, ranked, race, len(own), sampling, slack
            )
    return float(good.mean())


def _judge(
    number: int, engine: str, name: str, expected: np.ndarray, actual: np.ndarray, tolerance: float
) -> Difference:
    """By a tolerance relative to the tensor's scale; infinities are equal where they have one sign, NaN never is."""
    if name in INTEGERS:
        same = _overlap(expected, actual) if name == "ids" else float((expected == actual).mean())
        return Difference(number, engine, name, same, _LEAST_AGREEMENT, same >= _LEAST_AGREEMENT)
    expected, actual = expected.astype(np.float32), actual.astype(np.float32)
    finite = np.isfinite(expected)
    scale = float(np.abs(expected[finite]).max(initial=0)) or 1.0
    same = bool(np.isclose(actual, expected, rtol=0.0, atol=tolerance * scale).all())
    if np.array_equal(expected[~finite], actual[~finite]):
        worst = float(np.abs(expected[finite] - actual[finite]).max(initial=0)) / scale
    else:
        worst = np.inf
    return Difference(number, engine, name, worst, tolerance, same)


def _overlap(expected: np.ndarray, actual: np.ndarray) -> float:
    """The share of the likeliest ids [P, N, K] of each node that both have."""
    pairs = zip(expected[..., :_BEST].reshape(-1, min(_BEST, expected.shape[-1])),
                actual[..., :_BEST].reshape(-1, min(_BEST, actual.shape[-1])), strict=True)  # fmt: skip
    return float(np.mean([np.isin(one, two).mean() for one, two in pairs]))


@dataclass(frozen=True)
class EndToEnd:
    """Greedy drawings of both bundles: share of equal tokens, where they part, mean pixel difference (0..255)."""

    agreement: float
    first_difference: int | None
    pixels: float


def compare_drawings(reference: Pipeline, other: Pipeline, given: Mapping[str, Any], seed: int) -> EndToEnd:
    """Both draw at temperature 0, with the same tree. Tokens after the first difference belong to different images."""
    draw = {**given, "seed": seed, "temperature": 0.0, "tree": drawn_trees(reference.manifest)[0].name}
    one, two = (pipe.generate(**draw) for pipe in (reference, other))
    equal = one.codes == two.codes
    places = np.flatnonzero(~equal.reshape(-1))
    images = [np.asarray(output.images[0], np.float32) for output in (one, two)]
    first = int(places[0]) if places.size else None
    return EndToEnd(float(equal.mean()), first, float(np.abs(images[0] - images[1]).mean()))
