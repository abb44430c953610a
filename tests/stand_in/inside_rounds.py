"""Whole bundles on the stand-in: which nodes CUDA takes, and what a round queues.

Kernels do nothing, so every token is 0 and every guess is right: images are drawn to their end, and mean nothing.
"""

from __future__ import annotations

import ctypes
import os
import warnings
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contract import DIM, HEADS, SLOTS, save, scatter_graph, sums_graph
from onnx import TensorProto, helper
from stand_in.calls import Call, calls, forget

from cascade_trt.runtime.backends.ort_cuda import IMAGE_ENGINES, OrtCudaBackend
from cascade_trt.runtime.bundle import read_manifest
from cascade_trt.runtime.errors import CascadeError, CascadeWarning
from cascade_trt.runtime.pipeline import Pipeline

BUNDLES = [Path(name) for name in os.environ["CASCADE_STAND_IN_BUNDLES"].split(os.pathsep)]
PLAIN = "plain"  # no tree
MIXED_CALLS = {"mixed": 3}  # of engines in a round: a drafter, `embed` for guesses, the target; others have two
BACKEND = OrtCudaBackend()


def per_bundle(names: Any) -> Any:
    """A test for each bundle and each of its `names(manifest)`."""
    cases = [(bundle, name) for bundle in BUNDLES for name in names(read_manifest(bundle))]
    return [pytest.param(bundle, name, id=f"{bundle.name}-{name}") for bundle, name in cases]


# placement ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("bundle", "name"), per_bundle(lambda manifest: manifest.engines))
def test_all_nodes_are_on_the_gpu(bundle: Path, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", CascadeWarning)  # what names operators on the CPU
        engine = BACKEND.load(bundle / read_manifest(bundle).engines[name].file)
    assert engine.graphs == (name not in IMAGE_ENGINES)


def odd_graph(path: Path) -> Path:
    """With an operator that CUDA does not have in this opset."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4, 8]) for name in "xy")
    given = (("scale", 1.0), ("bias", 0.0))
    constants = [helper.make_node("Constant", [], [name], value_floats=[number] * 4) for name, number in given]
    norm = helper.make_node("InstanceNormalization", ["x", "scale", "bias"], ["y"])
    return save(path, [*constants, norm], [x], [y])


@pytest.mark.parametrize("name", ["target", "embed", "draft.chain_2"])
def test_a_round_may_not_wait_for_the_cpu(tmp_path: Path, name: str) -> None:
    wanted = rf"^of {name}.onnx ONNX Runtime 1\S+ runs 1 InstanceNormalization on the CPU, in every round: build"
    with pytest.raises(CascadeError, match=wanted):
        BACKEND.load(odd_graph(tmp_path / f"{name}.onnx"))


def test_other_graphs_may_and_it_is_said(tmp_path: Path) -> None:
    with pytest.warns(CascadeWarning, match="decode.onnx ONNX Runtime 1.* runs 1 InstanceNormalization on the CPU"):
        engine = BACKEND.load(odd_graph(tmp_path / "decode.onnx"))
    assert not engine.graphs
    numbers = np.random.default_rng(0).normal(size=(3, 1, 4, 8)).astype(np.float32)
    for kind in ("in", "device"):
        x, y = BACKEND.buffer((1, 4, 8), "float32", kind), BACKEND.buffer((1, 4, 8), "float32", "out")
        call = engine.bind({"x": x}, {"y": y})
        forget()
        for given in numbers:  # each run reads anew what the CPU needs; the CPU does compute
            x.host[:] = given
            BACKEND.device.beside.upload(x.address, given.ctypes.data, given.nbytes)
            call.run(fetch=("y",))
            centred = given - given.mean(axis=2, keepdims=True)
            np.testing.assert_allclose(y.host, centred / given.std(axis=2, keepdims=True), atol=1e-3)
        assert not calls("graph")


@pytest.mark.parametrize("name", ["text", "condition", "decode", "target", "embed", "draft.chain_2"])
def test_what_runs_once_an_image_is_on_a_stream_of_its_own(tmp_path: Path, name: str) -> None:
    """With its uploads, its launches and its downloads, and the host waits for that stream alone. New memory is zeroed
    on the other; an event between the two comes with the first bind."""
    device, once = BACKEND.device, name in IMAGE_ENGINES
    own, other = (device.beside.stream, device.stream) if once else (device.stream, device.beside.stream)
    engine = BACKEND.load(sums_graph(tmp_path).rename(tmp_path / f"{name}.onnx"))
    forget()
    x, y, total = (BACKEND.buffer((1, 2), "float32", kind) for kind in ("in", "in", "out"))
    call = engine.bind({"x": x, "y": y}, {"sum": total})
    assert {made.stream for made in calls("zero")} == {device.stream}
    marks, waits = calls("record"), calls("wait")
    assert [made.stream for made in marks] == [other] * 3 * once and [made.stream for made in waits] == [own] * 3 * once
    assert [made.to for made in marks] == [made.to for made in waits]
    x.host[:] = 1
    for _ in range(3):
        forget()
        call.run(fetch=("sum",))
        made = calls("upload", "launch", "graph", "download", "synchronize", "wait")
        assert {kind for kind in ("launch", "graph") if calls(kind)} and {c.stream for c in made} == {own}
    with pytest.raises(ValueError, match="x is a buffer of engines on another stream"):
        BACKEND.load(sums_graph(tmp_path).rename(tmp_path / ("embed.onnx" if once else "text.onnx"))).bind(
            {"x": x, "y": y}, {"sum": total}
        )


# rounds ---------------------------------------------------------------------------------------------------------
class Skipped:
    """Stands for `decode`, whose convolutions the stand-in does not have."""

    def bind(self, *_: object) -> Skipped:
        return self

    def run(self, fetch: object = ()) -> None:
        pass


class WithoutImages(OrtCudaBackend):
    def load(self, path: Path) -> Any:
        return Skipped() if path.name == "decode.onnx" else super().load(path)


class Drawings:
    """Two drawings of a fresh pipeline: the calls of each round, in the first of which calls are captured. `tables` are
    pieces of the host's memory that graphs read, by address, as they were when they were captured."""

    def __init__(self, bundle: Path, tree: str) -> None:
        self.pipe = Pipeline.load(bundle, WithoutImages(), warm=False)
        self.tables: dict[int, bytes] = {}
        self.first, self.second = self._draw(tree), self._draw(tree)

    def _draw(self, tree: str) -> list[list[Call]]:
        """As many images as go together."""
        pipe, rounds = self.pipe, []

        def note(*_: int) -> None:
            rounds.append(calls())
            read = [call for call in rounds[-1] if call.captured and call.kind == "upload"]
            self.tables |= {call.source: ctypes.string_at(call.source, call.size) for call in read}
            forget()

        given = given_for(pipe)
        forget()
        options = {"rule": "ar"} if tree == PLAIN else {"rule": "exact", "tree": tree}
        pipe.generate(**given, **options, callback=note)
        return rounds


drawings = cache(Drawings)


def given_for(pipe: Pipeline) -> dict[str, Any]:
    """What as many images as go together are drawn from."""

    condition, images = pipe.manifest.model.condition, pipe.manifest.batch
    if pipe.manifest.text is not None:
        return {"prompts": ["a red apple"] * images}
    shape = images, condition.length, condition.width
    return {"features": np.ones(shape, np.float32), "features_mask": np.ones(shape[:2], bool)}


drawn = pytest.mark.parametrize(
    ("bundle", "tree"), per_bundle(lambda manifest: (PLAIN, *(tree.name for tree in manifest.trees)))
)


@drawn
def test_a_steady_round_is_one_launch_a_call(bundle: Path, tree: str) -> None:
    """And one wait for each call that fetches. Nothing is allocated, launched or captured apart from that; accepted
    entries move in the cache; what is uploaded is uploaded once, and less than all that the host could write."""
    pipe, rounds = drawings(bundle, tree).pipe, drawings(bundle, tree).second
    fetching = 1 if tree == PLAIN else 2
    for made in rounds[2:-1]:
        kinds = Counter(call.kind for call in made)
        assert kinds.keys() <= {"upload", "graph", "download", "record", "synchronize", "copy"}
        assert kinds["graph"] == MIXED_CALLS.get(tree.split("_")[0], 2)
        assert kinds["record"] == kinds["synchronize"] == fetching
        uploaded = [call.to for call in made if call.kind == "upload"]
        assert len(uploaded) == len(set(uploaded)) <= 6
        assert {call.stream for call in made} == {pipe.backend.backend.device.stream}  # type: ignore[attr-defined]
        assert not any(call.captured for call in made)
    assert len(rounds) >= 6


@drawn
def test_caches_are_updated_in_place(bundle: Path, tree: str) -> None:
    """No copy leads out of a cache or into it, and those inside are entries that were accepted."""
    pipe, made = drawings(bundle, tree).pipe, [call for made in drawings(bundle, tree).first for call in made]
    assert {call.kind for call in made if call.captured} >= {"launch", "product"}
    memory = pipe._memory
    assert memory is not None
    for kept in filter(None, (memory.target, memory.drafter)):
        views = list(kept.bindings(0, 2 * memory.slots)[0].values())
        start = min(view.address for view in views)  # type: ignore[attr-defined]
        inside = lambda address, start=start, size=kept.nbytes: start <= address < start + size  # noqa: E731
        entries = kept.nbytes // views[0].shape[2]  # of all rows, at one slot
        for call in made:
            if call.kind == "copy" and (inside(call.to) or inside(call.source)):
                assert inside(call.to) and inside(call.source) and not call.captured and call.size <= entries


@drawn
def test_what_graphs_read_of_the_host_stays(bundle: Path, tree: str) -> None:
    """A copy in a graph reads its source at each launch (ONNX Runtime writes tables of addresses for some operators).
    The target's graphs read none, whose every step would cost time."""
    tables = drawings(bundle, tree).tables
    assert tree != PLAIN or not tables
    for address, content in tables.items():
        assert ctypes.string_at(address, len(content)) == content


def test_two_addresses_would_be_copied(tmp_path: Path) -> None:
    """What the test above would see if a cache were not bound as it is."""
    engine, row = BACKEND.load(scatter_graph(tmp_path)), (1, HEADS, SLOTS, DIM)
    past, other = (BACKEND.buffer(row, "float32", "device") for _ in range(2))
    written = BACKEND.buffer((1, HEADS, 3, DIM), "float32", "in")
    given = {"past_key.0": past, "written": written, "write_index": BACKEND.buffer((1,), "int64", "in")}
    for present, wanted in ((past, []), (other, [past.nbytes])):
        call = engine.bind(given, {"present_key.0": present})
        forget()
        call.run()
        assert [made.size for made in calls("copy")] == wanted
