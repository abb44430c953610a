"""Slots in continuous use: an image depends on its request and its seed, on nothing else."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from apart import ApartBackend
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from playing import PROMPTS, SETTINGS, Alone, events, play, request_of
from support import random_features

from cascade_trt.runtime.conditioner import Prefix
from cascade_trt.runtime.errors import CascadeError
from cascade_trt.runtime.job import CancelledError, Job, TimedOutError
from cascade_trt.runtime.noise import Stream, gumbel
from cascade_trt.runtime.options import DrawOptions
from cascade_trt.runtime.pipeline import Pipeline
from cascade_trt.runtime.request import Request
from cascade_trt.runtime.sampling import Sampling, kept


@pytest.fixture(scope="module")
def alone(small_vocabulary: Pipeline) -> Alone:
    return Alone(small_vocabulary, "small_9")


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(happenings=events(), slots=st.integers(1, 4))
def test_every_image_equals_the_one_drawn_alone(
    small_vocabulary: Pipeline, alone: Alone, happenings: list[Any], slots: int
) -> None:
    """Whatever joins, leaves, is cancelled or draws beside it, with whichever settings."""
    play(small_vocabulary, small_vocabulary.batch(slots, tree="small_9"), happenings, alone)


@pytest.mark.usefixtures("spoilt")
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(happenings=events(), slots=st.integers(1, 4))
def test_on_a_device_too(
    apart: Pipeline, alone: Alone, happenings: list[Any], slots: int
) -> None:  # fmt: skip
    """With memory apart, calls for 1, 2, 4 slots, and nothing readable but what was fetched."""
    play(apart, apart.batch(slots, tree="small_9"), happenings, alone)


@pytest.mark.parametrize("tree", ["chain", "naive_extend_57"])
def test_many_images_through_few_slots(small_vocabulary: Pipeline, tree: str) -> None:
    happenings = [(number % PROMPTS, number // 4, number % len(SETTINGS)) for number in range(16)]
    batch = small_vocabulary.batch(3, tree=tree)
    assert len(play(small_vocabulary, batch, happenings, Alone(small_vocabulary, tree))) == 16
    assert batch.stats.images == 16


@pytest.mark.parametrize("which", ["tiny", "tiny_apart"])
@pytest.mark.usefixtures("spoilt")
def test_dynamic_trees(request: pytest.FixtureRequest, which: str) -> None:
    """Chosen anew for every slot in every round."""
    pipe: Pipeline = request.getfixturevalue(which)
    happenings = [(0, 1, 0), (1, 2, 1), ("steps", 3), (2, 3, 3), ("cancel", 1), (3, 4, 9), (4, 5, 10)]
    assert len(play(pipe, pipe.batch(2, tree="eagle2_60"), happenings, Alone(pipe, "eagle2_60"))) == 4


@pytest.fixture(scope="module")
def tiny_apart(tiny: Pipeline) -> Pipeline:
    return Pipeline.load(tiny.folder, backend=ApartBackend())


def test_a_lantern_drafter_sees_the_padding(small_vocabulary: Pipeline) -> None:
    """As it was trained, whatever the length of the caption; the target does not."""
    batch = small_vocabulary.batch(2, tree="small_9")
    for p in (0, 4):
        batch.submit(request_of(small_vocabulary, p, 0, DrawOptions()))
    batch.step()
    workspace, mask = batch.lane.workspace, random_features(small_vocabulary, PROMPTS)["features_mask"]
    assert workspace.pair_mask.all()
    np.testing.assert_array_equal(workspace.cache_mask[:, :6], mask[[0, 0, 4, 4]])


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


def test_plain_decoding_in_a_tree_draws_every_token(small_vocabulary: Pipeline) -> None:
    """What was guessed right beside it counts for nothing."""
    pipe = small_vocabulary
    batch = pipe.batch(1, tree="small_9")
    drawn = batch.submit(request_of(pipe, 0, 5, DrawOptions(rule="ar"))).result()
    tokens = pipe.manifest.model.plan.image_tokens
    assert drawn.stats.causes["drawn"] == sum(drawn.stats.causes.values()) == tokens
    assert drawn.stats.rounds == tokens - 1 and drawn.stats.trees == {"small_9": tokens - 1}


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
    workspace = small_vocabulary.workspace(slots=2)
    prefix = Prefix(None, np.tri(2, 6, 3, dtype=bool), np.zeros(2, np.int64))  # type: ignore[arg-type]
    for slot, sampling, wanted in (
        (0, Sampling(3.0, 0.5, 4, 0.9), ([3, -2], 0.5, 4, 0.9)), (1, Sampling(1.0, 0.0, 5, 1.0), ([1, 0], 1, 1, 1)),
        (1, Sampling(0.0, 1.0, 0, 0.25), ([0, 1], 1, 8, 0.25)),
    ):  # fmt: skip
        workspace.set_up(slot, sampling, prefix)
        guidance, temperature, top_k, top_p = wanted
        np.testing.assert_array_equal(workspace.guidance[slot], guidance)
        assert (workspace.temperature[slot], workspace.top_k[slot]) == (temperature, top_k)
        assert workspace.top_p[slot] == pytest.approx(top_p)
        np.testing.assert_array_equal(workspace.cache_mask[workspace.rows_of(slot), :6], prefix.mask)
    np.testing.assert_array_equal(workspace.guidance[0], [3, -2])  # the other slot's stay


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
    monkeypatch.setattr("cascade_trt.runtime.job.time.monotonic", lambda: clock[0])
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
