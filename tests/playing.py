"""Batches of random jobs, compared with images that were drawn alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from support import random_features

from cascade_trt.runtime.batch import Batch
from cascade_trt.runtime.job import CancelledError, Job
from cascade_trt.runtime.options import DrawOptions
from cascade_trt.runtime.pipeline import Output, Pipeline
from cascade_trt.runtime.request import Request

PROMPTS = 6
SETTINGS = [
    DrawOptions(), DrawOptions(rule="ar"), DrawOptions(temperature=0.7), DrawOptions(top_k=3),
    DrawOptions(top_p=0.8), DrawOptions(guidance_scale=1.0), DrawOptions(guidance_scale=4.0, top_k=5, top_p=0.9),
    DrawOptions(temperature=0), DrawOptions(rule="strict"), DrawOptions(rule="strict-topk"),
    DrawOptions(rule="cascade:children=coupled,tau_pos=0.2,tau_seq=0.5"), DrawOptions(rule="cool:delta=2"),
]  # fmt: skip


def request_of(pipe: Pipeline, prompt: int, seed: int, options: DrawOptions) -> Request:
    given = random_features(pipe, PROMPTS)
    return Request(features=given["features"][prompt], features_mask=given["features_mask"][prompt], seed=seed,
                   options=options)  # fmt: skip


class Alone:
    """The codes of a request drawn by `generate` with nothing beside it, each drawn once; and the rounds it took.

    `settings` are the options that a request names by their places. tree None: each is drawn plainly.
    """

    def __init__(self, pipe: Pipeline, tree: str | None, settings: list[DrawOptions] = SETTINGS) -> None:
        self.pipe, self.tree, self.settings, self.known = pipe, tree, settings, {}

    def __call__(self, prompt: int, seed: int, setting: int) -> np.ndarray:
        return self.output(prompt, seed, setting).codes[0]

    def rounds(self, prompt: int, seed: int, setting: int) -> int:
        return int(self.output(prompt, seed, setting).rounds[0])

    def output(self, prompt: int, seed: int, setting: int) -> Output:
        key = (prompt, seed, setting)
        if key not in self.known:
            given = random_features(self.pipe, PROMPTS)
            one = {name: array[prompt : prompt + 1] for name, array in given.items()}
            self.known[key] = self.pipe.generate(**one, seed=seed, options=self.how(self.settings[setting]))
        return self.known[key]

    def how(self, options: DrawOptions) -> DrawOptions:
        """How an image with these options is drawn alone."""
        return options.updated({"rule": "ar"} if self.tree is None else {"tree": self.tree})


def events(settings: int = len(SETTINGS)) -> st.SearchStrategy[list[Any]]:
    """Jobs (prompt, seed, setting), rounds and cancellations, in any order."""
    jobs = st.tuples(st.integers(0, PROMPTS - 1), st.integers(0, 3), st.integers(0, settings - 1))
    steps, cancel = (st.tuples(st.just(name), st.integers(0, 9)) for name in ("steps", "cancel"))
    return st.lists(jobs | steps | cancel, min_size=3, max_size=14)


def play(pipe: Pipeline, batch: Batch, happenings: list[Any], alone: Alone) -> list[Job]:
    """Submits, steps and cancels as told, then goes on to the end; returns the jobs whose images were compared."""
    jobs: list[tuple[Job, tuple[int, int, int]]] = []
    for what in happenings:
        if what[0] == "steps":
            for _ in range(what[1]):
                batch.step()
        elif what[0] == "cancel":
            if jobs:
                jobs[what[1] % len(jobs)][0].cancel()
        else:
            jobs.append((batch.submit(request_of(pipe, what[0], what[1], alone.settings[what[2]])), what))
    while not batch.idle:
        batch.step()
    compared = []
    for job, what in jobs:
        assert job.done
        if job.failed:
            with pytest.raises(CancelledError):
                job.result()
            continue
        drawn = job.result()
        np.testing.assert_array_equal(drawn.codes, alone(*what), err_msg=f"{what}")
        assert drawn.seed == what[1] and drawn.stats.images == 1
        if alone.tree is not None:
            assert drawn.stats.rounds == alone.rounds(*what)  # the very same guesses were made
        compared.append(job)
    return compared
