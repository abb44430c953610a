"""Rounds on a device under everything that happens to a batch: arrivals, cancellations, faults, Ctrl-C."""

from __future__ import annotations

import _thread
import ctypes
import gc
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from apart import ApartBuffer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernels.backend import KernelsBackend, Pair
from playing import PROMPTS, SETTINGS, Alone, events, play, request_of
from support import random_features

from cascade_trt.runtime.device_rounds import DeviceRounds
from cascade_trt.runtime.errors import CascadeError
from cascade_trt.runtime.options import DrawOptions
from cascade_trt.runtime.pipeline import Pipeline
from cascade_trt.runtime.request import Request
from cascade_trt.runtime.rounds import HostRounds

PLAIN, COOL = SETTINGS.index(DrawOptions(rule="ar")), SETTINGS.index(DrawOptions(rule="cool:delta=2"))


@pytest.fixture(scope="module")
def alone(small_vocabulary: Pipeline) -> Alone:
    return Alone(small_vocabulary, "small_9")


@pytest.mark.usefixtures("spoilt")
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(happenings=events(), slots=st.integers(1, 4))
def test_every_image_equals_the_one_drawn_alone(small: Pair, alone: Alone, happenings: list[Any], slots: int) -> None:
    """Among them are images of a rule that the host walks by, and outputs are spoilt unless they are fetched."""
    kernels = small.backend.of_rounds
    kernels.under_way = 0
    play(small.on_device, small.on_device.batch(slots, tree="small_9"), happenings, alone)
    assert kernels.under_way == 0


def test_many_images_through_few_slots(small: Pair) -> None:
    happenings = [(number % PROMPTS, number // 4, number % len(SETTINGS)) for number in range(16)]
    batch = small.on_device.batch(3, tree="mixed_4")
    chosen = [what for what in happenings if SETTINGS[what[2]].rule in (None, "exact", "ar")]
    assert len(play(small.on_device, batch, chosen, Alone(small.on_host, "mixed_4"))) == len(chosen)
    assert batch.stats.images == len(chosen)


def test_rules_without_a_kernel_take_turns_with_the_others(small: Pair, alone: Alone) -> None:
    """A batch draws with one kind of rounds at a time; the images are as always."""
    batch = small.on_device.batch(3, tree="small_9")
    asked = [(0, 1, 0), (1, 2, 1), (2, 3, COOL), (3, 4, COOL), (4, 5, 0)]
    jobs = [batch.submit(request_of(small.on_device, p, seed, SETTINGS[s])) for p, seed, s in asked]
    kinds = []
    while not batch.idle:
        batch.step()
        busy = {number for number, job in enumerate(jobs) if job.progress.tokens and not job.done}
        assert not (busy & {2, 3} and busy & {0, 1, 4})
        kinds.append(type(batch._rounds))
    for job, what in zip(jobs, asked, strict=True):
        np.testing.assert_array_equal(job.result().codes, alone(*what))
    changes = [kind for number, kind in enumerate(kinds) if not number or kind is not kinds[number - 1]]
    assert changes == [DeviceRounds, HostRounds, DeviceRounds]


def test_the_host_is_a_round_behind_and_copies_nothing_else(small: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """While no image can end, the next round is queued before the record has come. A round copies nothing."""
    kernels, copied = small.backend.of_rounds, []
    kernels.under_way = 0
    for name in ("send", "fetch"):
        real = getattr(ApartBuffer, name)
        monkeypatch.setattr(ApartBuffer, name, lambda self, real=real: (copied.append(1), real(self))[1])
    batch = small.on_device.batch(2, tree="mixed_4")
    jobs = [batch.submit(request_of(small.on_device, p, 1, DrawOptions())) for p in (0, 1)]
    batch.step()
    assert kernels.under_way == 1 and all(job.progress.tokens == 1 for job in jobs)
    copied.clear()
    depth = 1 + small.on_device.manifest.tree("mixed_4").tree().depth
    while all(job.progress.total - job.progress.tokens > 2 * depth for job in jobs):
        kernels.launched.clear()
        batch.step()
        assert kernels.under_way == 1
        assert kernels.launched == ["noise", "noise", "pairs", "place", "walk", "commit", "advance"]
    assert not copied
    for job in jobs:
        job.result()
    assert kernels.under_way == 0


def test_images_begin_and_end_beside_rounds(small: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one is conditioned, and the last one's pixels are waited for, while the device has a round to do."""
    pipe, kernels, conditioned = small.on_device, small.backend.of_rounds, []
    batch, start = pipe.batch(2, tree="small_9"), pipe._conditioner.start
    kernels.under_way = 0

    def note(*given: Any) -> Any:
        conditioned.append(kernels.under_way)
        return start(*given)

    monkeypatch.setattr(pipe._conditioner, "start", note)
    jobs = [batch.submit(request_of(pipe, p, 1, DrawOptions(rule=r))) for p, r in ((0, "ar"), (1, None), (2, None))]
    while jobs[1].progress.tokens < jobs[1].progress.total:
        batch.step()
    assert conditioned == [0, 0, 1]
    assert not jobs[1].done  # drawn, and being decoded; the first is under way
    launched = len(kernels.launched)
    assert batch.step() == [jobs[1]] and jobs[1].done
    assert len(kernels.launched) > launched and jobs[2].progress.tokens
    assert [job.result().codes.tolist() for job in jobs] == [
        small.on_host.generate(**{name: array[p : p + 1] for name, array in random_features(pipe, PROMPTS).items()},
                               seed=1, tree="small_9").codes[0].tolist() for p in range(3)
    ]  # fmt: skip


def test_a_round_waits_for_no_text_encoder(library: ctypes.CDLL, text_bundle: Path) -> None:
    """Nor for the decoder: they are queued beside it, and nothing of theirs is done before the host needs it, which is
    when an image gets its slot, or is handed out. As many images are conditioned ahead as may get slots at once."""
    pair = Pair(library, Pipeline.load(text_bundle, threads=1))
    pipe, beside = pair.on_device, pair.backend.beside
    prompts = ["a red apple", "a cat", "red", "a red cat", "apple", "cat cat"]
    wanted = pair.on_host.generate(prompts, seed=0, tree="pair_4").codes
    batch = pipe.batch(2, tree="pair_4")
    jobs = [batch.submit(Request(prompt, seed=number)) for number, prompt in enumerate(prompts)]
    batch.step()
    assert [job.prefix is None for job in jobs] == [True, True, False, True, True, True]
    assert len(beside.queue) == 7  # ids, mask, encoder, its features' second row, `uncond`, condition, the prefix
    quiet = busy = 0
    while not batch.idle:
        waits, seated = beside.waits, [job.progress.tokens > 0 for job in jobs]
        ended = batch.step()
        joined = [job.progress.tokens > 0 for job in jobs] != seated
        assert beside.waits == waits or ended or joined
        quiet, busy = quiet + (beside.waits == waits), busy + (beside.waits > waits)
        assert sum(job.prefix is not None for job in jobs) <= 2
    assert quiet > 3 * busy > 0
    assert [job.result().codes.tolist() for job in jobs] == wanted.tolist()


def test_what_is_wrong_with_a_prefix_belongs_to_its_image(library: ctypes.CDLL, text_bundle: Path) -> None:
    """Numbers that are not finite, and an encoder that fails when it is queued: the images beside it go on."""
    pair = Pair(library, Pipeline.load(text_bundle, threads=1))
    pipe = pair.on_device
    start, began = pipe._conditioner.start, []

    def second_fails(*given: Any) -> Any:
        began.append(1)
        if len(began) == 3:
            raise CascadeError("the GPU has not enough memory to run text.onnx: draw fewer images at a time.")
        waits = start(*given)
        if len(began) == 4:
            pipe._conditioner._bound["text", 2].prefix.place.stream.wait()  # type: ignore[attr-defined]
            arrival = pipe._conditioner._newest
            arrival._content[:] = np.nan  # type: ignore[union-attr]
        return waits

    pipe._conditioner.start = second_fails  # type: ignore[method-assign]
    batch = pipe.batch(2, tree="pair_4")
    jobs = [batch.submit(Request("a red apple", seed=number)) for number in range(6)]
    while not batch.idle:
        batch.step()
    assert [job.failed for job in jobs] == [False, False, True, True, False, False]
    assert "not enough memory to run text.onnx" in str(jobs[2].reason)
    assert "the conditioning of this image leaves the range" in str(jobs[3].reason)
    wanted = pair.on_host.generate(["a red apple"] * 6, seed=0, tree="pair_4").codes
    assert [jobs[number].result().codes.tolist() for number in (0, 1, 4, 5)] == wanted[[0, 1, 4, 5]].tolist()


def test_an_encoder_is_released_when_its_work_is_done(library: ctypes.CDLL, text_bundle: Path) -> None:
    """Nothing that was bound keeps it, and what is under way comes first."""
    pair = Pair(library, Pipeline.load(text_bundle, threads=1))
    pipe, beside = pair.on_device, pair.backend.beside
    batch = pipe.batch(1, tree="pair_4")
    jobs = [batch.submit(Request("a red apple", seed=number)) for number in range(2)]
    batch.step()
    engine = weakref.ref(pipe.engines()["text"])
    assert beside.queue
    pipe.release()
    gc.collect()
    assert not beside.queue and engine() is None and "text" not in pipe.loaded
    wanted = pair.on_host.generate(["a red apple"] * 2, seed=0, tree="pair_4").codes
    assert [job.result().codes.tolist() for job in jobs] == wanted.tolist()


@pytest.mark.parametrize("poison", [np.nan, 3e38, np.inf])
@pytest.mark.parametrize("rule", ["exact", "strict"])
def test_a_poisoned_image_ends_alone(small: Pair, alone: Alone, poison: float, rule: str) -> None:
    pipe, setting = small.on_device, SETTINGS.index(DrawOptions() if rule == "exact" else DrawOptions(rule=rule))
    batch = pipe.batch(3, tree="small_9")
    jobs = [batch.submit(request_of(pipe, p, 1, SETTINGS[setting])) for p in range(5)]
    batch.step()
    past, _ = batch.lane.memory.target.bindings(2, 4)  # the rows of slot 1
    with np.errstate(over="ignore"):
        for name in ("past_key.0", "past_value.0"):
            past[name].device.host[:, :, : batch.lane.prefix_len + 2] = poison  # type: ignore[attr-defined]
    while not batch.idle:
        batch.step()
    with pytest.raises(CascadeError, match="left the range of the engines' numbers"):
        jobs.pop(1).result()
    for prompt, job in zip((0, 2, 3, 4), jobs, strict=True):
        np.testing.assert_array_equal(job.result().codes, alone(prompt, 1, setting))
        assert job.result().stats.rounds == alone.rounds(prompt, 1, setting)


def test_ctrl_c_at_any_instant(small: Pair, alone: Alone) -> None:
    """Every job ends, by an image that is right or with a sentence, and the batch draws on."""
    pipe = small.on_device
    batch = pipe.batch(2, tree="small_9")
    rng, interrupted = np.random.default_rng(0), 0
    for number in range(40):
        jobs = [batch.submit(request_of(pipe, p, 1, DrawOptions(rule=r))) for p, r in ((0, None), (1, "ar"), (2, None))]
        timer = threading.Timer(float(rng.uniform(0, 0.04)), _thread.interrupt_main)
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
                np.testing.assert_array_equal(job.result().codes, alone(prompt, 1, PLAIN if prompt == 1 else 0))
    assert interrupted > 10
    job = batch.submit(request_of(pipe, 3, 1, DrawOptions()))
    np.testing.assert_array_equal(job.result().codes, alone(3, 1, 0))


def test_a_table_of_ones_own(small: Pair) -> None:
    """The kernels read one table of neighbours; an image whose rule brings another is the host's."""
    pipe, given = small.on_device, random_features(small.on_host, 1)
    rule = pipe.rule("lantern:k=4,delta=0.3")
    other = type(rule)(k=4, delta=0.3, table=rule.table[::-1].copy())  # type: ignore[attr-defined]
    found = [pipe.generate(**given, seed=5, rule=one, tree="small_9").codes for one in (rule, other)]
    wanted = [small.on_host.generate(**given, seed=5, rule=one, tree="small_9").codes for one in (rule, other)]
    assert np.array_equal(found, wanted) and not np.array_equal(*wanted)


def test_two_tables_in_one_batch(small: Pair) -> None:
    """Both ask before either is drawn: the first one's is the kernels'."""
    pipe, given = small.on_device, random_features(small.on_host, 2)
    rule = pipe.rule("lantern:k=4,delta=0.3")
    other = type(rule)(k=4, delta=0.3, table=rule.table[::-1].copy())  # type: ignore[attr-defined]
    wanted = [small.on_host.generate(**{name: array[p : p + 1] for name, array in given.items()},
                                     seed=5, rule=one, tree="small_9").codes[0] for p, one in ((0, rule), (1, other))]
    batch = pipe.batch(2, tree="small_9")
    jobs = [batch.submit(Request(features=given["features"][p], features_mask=given["features_mask"][p], seed=5,
                                 options=DrawOptions(rule=one))) for p, one in ((0, rule), (1, other))]
    for job, codes in zip(jobs, wanted, strict=True):
        np.testing.assert_array_equal(job.result().codes, codes)


@pytest.mark.parametrize("tree", ["mixed_4", "small_9"])
def test_who_is_due_is_asked_once_a_step(small: Pair, tree: str) -> None:
    """A job that becomes due in the middle of a step leaves in the next one, when its rounds are known."""
    batch, alone = small.on_device.batch(2, tree=tree), Alone(small.on_host, tree)
    jobs = [batch.submit(request_of(small.on_device, p, 1, DrawOptions())) for p in (0, 1)]
    batch.step()
    batch.step()
    asked = []

    def due() -> CascadeError | None:
        asked.append(1)
        return None if len(asked) == 1 else CascadeError("it is due")

    jobs[0].due = due  # type: ignore[method-assign]
    while not batch.idle:
        batch.step()
    assert jobs[0].failed and len(asked) == 2
    np.testing.assert_array_equal(jobs[1].result().codes, alone(1, 1, 0))


def test_an_image_without_pixels_ends_alone(small: Pair, alone: Alone, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = small.on_device.batch(2, tree="small_9")
    start, made = batch._decoder.start, []

    def second_fails(codes: np.ndarray) -> Any:
        image = start(codes)
        made.append(1)

        def fail() -> Any:
            raise MemoryError

        return fail if len(made) == 2 else image

    monkeypatch.setattr(batch._decoder, "start", second_fails)
    jobs = [batch.submit(request_of(small.on_device, p, 1, DrawOptions())) for p in range(4)]
    while not batch.idle:
        batch.step()
    failed = [job for job in jobs if job.failed]
    assert len(failed) == 1 and "this image was drawn, but has no pixels (MemoryError" in str(failed[0].reason)
    assert batch.stats.images == 3
    for prompt, job in enumerate(jobs):
        if job not in failed:
            np.testing.assert_array_equal(job.result().codes, alone(prompt, 1, 0))


def test_a_pipeline_is_warmed_up_and_closed(library: ctypes.CDLL, small_vocabulary: Pipeline) -> None:
    backend = KernelsBackend(library)
    with Pipeline.load(small_vocabulary.folder, backend) as pipe:
        given = random_features(pipe, 2)
        images = list(pipe.stream(**given, seed=1))
    assert sum(len(output.images) for output in images) == 2
    assert backend.of_rounds.launched
