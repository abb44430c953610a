"""Rounds on the device, on the stand-in: what a round queues when kernels do the host's part of it.

The stand-in's memory is the host's, so our own kernels, compiled by g++, run in it for real. ONNX Runtime's do nothing:
every token is 0 and every guess is right, so images are drawn to their end, and mean nothing.
"""

from __future__ import annotations

import ctypes
import os
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from kernels.cpu import compile_library
from stand_in.calls import Call, calls, forget
from stand_in.inside_rounds import PLAIN, WithoutImages, given_for

from cascade_trt.runtime.backends.device import CudaDevice
from cascade_trt.runtime.backends.kernels.info import KernelInfo
from cascade_trt.runtime.backends.kernels.on_cuda import CudaKernels
from cascade_trt.runtime.bundle import read_manifest
from cascade_trt.runtime.device_rounds import DeviceRounds
from cascade_trt.runtime.pipeline import Pipeline
from cascade_trt.runtime.request import Request

BUNDLES = [Path(name) for name in os.environ["CASCADE_STAND_IN_BUNDLES"].split(os.pathsep)]
KERNELS = ("noise", "pairs", "place", "walk", "walk_by_rule", "commit", "advance")


class Running(CudaKernels):
    """Launches as always, which the stand-in notes down, and runs the kernel."""

    def __init__(self, device: CudaDevice, library: ctypes.CDLL) -> None:
        super().__init__(device, " ".join(KERNELS).encode())
        self._library = library

    def launch(self, name: str, grid: tuple[int, int, int], threads: int, *arguments: ctypes.Structure) -> None:
        super().launch(name, grid, threads, *arguments)
        threads = min(threads, 4) if name == "walk_by_rule" else threads  # a fiber each
        getattr(self._library, f"run_{name}")(*map(ctypes.byref, arguments), (ctypes.c_int * 3)(*grid), threads)


class WithKernels(WithoutImages):
    def kernels(self, bundle: Path, compiled: Sequence[KernelInfo]) -> Running:  # noqa: ARG002 - for this CPU
        return Running(self.device, _library())


@cache
def _library() -> ctypes.CDLL:
    folder = Path(os.environ["CASCADE_STAND_IN_FOLDER"])
    return compile_library(folder)


def drawing(bundle: Path, tree: str, levels: int) -> tuple[Pipeline, list[list[Call]], Any]:
    """The calls of each round of a second drawing: calls are captured in the first one. The first rounds are left away,
    and those before which an image may end."""
    pipe, rounds = Pipeline.load(bundle, WithKernels(), warm=False), []

    def note(done: int, total: int) -> None:
        if total - done > 2 * levels * pipe.manifest.batch:
            rounds.append(calls())
        forget()

    options = {"rule": "ar"} if tree == PLAIN else {"rule": "exact", "tree": tree}
    pipe.generate(**given_for(pipe), **options)
    forget()
    output = pipe.generate(**given_for(pipe), **options, callback=note)
    return pipe, rounds[3:], output


def cases() -> list[Any]:
    trees = {bundle: (PLAIN, *(tree.name for tree in read_manifest(bundle).trees)) for bundle in BUNDLES}
    return [pytest.param(bundle, tree, id=f"{bundle.name}-{tree}") for bundle, names in trees.items() for tree in names]


@pytest.mark.parametrize(("bundle", "tree"), cases())
def test_a_steady_round_waits_for_its_record_alone(bundle: Path, tree: str) -> None:
    """Its engines are one graph launch each, its kernels one launch each, all on the stream of rounds. Nothing is sent,
    allocated or captured; one record comes back, and the host waits for that of the round before."""
    shape = None if tree == PLAIN else read_manifest(bundle).tree(tree).tree()
    levels = 1 if shape is None else shape.depth + 1
    pipe, rounds, output = drawing(bundle, tree, levels)
    assert not output.codes.any() and len(rounds) > 1
    drafted = shape is not None and shape.drafted is not None
    mixed = drafted and bool(getattr(shape, "guessed", ()))
    graphs = 1 + drafted + (mixed or not drafted)  # the target, a drafter, what embeds guesses
    kernels = 5 + drafted + mixed  # noise, place, walk, commit, advance; pairs; the noise of a drafter's own levels
    for made in rounds:
        kinds = Counter(call.kind for call in made)
        assert kinds == {"graph": graphs, "launch": kernels, "download": 1, "record": 1, "synchronize": 1}, made
        assert {call.size for call in made if call.kind == "download"} == {pipe.manifest.batch * 4 * (3 + 3 * levels)}
        assert not any(call.captured for call in made)
        assert {call.stream for call in made if call.kind != "synchronize"} == {stream_of(pipe)}
    assert isinstance(pipe._shared_rounds(2 if pipe.manifest.sampling.guidance_scale != 1 else 1)[0], DeviceRounds)


def stream_of(pipe: Pipeline, beside: bool = False) -> int:
    device = pipe.backend.backend.device  # type: ignore[attr-defined]
    return (device.beside if beside else device).stream


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_the_next_images_are_conditioned_beside_rounds(bundle: Path) -> None:
    """A step that begins with it queues more on the second stream, and waits for nothing there: for one record, as
    always. The prefix is waited for when the image gets its slot, and nothing is allocated for it by then."""
    pipe = Pipeline.load(bundle, WithKernels(), warm=False)
    rounds, beside = stream_of(pipe), stream_of(pipe, beside=True)
    batch = pipe.batch(rule="exact", tree=pipe.manifest.trees[0].name)
    given = given_for(pipe)
    requests = [Request(prompt) for prompt in given.get("prompts", ())] or [
        Request(features=features, features_mask=mask)
        for features, mask in zip(given["features"], given["features_mask"], strict=True)
    ]
    marks: dict[int, int] = {}  # events, and the streams that they were recorded on

    def step(*more: Request) -> tuple[list[Call], list[int | None]]:
        """What a step calls, and the streams of the events that the host has waited for."""
        for request in more:
            batch.submit(request)
        forget()
        batch.step()
        made = calls()
        marks.update({call.to: call.stream for call in made if call.kind == "record"})
        return made, [marks.get(call.to) for call in made if call.kind == "synchronize" and call.to]

    step(*requests, *requests)  # ONNX Runtime plans its memory in the first run of a call, and allocates in the second
    while batch.waiting:
        step()
    for number in range(3):
        made, waited = step(*(requests if number == 1 else ()))
        queued = Counter(call.kind for call in made if call.stream == beside)
        assert waited == [rounds] and batch.waiting == len(requests) * (number > 0)
        assert bool(queued) == (number > 0 and number <= len(requests))
        if queued:
            assert queued["launch"] + queued["product"]
            assert queued["download"] == queued["record"] == 1 and not queued["synchronize"]
            assert not any(call.kind == "allocate" for call in made)
    while batch.waiting:
        made, waited = step()
    assert waited.count(beside) == len(requests) and not any(call.kind == "allocate" for call in made)
    batch.drain()


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_the_first_images_capture_nothing(bundle: Path) -> None:
    """Of a pipeline that is loaded as usual: all calls on its slots, and those that fill each slot, are graphs by
    then, and what runs once an image has run."""
    forget()
    pipe = Pipeline.load(bundle, WithKernels())
    tree = pipe.manifest.trees[0].name
    assert calls("capture")
    forget()
    pipe.generate(**given_for(pipe), rule="exact", tree=tree)
    assert calls("graph") and not calls("capture")
    assert {call.name for call in calls("launch") if call.stream == stream_of(pipe)} <= set(KERNELS)  # no plain run
    batch = pipe.batch(tree=tree)
    assert calls("capture") and batch.idle
