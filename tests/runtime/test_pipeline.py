"""The Python API: threads, callbacks, interruption, statistics."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import random_features

from cascade_trt.runtime.batch import Batch
from cascade_trt.runtime.drafting import Origin
from cascade_trt.runtime.errors import CascadeError
from cascade_trt.runtime.job import Job
from cascade_trt.runtime.noise import Stream
from cascade_trt.runtime.options import DrawOptions
from cascade_trt.runtime.pipeline import Interrupted, Output, Pipeline, UnfinishedError
from cascade_trt.runtime.request import Request
from cascade_trt.runtime.rules import Cause, Decision, Draws, Node
from cascade_trt.runtime.rules.exact import draw_token
from cascade_trt.runtime.stats import STAGES


def test_one_pipeline_in_several_threads(small_vocabulary: Pipeline) -> None:
    """Calls wait for each other: every thread gets the images of its own seed and settings."""
    given = random_features(small_vocabulary, 2)
    settings = [("exact", "small_9"), ("ar", None), ("exact", "chain"), ("strict", "naive_extend_57")]

    def draw(seed: int) -> np.ndarray:
        rule, tree = settings[seed % len(settings)]
        return small_vocabulary.generate(**given, seed=seed, rule=rule, tree=tree).codes

    alone = [draw(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(2):
            for codes, wanted in zip(pool.map(draw, range(8)), alone, strict=True):
                np.testing.assert_array_equal(codes, wanted)


def test_several_pipelines_side_by_side(small_vocabulary: Pipeline) -> None:
    pipes = [Pipeline.load(small_vocabulary.folder, threads=1) for _ in range(3)]
    given = random_features(small_vocabulary, 2)
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(pipe.generate, **given, seed=i) for i, pipe in enumerate(pipes)]
        outputs: list[Output] = [future.result() for future in futures]
    for seed, output in enumerate(outputs):
        np.testing.assert_array_equal(output.codes, small_vocabulary.generate(**given, seed=seed).codes)


def test_an_error_in_the_callback_leaves_the_pipeline_usable(small_vocabulary: Pipeline) -> None:
    given = random_features(small_vocabulary, 3)
    wanted = small_vocabulary.generate(**given, seed=4).codes

    def fail(done: int, _total: int) -> None:
        if done > 50:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        small_vocabulary.generate(**given, seed=1, callback=fail)
    np.testing.assert_array_equal(small_vocabulary.generate(**given, seed=4).codes, wanted)


def test_a_callback_that_draws_is_refused(small_vocabulary: Pipeline) -> None:
    """It would wait for itself; the pipeline stays usable."""
    given = random_features(small_vocabulary, 1)
    with pytest.raises(CascadeError, match="this pipeline is drawing"):
        small_vocabulary.generate(**given, callback=lambda *_: small_vocabulary.generate(**given))
    assert len(small_vocabulary.generate(**given).images) == 1


@pytest.fixture
def interrupt() -> Callable[[int, int], None]:
    """A callback that is Ctrl-C when four images' worth of tokens are drawn."""

    def interrupt(done: int, _total: int) -> None:
        if done > 4 * 36:
            raise KeyboardInterrupt

    return interrupt


def test_ctrl_c_is_raised_with_what_was_finished(small_vocabulary: Pipeline, interrupt) -> None:
    given = random_features(small_vocabulary, 6)
    wanted = small_vocabulary.generate(**given)
    with pytest.raises(Interrupted) as caught:
        small_vocabulary.generate(**given, callback=interrupt)
    output = caught.value.output
    assert 1 <= len(output.images) == len(output.places) == output.stats.images < 6
    np.testing.assert_array_equal(output.codes, wanted.codes[output.places])
    assert output.seeds == output.places  # seed 0 + i
    assert len(small_vocabulary.generate(**given).images) == 6


def test_ctrl_c_in_a_stream_comes_after_the_finished_images(small_vocabulary: Pipeline, interrupt) -> None:
    given = random_features(small_vocabulary, 6)
    stream, seen = small_vocabulary.stream(**given, callback=interrupt), []
    with pytest.raises(KeyboardInterrupt):
        seen.extend(place for output in stream for place in output.places)
    assert 1 <= len(seen) < 6


def test_ctrl_c_in_the_round_in_which_an_image_ends_loses_nothing(
    small_vocabulary: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is handed out although `step` never returned."""
    given, step = random_features(small_vocabulary, 4), Batch.step

    def cut(self: Batch) -> list[Job]:
        ended = step(self)
        if ended:
            raise KeyboardInterrupt
        return ended

    monkeypatch.setattr(Batch, "step", cut)
    with pytest.raises(Interrupted) as caught:
        small_vocabulary.generate(**given)
    assert len(caught.value.output.images) >= 1


def test_images_stream_as_they_are_done(small_vocabulary: Pipeline) -> None:
    """Each once, with its place; their stats add up to the run's."""
    given = random_features(small_vocabulary, 7)
    wanted = small_vocabulary.generate(**given, seed=3, tree="mixed_8")
    outputs = list(small_vocabulary.stream(**given, seed=3, tree="mixed_8"))
    assert sorted(place for output in outputs for place in output.places) == list(range(7))
    for output in outputs:
        np.testing.assert_array_equal(output.codes, wanted.codes[output.places])
        assert output.seeds == [3 + place for place in output.places]
        assert output.stats.images == len(output.images) == len(output.places)
    assert len(outputs) > 2  # not all at once
    total = outputs[0].stats.copy()
    for output in outputs[1:]:
        total.add(output.stats)
    assert (total.tokens, total.rounds) == (wanted.stats.tokens, wanted.stats.rounds)
    assert total.target_calls == wanted.stats.target_calls and total.causes == wanted.stats.causes
    assert total.origins == wanted.stats.origins and total.trees == wanted.stats.trees


def test_a_timeout_keeps_the_images_that_were_done(small_vocabulary: Pipeline, monkeypatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("cascade_trt.runtime.job.time.monotonic", lambda: clock[0])
    given = random_features(small_vocabulary, 5)

    def pass_time(done: int, _total: int) -> None:
        clock[0] = 10.0 if done > 3 * 36 else 0.0

    with pytest.raises(UnfinishedError, match=r"within its timeout of 5 s. Not finished: .*5 of 5") as caught:
        small_vocabulary.generate(**given, timeout=5, callback=pass_time)
    assert 1 <= len(caught.value.output.images) < 5
    for bad in (0, -1, float("nan"), "5", True):
        with pytest.raises(CascadeError, match="timeout must be a number"):
            small_vocabulary.generate(**given, timeout=bad)  # type: ignore[arg-type]


def test_an_open_stream_holds_the_pipeline(small_vocabulary: Pipeline) -> None:
    given = random_features(small_vocabulary, 4)
    stream = small_vocabulary.stream(**given)
    next(stream)
    with pytest.raises(CascadeError, match="this pipeline is drawing: finish or close its open stream"):
        small_vocabulary.generate(**given)
    assert len(small_vocabulary.batch(1).submit(Request(features=given["features"][0])).result().codes) == 36
    stream.close()  # type: ignore[attr-defined]
    assert len(small_vocabulary.generate(**given).images) == 4


def test_a_pipeline_with_an_open_stream_can_be_closed(small_vocabulary: Pipeline) -> None:
    """As it is where an exception leaves a `with` block in the middle of a stream."""
    given = random_features(small_vocabulary, 4)
    with Pipeline.load(small_vocabulary.folder, threads=1, warm=False) as pipe:
        stream = pipe.stream(**given)
        next(stream)
    with pytest.raises(CascadeError, match="closed"):
        pipe.generate(**given)


def in_thread(work: Callable[[], object]) -> None:
    """Runs `work` to its end in a thread of its own, which is no more then."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "it waits for itself"


@pytest.mark.parametrize("goes_on", [True, False])
@pytest.mark.parametrize("first", ["generate", "close"])
def test_a_stream_that_another_thread_began(small_vocabulary: Pipeline, first: str, goes_on: bool) -> None:
    """Whoever goes on with it drives it; where the thread that drove it is no more, nobody would ever end it."""
    given = random_features(small_vocabulary, 6)
    pipe = Pipeline.load(small_vocabulary.folder, threads=1, warm=False)
    stream = pipe.stream(**given)
    in_thread(lambda: next(stream))

    def use() -> None:
        if goes_on:
            next(stream)
        if first == "generate":
            with pytest.raises(CascadeError, match="this pipeline is drawing"):
                pipe.generate(**given)
            stream.close()  # type: ignore[attr-defined]
            assert len(pipe.generate(**given).images) == 6
        pipe.close()

    in_thread(use)
    with pytest.raises(CascadeError, match="closed"):
        pipe.generate(**given)


def test_a_stream_that_another_thread_still_drives_is_waited_for(small_vocabulary: Pipeline) -> None:
    given = random_features(small_vocabulary, 6)
    stream, began, ended = small_vocabulary.stream(**given), threading.Event(), threading.Event()

    def drive() -> None:
        next(stream)
        began.set()
        time.sleep(0.8)  # longer than a look of those who wait
        ended.set()
        list(stream)

    with ThreadPoolExecutor(1) as pool:
        driving = pool.submit(drive)
        assert began.wait(60)
        assert len(small_vocabulary.generate(**given).images) == 6
        assert ended.is_set()
        driving.result()


@pytest.mark.parametrize("callback", [lambda: None, lambda _: None, lambda _a, _b, _c: None, 7, "print"])
def test_a_callback_that_cannot_be_called(small_vocabulary: Pipeline, callback: Any) -> None:
    given = random_features(small_vocabulary, 1)
    with pytest.raises(CascadeError, match=r"callback must be a function of \(done, total\)"):
        small_vocabulary.generate(**given, callback=callback)


@pytest.mark.parametrize("callback", [lambda *_: None, lambda _a, _b, _c=3: None, {}.get, max])
def test_callbacks_that_can_be_called(small_vocabulary: Pipeline, callback: Any) -> None:
    assert small_vocabulary.generate(**random_features(small_vocabulary, 1), callback=callback).images


@pytest.mark.parametrize("folder", [5, None, b"x", ["a"]])
def test_what_is_no_folder_is_refused(folder: Any) -> None:
    with pytest.raises(CascadeError, match="must be a path or its text"):
        Pipeline.load(folder)


def test_options_in_one_object(small_vocabulary: Pipeline) -> None:
    given = random_features(small_vocabulary, 1)
    options = DrawOptions(rule="ar", top_k=3)
    by_object = small_vocabulary.generate(**given, options=options)
    by_name = small_vocabulary.generate(**given, rule="ar", top_k=3)
    over = small_vocabulary.generate(**given, options=options, top_k=0)
    np.testing.assert_array_equal(by_object.codes, by_name.codes)
    np.testing.assert_array_equal(over.codes, small_vocabulary.generate(**given, rule="ar", top_k=0).codes)
    with pytest.raises(CascadeError, match=r"unknown option 'topk' \(did you mean 'top_k'\?\): choose among guid"):
        small_vocabulary.generate(**given, topk=3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", "hot"), ("temperature", True), ("top_k", 2.5), ("top_k", "3"), ("top_p", [1]),
     ("guidance_scale", None.__class__), ("rule", 5), ("tree", 3), ("timeout", "soon")],
)  # fmt: skip
def test_odd_types_are_sentences(small_vocabulary: Pipeline, name: str, value: object) -> None:
    with pytest.raises(CascadeError, match=rf"{name} must be "):
        small_vocabulary.generate(**random_features(small_vocabulary, 1), **{name: value})  # type: ignore[arg-type]


def test_a_rule_of_the_callers_own(small_vocabulary: Pipeline) -> None:
    """It is used as it is; what is no rule, or needs what does not exist, is refused by name."""
    given = random_features(small_vocabulary, 1)

    class Refuse:
        name, noise, needs, compares_siblings = "refuse", Stream.TOKEN, frozenset(), False

        def decide(self, node: Node, draws: Draws) -> Decision:
            return Decision(draw_token(node.ids, node.logits, draws), None)

    output = small_vocabulary.generate(**given, rule=Refuse())
    assert output.stats.tau == 1 and output.stats.rule == "refuse"
    np.testing.assert_array_equal(output.codes, small_vocabulary.generate(**given, rule="ar").codes)
    wrong = Refuse()
    wrong.needs = frozenset({"logit"})
    with pytest.raises(CascadeError, match=r"rule refuse needs \['logit'\]: choose among log_q, logits"):
        small_vocabulary.generate(**given, rule=wrong)
    bare = type("Bare", (), {"decide": Refuse.decide, "name": "bare"})()
    with pytest.raises(CascadeError, match="has no noise, needs, compares_siblings: see"):
        small_vocabulary.generate(**given, rule=bare)


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True, np.array(2)])
def test_threads_that_cannot_be(small_vocabulary: Pipeline, threads: object) -> None:
    with pytest.raises(CascadeError, match="threads must be a whole number of at least 1"):
        Pipeline.load(small_vocabulary.folder, threads=threads)  # type: ignore[arg-type]
    for odd in (None, 3):
        with pytest.raises(CascadeError, match="backend must be a name"):
            Pipeline.load(small_vocabulary.folder, backend=odd)  # type: ignore[arg-type]


def test_a_closed_pipeline_draws_no_more(small_vocabulary: Pipeline) -> None:
    given = random_features(small_vocabulary, 1)
    with Pipeline.load(small_vocabulary.folder, threads=1) as pipe:
        batch = pipe.batch(1)
        assert len(pipe.generate(**given).images) == 1
        job = batch.submit(Request(features=given["features"][0]))
    with pytest.raises(CascadeError, match="this pipeline is closed"):
        job.result()
    for draw in (
        lambda: pipe.generate(**given), lambda: pipe.batch(1), lambda: next(pipe.stream(**given)),
        lambda: batch.submit(Request(features=given["features"][0])),
    ):  # fmt: skip
        with pytest.raises(CascadeError, match="this pipeline is closed: load the bundle again"):
            draw()
    pipe.close()  # once more: without effect


def test_the_text_encoder_can_be_released(text_bundle: Path) -> None:
    pipe = Pipeline.load(text_bundle, threads=1)
    assert "text" in pipe.engines() and "text" in pipe.loaded
    wanted = pipe.generate(["a red apple"], seed=1).codes
    pipe.release()
    assert "text" not in pipe.loaded
    np.testing.assert_array_equal(pipe.generate(["a red apple"], seed=1).codes, wanted)  # loaded again
    assert "text" in pipe.loaded
    with pytest.raises(CascadeError, match="no engine 'sound'"):
        pipe.release("sound")


@pytest.mark.parametrize(
    ("rule", "tree"), [("ar", None), ("exact", "chain"), ("exact", "jacobi_8"), ("exact", "mixed_6x3")]
)
def test_statistics(small_vocabulary: Pipeline, rule: str, tree: str | None) -> None:
    seen: list[tuple[int, int]] = []
    given = random_features(small_vocabulary, 2)
    output = small_vocabulary.generate(
        **given, rule=rule, tree=tree, callback=lambda done, total: seen.append((done, total))
    )
    stats = output.stats
    assert {total for _, total in seen} == {2 * 36}
    assert seen[0][0] >= 4 and seen[-1][0] == 2 * 36  # the first round: the prefill's token and at least one more
    assert len(seen) == stats.target_calls
    assert stats.tokens == 2 * 35
    assert stats.tau == stats.tokens / stats.rounds
    assert (stats.tau == 1) == (rule == "ar")
    assert stats.tree == tree and stats.trees == {tree or "none": stats.rounds}
    assert set(stats.seconds) == set(STAGES)
    assert 0 < sum(stats.seconds.values()) <= stats.total_seconds
    assert 0 < stats.engine_seconds < stats.total_seconds
    assert 0 <= stats.host_share < 1
    assert stats.to_dict()["images_per_second"] == stats.images_per_second > 0
    for counts, codes, kinds in ((stats.causes, output.causes, Cause), (stats.origins, output.origins, Origin)):
        for kind in kinds:
            assert counts.get(kind.name.lower(), 0) == (codes == kind).sum()
        assert sum(counts.values()) == 2 * 36


def test_an_earlier_call_of_another_shape_leaves_no_trace(small_vocabulary: Pipeline) -> None:
    """One cache serves every layout, tree and rule."""
    three, one = random_features(small_vocabulary, 3), random_features(small_vocabulary, 1, seed=8)
    wanted = small_vocabulary.generate(**one, seed=2).codes
    fresh = Pipeline.load(small_vocabulary.folder, threads=1, warm=False)
    np.testing.assert_array_equal(fresh.generate(**one, seed=2).codes, wanted)
    for rule, scale in (("ar", 2.0), ("strict", 1.0), ("exact", 5.0)):
        fresh.generate(**three, rule=rule, guidance_scale=scale, seed=11)
        np.testing.assert_array_equal(fresh.generate(**one, seed=2).codes, wanted)
