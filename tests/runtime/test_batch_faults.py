"""Faults of one image, of its numbers and of Ctrl-C, never reach another."""


from __future__ import annotations

import _thread
import threading
import time
from typing import Any

import numpy as np
import pytest
from playing import SETTINGS, Alone, request_of
from support import random_features

from cascade_trt.runtime.batch import Batch
from cascade_trt.runtime.errors import CascadeError
from cascade_trt.runtime.job import Job
from cascade_trt.runtime.options import DrawOptions
from cascade_trt.runtime.output import UnfinishedError
from cascade_trt.runtime.pipeline import Pipeline
from cascade_trt.runtime.request import Request
from cascade_trt.runtime.workspace import Workspace


@pytest.fixture(scope="module")
def alone(small_vocabulary: Pipeline) -> Alone:
    return Alone(small_vocabulary, "small_9")


@pytest.mark.parametrize("poison", [np.nan, 3e38, -3e38, np.inf])
@pytest.mark.parametrize("where", ["cache", "embeds", "drafter"])
@pytest.mark.parametrize("which", ["small_vocabulary", "apart"])
def test_nothing_survives_in_a_slot(
    request: pytest.FixtureRequest, alone: Alone, which: str, poison: float, where: str
) -> None:
    """A poisoned image is given up with a sentence; its neighbours and the next one in its slot are whole."""
    pipe: Pipeline = request.getfixturevalue(which)
    batch = pipe.batch(3, tree="small_9")
    asked = [(0, 1, 0), (1, 2, 0), (2, 1, 10), (3, 2, 0), (4, 3, 8), (5, 0, 1)]
    jobs = [batch.submit(request_of(pipe, p, seed, SETTINGS[setting])) for p, seed, setting in asked]
    batch.step()
    batch.step()
    assert not any(job.done for job in jobs)
    plant(batch, slot=1, poison=poison, where=where)
    while not batch.idle:
        batch.step()
    if where != "drafter":  # a drafter's numbers decide what is guessed, never what is drawn
        with pytest.raises(CascadeError, match="left the range of the engines' numbers"):
            jobs[1].result()
        jobs.pop(1)
        asked.pop(1)
    for job, what in zip(jobs, asked, strict=True):
        np.testing.assert_array_equal(job.result().codes, alone(*what))
        if what != asked[1]:  # a drafter's poison costs guesses, those of its own image only
            assert job.result().stats.rounds == alone.rounds(*what)


@pytest.mark.parametrize("poison", [np.nan, np.inf, 3e38])
@pytest.mark.parametrize("rule", ["exact", "strict", "strict-topk"])
def test_what_lies_in_a_slot_never_reaches_another_image(small_vocabulary: Pipeline, poison: float, rule: str) -> None:
    """Both caches poisoned when an image is cancelled: whoever is seated in its slot, or moved there, is whole."""
    alone = Alone(small_vocabulary, "small_9")
    setting = SETTINGS.index(DrawOptions() if rule == "exact" else DrawOptions(rule=rule))
    batch = small_vocabulary.batch(2, tree="small_9")

    def submit(prompt: int) -> Job:
        return batch.submit(request_of(small_vocabulary, prompt, 1, SETTINGS[setting]))

    def cancel_poisoned(job: Job) -> None:
        job.cancel()
        for cache in (batch.lane.memory.target, batch.lane.memory.drafter):
            assert cache is not None
            for buffer in cache.bindings(0, 2)[0].values():  # slot 0
                buffer.host[...] = poison

    first, second = submit(0), submit(1)
    batch.step()
    third = submit(2)
    cancel_poisoned(first)
    batch.step()  # the third image is seated in its place
    assert third.progress.tokens > 0 and first.failed
    cancel_poisoned(third)
    batch.step()  # the queue is empty: the second image moves there
    assert batch.busy == 1
    for prompt, job in ((1, second), (3, submit(3))):
        np.testing.assert_array_equal(job.result().codes, alone(prompt, 1, setting))
        assert job.result().stats.rounds == alone.rounds(prompt, 1, setting)
        assert job.result().stats.total_seconds > 0


@pytest.mark.parametrize("poison", [np.nan, 3e38])
def test_a_law_of_the_drafter_that_is_not_finite(small_vocabulary: Pipeline, alone, poison: float) -> None:
    """A rule that reads it would draw from nothing: the image is given up, its neighbour is whole."""
    batch = small_vocabulary.batch(2, tree="small_9", rule="strict")
    jobs = [batch.submit(request_of(small_vocabulary, p, 1, DrawOptions())) for p in (0, 1)]
    batch.step()
    plant(batch, slot=1, poison=poison, where="drafter")
    with pytest.raises(CascadeError, match="left the range of the engines' numbers"):
        jobs[1].result()
    np.testing.assert_array_equal(jobs[0].result().codes, alone(0, 1, 8))


def plant(batch: Batch, slot: int, poison: float, where: str) -> None:
    """Puts a value into what belongs to a slot, in the memory that engines read."""
    lane = batch.lane
    rows = (slot * lane.rows, (slot + 1) * lane.rows)
    if where == "embeds":
        embeds = lane.buffers.part(("embeds",), slot, slot + 1)["embeds"]
        # the drafter writes embeddings anew in each round, so the poison goes in right before the target runs
        run_target = lane.run_target

        def run(slots: int, fetch: Any) -> None:
            _memory(embeds)[...] = poison
            lane.run_target = run_target  # type: ignore[method-assign]
            run_target(slots, fetch)

        lane.run_target = run  # type: ignore[method-assign]
        return
    cache = lane.memory.target if where == "cache" else lane.memory.drafter
    assert cache is not None
    past, _ = cache.bindings(*rows)
    with np.errstate(over="ignore"):
        for name in ("past_key.0", "past_value.0"):
            _memory(past[name])[:, :, : lane.prefix_len + 2] = poison


def _memory(buffer: Any) -> np.ndarray:
    return (buffer.device if hasattr(buffer, "device") else buffer).host


def test_numbers_that_leave_the_range_in_the_conditioning(small_vocabulary: Pipeline, alone) -> None:
    """Finite features whose prefix is not: the image ends before it was begun, the others are whole."""
    pipe = small_vocabulary
    batch = pipe.batch(2, tree="small_9")
    good = request_of(pipe, 0, 1, DrawOptions())
    wild = Request(features=np.full_like(good.features, 3e38), features_mask=good.features_mask)
    jobs = [batch.submit(one) for one in (wild, good, wild, good)]
    while not batch.idle:
        batch.step()
    for job in (jobs[0], jobs[2]):
        with pytest.raises(CascadeError, match="leaves the range of the engines' numbers: check its features"):
            job.result()
    for job in (jobs[1], jobs[3]):
        np.testing.assert_array_equal(job.result().codes, alone(0, 1, 0))


def test_an_interrupted_round_ends_its_images_and_keeps_the_queue(small_vocabulary: Pipeline, alone) -> None:
    pipe = small_vocabulary
    batch = pipe.batch(2, tree="small_9")
    jobs = [batch.submit(request_of(pipe, p, 1, DrawOptions())) for p in range(3)]
    batch.step()
    run_target = batch.lane.run_target

    def interrupt(*_: Any) -> None:
        batch.lane.run_target = run_target  # type: ignore[method-assign]
        raise KeyboardInterrupt

    batch.lane.run_target = interrupt  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        batch.step()
    assert [job.failed for job in jobs] == [True, True, False]
    np.testing.assert_array_equal(jobs[2].result().codes, alone(2, 1, 0))
    with pytest.raises(CascadeError, match=r"the round broke off .*KeyboardInterrupt.*: submit it again"):
        jobs[0].result()


def test_a_prefix_that_is_not_finite_ends_its_image_alone(small_vocabulary: Pipeline, alone, monkeypatch) -> None:
    """Found in the prefill, behind the conditioning; the round goes on for the others."""
    batch, prefill = small_vocabulary.batch(2, tree="small_9"), Workspace.prefill
    calls: list[int] = []

    def second_fails(self: Workspace, slot: int, *rest: Any) -> int:
        calls.append(slot)
        token = prefill(self, slot, *rest)
        return -1 if len(calls) == 2 else token

    monkeypatch.setattr(Workspace, "prefill", second_fails)
    jobs = [batch.submit(request_of(small_vocabulary, p, 1, DrawOptions())) for p in range(3)]
    while not batch.idle:
        batch.step()
    with pytest.raises(CascadeError, match="left the range"):
        jobs[1].result()
    for prompt in (0, 2):
        np.testing.assert_array_equal(jobs[prompt].result().codes, alone(prompt, 1, 0))


@pytest.mark.parametrize("rule", ["exact", "ar"])
def test_ctrl_c_at_any_instant(small_vocabulary: Pipeline, alone, rule: str) -> None:
    """Every job ends, by an image that is right or with a sentence, and the batch draws on."""
    tree = "small_9" if rule == "exact" else None
    batch = small_vocabulary.batch(2, rule=rule, tree=tree)
    rng, interrupted = np.random.default_rng(0), 0
    for number in range(60):
        jobs = [batch.submit(request_of(small_vocabulary, p, 1, DrawOptions())) for p in (0, 1, 2)]
        timer = threading.Timer(float(rng.uniform(0, 0.03)), _thread.interrupt_main)
        try:
            timer.start()
            while not batch.idle:
                batch.step()
            timer.join()
            time.sleep(0.001)  # where it came too late, it comes here
        except KeyboardInterrupt:
            interrupted += 1
        timer.join()
        while not batch.idle:
            batch.step()
        for prompt, job in enumerate(jobs):
            assert job.done, number
            if not job.failed:
                np.testing.assert_array_equal(job.result().codes, alone(prompt, 1, 0 if rule == "exact" else 1))
    assert interrupted > 10
    job = batch.submit(request_of(small_vocabulary, 3, 1, DrawOptions()))
    np.testing.assert_array_equal(job.result().codes, alone(3, 1, 0))


@pytest.mark.parametrize("value", [3e38, -3e38, 1e30, 1e20])
@pytest.mark.parametrize("everywhere", [True, False])
def test_images_behind_one_that_overflowed(small_vocabulary: Pipeline, value: float, everywhere: bool) -> None:
    """On one pipeline; a single wild number in the prefix is told, too: a norm would make zeros of its slot."""
    pipe, given = small_vocabulary, random_features(small_vocabulary, 3)
    want = pipe.generate(**given, seed=1).codes
    wild = given["features"][:1].copy()
    wild[0, -1 if everywhere else 2, slice(None) if everywhere else 3] = value
    with pytest.raises(CascadeError, match="range of the engines' numbers"):
        pipe.generate(features=wild)
    np.testing.assert_array_equal(pipe.generate(**given, seed=1).codes, want)


@pytest.mark.parametrize("tree", ["small_9", "chain", "jacobi_6"])
@pytest.mark.parametrize("at", ["window", "begin", "draft"])
def test_an_interrupted_draft_leaves_nothing(
    small_vocabulary: Pipeline, monkeypatch: pytest.MonkeyPatch, tree: str, at: str
) -> None:
    """Ctrl-C while the first noise is made, in the first draft call, in a later one; then the same seed again."""
    pipe, given = small_vocabulary, random_features(small_vocabulary, 3)
    want = pipe.generate(**given, seed=41, rule="ar").codes
    calls: list[int] = []

    def interrupt(*_: Any, **__: Any) -> None:
        calls.append(1)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if at == "window":
            patch.setattr("cascade_trt.runtime.noise.gumbel", interrupt)
        else:
            source = pipe._shared_rounds(2)[-1].lanes[tree].source
            patch.setattr(type(source), at, interrupt)
        with pytest.raises(KeyboardInterrupt):
            pipe.generate(**given, seed=41, tree=tree)
    assert calls
    np.testing.assert_array_equal(pipe.generate(**given, seed=41, tree=tree).codes, want)


class Blots:
    """A decoder whose pixels are not finite for one image."""

    def __init__(self, engine: Any, codes: np.ndarray, value: float) -> None:
        self.engine, self.codes, self.value = engine, codes, value

    def dtype(self, name: str) -> str:
        return self.engine.dtype(name)

    def bind(self, inputs: Any, outputs: Any) -> Any:
        call, blots = self.engine.bind(inputs, outputs), self

        class Call:
            def run(self, fetch: Any = ()) -> None:
                call.run(fetch)
                if np.array_equal(inputs["codes"].host[0], blots.codes):
                    outputs["image"].host[0, 1, 2, 3] = blots.value

        return Call()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_not_finite(small_vocabulary: Pipeline, value: float) -> None:
    """Their image ends with a sentence and is never handed out; the others are whole."""
    pipe = Pipeline.load(small_vocabulary.folder, threads=1, warm=False)
    given = random_features(pipe, 3)
    want = pipe.generate(**given, seed=1)
    pipe.wrap_engines(lambda name, engine: Blots(engine, want.codes[1], value) if name == "decode" else engine)
    with pytest.raises(UnfinishedError, match=r"its pixels left the range .* Not finished: 2 of 3") as caught:
        pipe.generate(**given, seed=1)
    assert caught.value.output.places == [0, 2]
    for place, image in zip((0, 2), caught.value.output.images, strict=True):
        np.testing.assert_array_equal(np.asarray(image), np.asarray(want.images[place]))
