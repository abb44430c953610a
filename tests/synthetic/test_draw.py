"""Drawing with a family that is unlike LlamaGen in everything: the runtime knows plans and conditions, no family."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from apart import ApartBackend, ApartCall
from safetensors.torch import load_file
from support import random_features

from cascade_trt.runtime.options import DrawOptions
from cascade_trt.runtime.pipeline import Pipeline
from cascade_trt.runtime.request import Request
from cascade_trt.runtime.rules import Cause
from synthetic import model as m
from synthetic.family import PLAN, build_synthetic

TREES = ("small_9", "chain", "naive_extend_57", "dynamic_12x4x3")
GUESSED = ("jacobi_8", "jacobi_6x3", "mixed_8", "mixed_6x3")
SCALE = 2.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_synthetic(tmp_path_factory.mktemp("synthetic"), (*TREES, "chain_1"))[0]


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Pipeline:
    return Pipeline.load(folder, threads=1)


def reference_codes(folder: Path, features: np.ndarray, mask: np.ndarray) -> list[int]:
    """The greedy image of one request [T, C], [T] by the plain PyTorch model in float64: no padding, no cache, rows
    one by one, the sequence spelt out."""
    tensors = load_file(folder.parent / "checkpoints" / "target.safetensors")
    model = m.Target({name: tensor.double() for name, tensor in tensors.items()})
    given = torch.from_numpy(features).double()[None]
    rows = [model.prefix(given, torch.tensor([uncond]))[0] for uncond in (False, True)]  # [T, D]
    rows = [rows[0][torch.from_numpy(mask)], rows[1][-m.UNCOND :]]
    sequence = [m.BEGIN]
    for _ in range(m.ROWS):
        for _ in range(m.COLUMNS):
            states = []
            for prefix in rows:
                x = torch.cat([prefix, model.embed(torch.tensor(sequence))])[None]
                count = x.shape[1]
                visible = torch.ones(count, count, dtype=torch.bool).tril()[None, None]
                states.append(model.features(model.hidden(x, torch.arange(count)[None], visible))[0, -1])
            logits = model.logits(states[1] + SCALE * (states[0] - states[1]))
            sequence.append(int(logits.argmax()))
        sequence.append(m.ROW_END)
    return [token for token in sequence if token < m.CODES]


@pytest.fixture(scope="module")
def greedy(pipe: Pipeline) -> list[list[int]]:
    """The reference's images of five requests."""
    given = random_features(pipe, 5)
    return [reference_codes(pipe.folder, *one) for one in zip(*given.values(), strict=True)]


@pytest.mark.parametrize(
    ("rule", "tree"),
    [("ar", None), ("exact", "small_9"), ("exact", "dynamic_12x4x3"), ("exact", "jacobi_8"), ("exact", "mixed_8x4")],
)
def test_greedy_images_are_those_of_the_plain_model(
    pipe: Pipeline, greedy: list[list[int]], rule: str, tree: str | None
) -> None:
    """Prefixes of five lengths, each with an unconditional row of its own; whatever stands beside them."""
    output = pipe.generate(**random_features(pipe, 5), rule=rule, tree=tree, temperature=0, guidance_scale=SCALE)
    assert output.codes.tolist() == greedy


def test_the_drafter_sees_no_padding(pipe: Pipeline) -> None:
    """Each row has its own mask, in the target's cache and in the drafter's."""
    given, batch = random_features(pipe, 3), pipe.batch(3, tree="small_9")
    for p in range(3):
        batch.submit(Request(features=given["features"][p], features_mask=given["features_mask"][p]))
    batch.step()
    workspace = batch.lane.workspace
    own = np.arange(m.PREFIX) >= m.PREFIX - m.UNCOND
    wanted = np.stack([row for mask in given["features_mask"] for row in (mask, own)])
    np.testing.assert_array_equal(workspace.cache_mask[:, : m.PREFIX], wanted)
    np.testing.assert_array_equal(workspace.pair_mask[:, : m.PREFIX], wanted)
    assert workspace.cache_mask[:, m.PREFIX :].all() and workspace.pair_mask[:, m.PREFIX :].all()


@pytest.mark.parametrize("tree", [*TREES, *GUESSED])
def test_exact_draws_the_images_of_plain_decoding(pipe: Pipeline, tree: str) -> None:
    given = random_features(pipe, 5)
    for scale in (1.0, 2.5):
        plain = pipe.generate(**given, seed=3, rule="ar", guidance_scale=scale)
        output = pipe.generate(**given, seed=3, rule="exact", tree=tree, guidance_scale=scale)
        np.testing.assert_array_equal(output.codes, plain.codes)
        assert output.stats.tau > 1  # some guesses are right


@pytest.mark.parametrize("rule", ["strict", "strict-topk", "exact", "cascade:children=topk,tau_pos=off,tau_seq=off"])
def test_greedy_is_one_image(pipe: Pipeline, rule: str) -> None:
    given = random_features(pipe, 2)
    plain = pipe.generate(**given, temperature=0, rule="ar")
    for tree in TREES:
        output = pipe.generate(**given, temperature=0, rule=rule, tree=tree)
        np.testing.assert_array_equal(output.codes, plain.codes)


@pytest.mark.parametrize(
    ("rule", "tree"),
    [("cascade:tau_pos=0.2,tau_seq=0.2", "small_9"), ("lantern", "small_9"), ("lantern++", "small_9"),
     ("gsd", "small_9"), ("cool:delta=3", "small_9"), ("cool:children=coupled,delta=3", "jacobi_8"),
     ("cool:children=coupled,delta=3", "mixed_6x3")],
)  # fmt: skip
def test_relaxed_rules_draw_codes(pipe: Pipeline, rule: str, tree: str) -> None:
    """They look at the mixed features of the readout, and are never asked about a forced token."""
    output = pipe.generate(**random_features(pipe, 4), rule=rule, tree=tree)
    assert output.codes.min() >= 0 and output.codes.max() < PLAN.codes
    assert output.stats.relaxed_share > 0


def test_images_hold_codes_only_and_their_shape_is_the_plans(pipe: Pipeline) -> None:
    """Forced tokens are in no image and no statistic."""
    output = pipe.generate(**random_features(pipe, 2), rule="exact", tree="small_9")
    assert output.codes.shape == (2, PLAN.rows * PLAN.columns) and PLAN.length > PLAN.image_tokens
    assert output.codes.min() >= 0 and output.codes.max() < PLAN.codes
    side = pipe.manifest.model.pixels
    assert output.images[0].size == (PLAN.columns * side, PLAN.rows * side)
    assert (output.causes != Cause.FORCED).all()
    assert sum(output.stats.causes.values()) == sum(output.stats.origins.values()) == output.codes.size
    assert output.stats.tokens == 2 * PLAN.image_tokens  # the token of the prefill is a forced one here


@pytest.mark.parametrize("tree", ["chain", "jacobi_5", "mixed_5"])
def test_a_walk_never_ends_at_a_forced_token(pipe: Pipeline, tree: str) -> None:
    """Whoever guesses knows it, so the round goes on behind it as far as its tree reaches."""
    batch = pipe.batch(1, rule="exact", tree=tree)
    given, most = random_features(pipe, 1), pipe.manifest.tree(tree).tree().depth + 1
    for seed in range(4):
        job = batch.submit(Request(features=given["features"][0], features_mask=given["features_mask"][0], seed=seed))
        before, passed = 1, 0  # the prefill's token
        while not job.done:
            batch.step()
            taken = PLAN.forced[before : job.progress.tokens]
            assert taken[-1] < 0 or len(taken) == most
            passed += int((taken >= 0).sum())
            before = job.progress.tokens
        assert before == PLAN.length and passed == int((PLAN.forced[1:] >= 0).sum()) > 0


def test_rows_of_other_lengths_change_nothing_for_their_neighbours(pipe: Pipeline) -> None:
    """Prefixes of one slot to all of them, drawn together and alone, each with its own unconditional row."""
    given = random_features(pipe, 6)
    together = pipe.generate(**given, seed=2, rule="exact", tree="small_9").codes
    for p in range(6):
        one = {name: array[p : p + 1] for name, array in given.items()}
        np.testing.assert_array_equal(pipe.generate(**one, seed=2 + p, rule="ar").codes[0], together[p])


def test_jobs_of_all_kinds_in_one_batch(pipe: Pipeline) -> None:
    given = random_features(pipe, 4)
    kinds = [DrawOptions(), DrawOptions(rule="ar"), DrawOptions(top_p=0.7), DrawOptions(rule="strict"),
             DrawOptions(guidance_scale=1.0), DrawOptions(rule="cascade:children=coupled,tau_pos=0.3")]  # fmt: skip
    batch = pipe.batch(3, tree="small_9")
    jobs = []
    for number, options in enumerate(kinds):
        features, mask = (given[name][number % 4] for name in ("features", "features_mask"))
        jobs.append(batch.submit(Request(features=features, features_mask=mask, seed=number, options=options)))
        batch.step()
    for number, (job, options) in enumerate(zip(jobs, kinds, strict=True)):
        one = {name: array[number % 4 : number % 4 + 1] for name, array in given.items()}
        alone = pipe.generate(**one, seed=number, options=options.updated({"tree": "small_9"}))
        np.testing.assert_array_equal(job.result().codes, alone.codes[0])


def test_on_a_device_with_memory_of_its_own(pipe: Pipeline, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ApartCall, "spoils", True)
    given, apart = random_features(pipe, 3), Pipeline.load(folder, backend=ApartBackend())
    for rule, tree in (("ar", None), ("exact", "small_9"), ("exact", "dynamic_12x4x3"), ("strict", "chain")):
        wanted = pipe.generate(**given, seed=5, rule=rule, tree=tree).codes
        np.testing.assert_array_equal(apart.generate(**given, seed=5, rule=rule, tree=tree).codes, wanted)


def test_a_preview_ends_inside_a_row(pipe: Pipeline) -> None:
    batch = pipe.batch(1, rule="ar")
    job = batch.submit(Request(features=random_features(pipe, 1)["features"][0], seed=1))
    while job.progress.tokens < PLAN.length // 2:
        batch.step()
    preview, side = np.asarray(job.preview()), pipe.manifest.model.pixels
    drawn = int((PLAN.forced[: job.progress.tokens] < 0).sum())
    row, column = divmod(drawn, PLAN.columns)
    assert (preview[row * side : (row + 1) * side, column * side :] == 232).all()
    assert not (preview[: row * side] == 232).all()


def test_tau_counts_codes_and_the_calls_that_drew_them(pipe: Pipeline) -> None:
    """Plain decoding has one code a call that drew; the calls for row ends are in no statistic of the image."""
    given = random_features(pipe, 3)
    output = pipe.generate(**given, rule="ar")
    assert output.stats.tau == 1 and (output.rounds == PLAN.image_tokens).all()
    batch = pipe.batch(1, tree="small_9")  # plain decoding beside a tree: the root's draw in each round
    job = batch.submit(Request(features=given["features"][0], options=DrawOptions(rule="ar")))
    assert job.result().stats.tau == 1
