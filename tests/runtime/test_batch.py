"""Slots in continuous use: an image depends on its request and its seed, on nothing else."""

from __future__ import annotations

import _thread
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from apart import ApartBackend, ApartCall
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import random_features

from cascade_trt.runtime import loop
from cascade_trt.runtime.batch import Batch
from cascade_trt.runtime.errors import CascadeError
from cascade_trt.runtime.job import CancelledError, Job, TimedOutError
from cascade_trt.runtime.lane import Lane
from cascade_trt.runtime.noise import Stream, gumbel
from cascade_trt.runtime.options import DrawOptions
from cascade_trt.runtime.pipeline import Output, Pipeline
from cascade_trt.runtime.request import Request
from cascade_trt.runtime.sampling import Sampling, kept

PROMPTS = 6
SETTINGS = [
    DrawOptions(), DrawOptions(rule="ar"), DrawOptions(temperature=0.7), DrawOptions(top_k=3),
    DrawOptions(top_p=0.8), DrawOptions(guidance_scale=1.0), DrawOptions(guidance_scale=4.0, top_k=5, top_p=0.9),
    DrawOptions(temperature=0), DrawOptions(rule="strict"), DrawOptions(rule="strict-topk"),
    DrawOptions(rule="cascade:children=coupled,tau_pos=0.2,tau_seq=0.5"), DrawOptions(rule="cool:delta=2"),
]  # fmt: skip


@pytest.fixture(scope="module")
def apart(small_vocabulary: Pipeline) -> Pipeline:
    """The same bundle on device memory of its own; outputs that nobody asked for are spoilt."""
    return Pipeline.load(small_vocabulary.folder, backend=ApartBackend())


@pytest.fixture
def spoilt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ApartCall, "spoils", True)


def request_of(pipe: Pipeline, prompt: int, seed: int, options: DrawOptions) -> Request:
    given = random_features(pipe, PROMPTS)
    return Request(features=given["features"][prompt], features_mask=given["features_mask"][prompt], seed=seed,
                   options=options)  # fmt: skip


class Alone:
    """The codes of a request drawn by `generate` with nothing beside it, each drawn once; and the rounds it took."""

    def __init__(self, pipe: Pipeline, tree: str) -> None:
        self.pipe, self.tree, self.known = pipe, tree, {}

    def __call__(self, prompt: int, seed: int, setting: int) -> np.ndarray:
        return self.output(prompt, seed, setting).codes[0]

    def rounds(self, prompt: int, seed: int, setting: int) -> int:
        return int(self.output(prompt, seed, setting).rounds[0])

    def output(self, prompt: int, seed: int, setting: int) -> Output:
        key = (prompt, seed, setting)
        if key not in self.known:
            given = random_features(self.pipe, PROMPTS)
            one = {name: array[prompt : prompt + 1] for name, array in given.items()}
            options = SETTINGS[setting].updated({"tree": self.tree})
            self.known[key] = self.pipe.generate(**one, seed=seed, options=options)
        return self.known[key]


@pytest.fixture(scope="module")
def alone(small_vocabulary: Pipeline) -> Alone:
    return Alone(small_vocabulary, "small_9")


job_settings = st.tuples(st.integers(0, PROMPTS - 1), st.integers(0, 3), st.integers(0, len(SETTINGS) - 1))
events = st.lists(
    job_settings | st.tuples(st.just("steps"), st.integers(1, 6)) | st.tuples(st.just("cancel"), st.integers(0, 9)),
    min_size=3, max_size=14,
)  # fmt: skip


def play(pipe: Pipeline, batch: Batch, happenings: list[Any], alone: Alone) -> int:
    """Submits, steps and cancels as told, then goes on to the end; returns how many images were compared."""
    jobs: list[tuple[Job, tuple[int, int, int]]] = []
    for what in happenings:
        if what[0] == "steps":
            for _ in range(what[1]):
                batch.step()
        elif what[0] == "cancel":
            if jobs:
                jobs[what[1] % len(jobs)][0].cancel()
        else:
            jobs.append((batch.submit(request_of(pipe, what[0], what[1], SETTINGS[what[2]])), what))
    while not batch.idle:
        batch.step()
    compared = 0
    for job, what in jobs:
        assert job.done
        if job.failed:
            with pytest.raises(CancelledError):
                job.result()
            continue
        drawn = job.result()
        np.testing.assert_array_equal(drawn.codes, alone(*what), err_msg=f"{what}")
        assert drawn.seed == what[1] and drawn.stats.images == 1
        assert drawn.stats.rounds == alone.rounds(*what)  # the very same guesses were made
        compared += 1
    return compared


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(happenings=events, slots=st.integers(1, 4))
def test_every_image_equals_the_one_drawn_alone(
    small_vocabulary: Pipeline, alone: Alone, happenings: list[Any], slots: int
) -> None:
    """Whatever joins, leaves, is cancelled or draws beside it, with whichever settings."""
    play(small_vocabulary, small_vocabulary.batch(slots, tree="small_9"), happenings, alone)


@pytest.mark.usefixtures("spoilt")
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(happenings=events, slots=st.integers(1, 4))
def test_on_a_device_too(
    apart: Pipeline, alone: Alone, happenings: list[Any], slots: int
) -> None:  # fmt: skip
    """With memory apart, calls for 1, 2, 4 slots, and nothing readable but what was fetched."""
    play(apart, apart.batch(slots, tree="small_9"), happenings, alone)


@pytest.mark.parametrize("tree", ["chain", "naive_extend_57"])
def test_many_images_through_few_slots(small_vocabulary: Pipeline, tree: str) -> None:
    happenings = [(number % PROMPTS, number // 4, number % len(SETTINGS)) for number in range(16)]
    batch = small_vocabulary.batch(3, tree=tree)
    assert play(small_vocabulary, batch, happenings, Alone(small_vocabulary, tree)) == 16
    assert batch.stats.images == 16


@pytest.mark.parametrize("which", ["tiny", "tiny_apart"])
@pytest.mark.usefixtures("spoilt")
def test_dynamic_trees(request: pytest.FixtureRequest, which: str) -> None:
    """Chosen anew for every slot in every round."""
    pipe: Pipeline = request.getfixturevalue(which)
    happenings = [(0, 1, 0), (1, 2, 1), ("steps", 3), (2, 3, 3), ("cancel", 1), (3, 4, 9), (4, 5, 10)]
    assert play(pipe, pipe.batch(2, tree="eagle2_60"), happenings, Alone(pipe, "eagle2_60")) == 4


@pytest.fixture(scope="module")
def tiny_apart(tiny: Pipeline) -> Pipeline:
    return Pipeline.load(tiny.folder, backend=ApartBackend())


def test_a_lantern_drafter_sees_the_padding(small_vocabulary: Pipeline) -> None:
    """As it was trained, whatever the length of the caption; the target does not."""
    batch = small_vocabulary.batch(2, tree="small_9")
    for p in (0, 4):
        batch.submit(request_of(small_vocabulary, p, 0, DrawOptions()))
    batch.step()
    assert batch.lane.pair_mask.all()
    np.testing.assert_array_equal(
        batch.lane.cache_mask[:, :6], random_features(small_vocabulary, PROMPTS)["features_mask"][[0, 0, 4, 4]]
    )


def test_cancel_in_a_signal_handler_does_not_wait_for_itself(small_vocabulary: Pipeline, monkeypatch) -> None:
    """It comes while the same thread holds the queue; the next step ends the job."""
    batch = small_vocabulary.batch(1, tree="small_9")
    jobs = [batch.submit(request_of(small_vocabulary, 0, 0, DrawOptions())) for _ in range(3)]
    due = Job.due

    def handler(self: Job) -> CascadeError | None:
        jobs[2].cancel()
        return due(self)

    monkeypatch.setattr(Job, "due", handler)
    batch.step()
    monkeypatch.undo()
    batch.step()
    assert jobs[2].failed and not jobs[0].failed


def test_plain_batches(small_vocabulary: Pipeline) -> None:
    """Without a tree, jobs of different settings share a batch as well."""
    batch = small_vocabulary.batch(2, rule="ar")
    asked = ((0, 0), (1, 2), (2, 4))
    jobs = [batch.submit(request_of(small_vocabulary, p, 5, DrawOptions(top_k=top_k))) for p, top_k in asked]
    for (prompt, top_k), job in zip(asked, jobs, strict=True):
        given = {name: array[prompt : prompt + 1] for name, array in random_features(small_vocabulary, PROMPTS).items()}
        wanted = small_vocabulary.generate(**given, seed=5, rule="ar", top_k=top_k).codes[0]
        np.testing.assert_array_equal(job.result().codes, wanted)


def test_settings_reach_the_sampler(small_vocabulary: Pipeline) -> None:
    """Every slot's draws are those of the numpy reference, from its own logits with its own settings."""
    batch = small_vocabulary.batch(4, rule="ar")
    kinds = [DrawOptions(), DrawOptions(temperature=0), DrawOptions(top_k=2), DrawOptions(top_p=0.3),
             DrawOptions(temperature=0.5, top_k=5, top_p=0.9), DrawOptions(guidance_scale=1.0)]  # fmt: skip
    jobs = [batch.submit(request_of(small_vocabulary, p, p, options)) for p, options in enumerate(kinds)]
    seated, checked = {}, 0
    while not batch.idle:
        waiting = [job for job in jobs if not job.done and job.progress.tokens == 0]
        before = {slot: entry for slot, entry in enumerate(batch._slots) if entry is not None}
        batch.step()
        seated.update({slot: entry for slot, entry in enumerate(batch._slots) if entry is not None})
        for slot, entry in seated.items():
            if entry.job.done or entry.job in waiting or before.get(slot) is not entry:
                continue
            sequence, lane = entry.sequence, batch.lane
            assert sequence is not None
            sampling, position = sequence.sampling, sequence.done - 1
            count = kept(lane.logits[slot, 0], sampling)
            noise = gumbel(sequence.seed, position, Stream.TOKEN, 8)
            ids = lane.kept_ids[slot, 0, :count]
            race = lane.logits[slot, 0, :count] + (0 if sampling.greedy else noise[ids])
            assert sequence.tokens[position] == ids[np.argmax(race)]
            checked += 1
    assert checked > 150


def test_a_slot_gets_the_settings_of_its_image(small_vocabulary: Pipeline) -> None:
    """Guidance as weights of both rows, a greedy image as the best of one, no cut as all logits."""
    lane = small_vocabulary.batch(2, tree="chain").lane
    for slot, sampling, wanted in (
        (0, Sampling(3.0, 0.5, 4, 0.9), ([3, -2], 0.5, 4, 0.9)), (1, Sampling(1.0, 0.0, 5, 1.0), ([1, 0], 1, 1, 1)),
        (1, Sampling(0.0, 1.0, 0, 0.25), ([0, 1], 1, 8, 0.25)),
    ):  # fmt: skip
        loop.set_up(lane, slot, sampling)
        guidance, temperature, top_k, top_p = wanted
        np.testing.assert_array_equal(lane.guidance[slot], guidance)
        assert (lane.temperature[slot], lane.top_k[slot]) == (temperature, top_k)
        assert lane.top_p[slot] == pytest.approx(top_p)
    np.testing.assert_array_equal(lane.guidance[0], [3, -2])  # the other slot's stay


# one job ----------------------------------------------------------------------------------------------------
def test_progress_previews_and_the_time_left(small_vocabulary: Pipeline) -> None:
    batch = small_vocabulary.batch(1, tree="small_9")
    first, second = (batch.submit(request_of(small_vocabulary, 0, seed, DrawOptions())) for seed in (1, 2))
    assert first.progress.tokens == 0 and first.progress.remaining is None
    assert (batch.busy, batch.waiting) == (0, 2)
    waiting = np.asarray(second.preview())
    assert (waiting == waiting[0, 0]).all()  # grey: nothing is drawn
    seen = []
    while not first.done:
        batch.step()
        progress = first.progress
        seen.append(progress.tokens)
        if not first.done:
            assert progress.total == 36 and progress.seconds > 0
            pace = progress.seconds / progress.tokens
            assert progress.remaining == pytest.approx((36 - progress.tokens) * pace)
    assert seen == sorted(seen) and seen[-1] == 36
    assert first.progress.remaining == 0
    assert np.array_equal(np.asarray(first.preview()), np.asarray(first.result().image))
    batch.step()
    assert batch.busy == 1 and batch.waiting == 0 and second.progress.tokens > 0


def test_a_preview_is_the_image_so_far(small_vocabulary: Pipeline) -> None:
    """Rows of tokens far above the newest one look as they will; cells without a token are grey."""
    batch = small_vocabulary.batch(1, tree="chain")
    job = batch.submit(request_of(small_vocabulary, 1, 3, DrawOptions()))
    while job.progress.tokens < 20:
        batch.step()
    drawn, preview = job.progress.tokens, np.asarray(job.preview())
    side = small_vocabulary.manifest.model.pixels
    row, column = divmod(drawn, 6)
    grey = preview[row * side : (row + 1) * side, column * side :]
    assert (grey == 232).all() and (preview[(row + 1) * side :] == 232).all()
    whole = np.asarray(job.result().image)
    assert not (preview[: row * side] == 232).all(axis=-1).all()
    assert np.abs(preview[:side].astype(int) - whole[:side]).mean() < np.abs(whole[:side].astype(int) - 232).mean()


def test_cancelling_frees_the_slot(small_vocabulary: Pipeline) -> None:
    batch = small_vocabulary.batch(2, tree="small_9")
    jobs = [batch.submit(request_of(small_vocabulary, p, 0, DrawOptions())) for p in range(4)]
    batch.step()
    jobs[3].cancel()  # queued: it ends at once
    assert jobs[3].done and batch.waiting == 1
    jobs[0].cancel()  # in a slot: it ends before the next round
    assert not jobs[0].done
    batch.step()
    assert jobs[0].failed and jobs[2].progress.tokens > 0 and batch.busy == 2
    for job in (jobs[0], jobs[3]):
        with pytest.raises(CancelledError, match="cancelled"):
            job.result()
    assert jobs[1].result().seed == jobs[2].result().seed == 0
    jobs[1].cancel()  # too late: without effect
    assert jobs[1].result() is jobs[1].result()


def test_a_timeout_ends_a_job_in_the_queue_and_in_a_slot(small_vocabulary: Pipeline, monkeypatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("cascade_trt.runtime.batch.time.monotonic", lambda: clock[0])
    batch = small_vocabulary.batch(1, tree="small_9")
    fast, slow, queued = (
        batch.submit(request_of(small_vocabulary, 0, 0, DrawOptions(timeout=seconds))) for seconds in (500, 20, 10)
    )
    batch.step()
    clock[0] += 15
    batch.step()
    assert queued.failed and not slow.done
    fast.result()
    batch.step()
    clock[0] += 15
    with pytest.raises(TimedOutError, match="within its timeout of 20 s"):
        slow.result()
    assert batch.idle


def test_another_thread_may_submit_and_cancel(small_vocabulary: Pipeline) -> None:
    batch = small_vocabulary.batch(2, tree="small_9")
    kept: list[Job] = []

    def feed() -> None:
        for number in range(12):
            job = batch.submit(request_of(small_vocabulary, number % PROMPTS, number, DrawOptions()))
            job.cancel() if number % 3 == 2 else kept.append(job)

    thread = threading.Thread(target=feed)
    thread.start()
    while thread.is_alive() or not batch.idle:
        batch.step()
    thread.join()
    assert [job.result().seed for job in kept] == [number for number in range(12) if number % 3 != 2]


def test_a_text_is_a_request(text_bundle: Path) -> None:
    pipe = Pipeline.load(text_bundle, threads=1)
    batch = pipe.batch(2)
    wanted = pipe.generate(["a red apple"]).codes[0]
    np.testing.assert_array_equal(batch.submit("a red apple").result().codes, wanted)
    assert batch.stats.images_per_second > 0
    for odd in (5, None, ["a red apple"], Request("red", options={"rule": "ar"})):  # type: ignore[arg-type]
        with pytest.raises(CascadeError, match="submit takes a text or a Request"):
            batch.submit(odd)  # type: ignore[arg-type]


def test_what_a_batch_cannot_serve_is_refused(small_vocabulary: Pipeline) -> None:
    pipe = small_vocabulary
    tree = pipe.batch(1, tree="small_9")
    with pytest.raises(CascadeError, match="draws with the tree small_9, the image needs chain"):
        tree.submit(request_of(pipe, 0, 0, DrawOptions(tree="chain")))
    with pytest.raises(CascadeError, match="draws without a tree"):
        pipe.batch(1, rule="ar").submit(request_of(pipe, 0, 0, DrawOptions(rule="exact")))
    with pytest.raises(CascadeError, match="without guidance"):
        pipe.batch(1, guidance_scale=1).submit(request_of(pipe, 0, 0, DrawOptions(guidance_scale=2)))
    for slots in (0, -1, 1.5, True, "2"):
        with pytest.raises(CascadeError, match="slots must be a whole number"):
            pipe.batch(slots)  # type: ignore[arg-type]
    with pytest.raises(CascadeError, match="unknown option 'colour'"):
        pipe.batch(1, colour="red")  # type: ignore[call-arg]
    assert tree.idle


# faults -----------------------------------------------------------------------------------------------------
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
        engine, name = "draft.small_9", "embeds"
        target = lane._engines[engine]
        assert target is not None
        bound = lane._bound["target", max(size for kind, size in lane._bound if kind == "target")]
        buffer = _bound_buffer(bound, name)
        # the drafter writes embeddings anew in each round, so the poison goes in right before the target runs
        run_target = lane.run_target

        def run(slots: int, fetch: Any) -> None:
            _memory(buffer)[rows[0] : rows[1]] = poison
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


def _bound_buffer(call: Any, name: str) -> Any:
    return call._bound[name] if hasattr(call, "_bound") else call._inputs[name]


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
    batch, prefill = small_vocabulary.batch(2, tree="small_9"), Lane.prefill
    calls: list[int] = []

    def second_fails(self: Lane, slot: int, *rest: Any) -> int:
        calls.append(slot)
        token = prefill(self, slot, *rest)
        return -1 if len(calls) == 2 else token

    monkeypatch.setattr(Lane, "prefill", second_fails)
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
