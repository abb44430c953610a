"""`exact` draws the images of plain decoding with every source of guesses, whatever is guessed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FILES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from playing import SETTINGS, Alone, events, play, request_of
from support import Golden, random_features
from synthetic.family import build_synthetic
from ties import PlainImages

from cascade_trt.runtime.drafting import Origin, jacobi
from cascade_trt.runtime.drafting.jacobi import Step
from cascade_trt.runtime.options import DrawOptions
from cascade_trt.runtime.pipeline import Pipeline
from cascade_trt.runtime.sampling import kept
from cascade_trt.runtime.slots import TokenSequence
from cascade_trt.runtime.tree import Tree

JACOBI = ("jacobi_1", "jacobi_4", "jacobi_16", "jacobi_40")
RIVALS = ("jacobi_2x2", "jacobi_6x3", "jacobi_12x8", "jacobi_20x20")
MIXED = ("mixed_2", "mixed_6", "mixed_16", "mixed_40")
MIXED_RIVALS = ("mixed_1x1", "mixed_6x6", "mixed_16x4", "mixed_30x10")
KINDS = {"jacobi": JACOBI, "rivals": RIVALS, "mixed": MIXED, "mixed rivals": MIXED_RIVALS, "files": tuple(FILES)}
WITHOUT_DRAFTER = (*JACOBI, *RIVALS, "bush")
SEEDS = 20

# one of each kind, for what is asked of fewer trees
FEW = ("jacobi_16", "jacobi_12x8", "mixed_16", "mixed_6x6", "fork", "beside")


# rules that ask for no distribution of the drafter
SERVED = [one for one in SETTINGS if one.rule in (None, "ar", "strict-topk") or "coupled" in str(one.rule)]


@pytest.fixture(scope="module")
def small(small_vocabulary: Pipeline) -> PlainImages:
    return PlainImages(small_vocabulary, random_features(small_vocabulary, SEEDS))


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> PlainImages:
    """Begin tokens and row ends are forced; rows have prefixes of their own; drafter and readout of another kind."""
    folder = build_synthetic(tmp_path_factory.mktemp("synthetic"), ("chain_1", "jacobi_40"), batch=3)[0]
    pipe = Pipeline.load(folder, threads=1)
    return PlainImages(pipe, random_features(pipe, SEEDS))


@pytest.fixture(scope="module")
def fixture(tiny: Pipeline, golden: Golden) -> PlainImages:
    """The fixture's weights and its two prompts."""
    rows = np.arange(SEEDS) % 2
    return PlainImages(tiny, {name: x[rows] for name, x in golden.given.items()})


@pytest.mark.parametrize("kind", KINDS)
def test_exact_is_ar(small: PlainImages, kind: str) -> None:
    accepted = [small.draw([seed], tree).stats.tau for tree in KINDS[kind] for seed in range(2)]
    accepted += [small.draw([0, 1, 2], tree).stats.tau for tree in KINDS[kind]]
    assert max(accepted) > 1.8  # otherwise commits were hardly exercised


def test_a_tree_in_a_file_needs_no_build(small: PlainImages, tmp_path: Path) -> None:
    """Where an engine of the bundle drafts its top, or nothing is drafted."""
    for name, top in (("guesses", "jacobi"), ("behind", "eagle")):
        file = tmp_path / f"{name}.json"
        nodes = [([0], top), ([1], "jacobi"), ([0, 0], "jacobi"), ([1, 0], "jacobi"), ([0, 0, 0], "jacobi")]
        file.write_text(json.dumps([{"path": path, "source": source} for path, source in nodes]))
        output = small.draw([0, 1, 2, 3], str(file))
        assert output.stats.trees == {name: output.stats.rounds} and output.stats.tau > 1.2
        batch = small.pipe.batch(1, tree=str(file))
        drawn = batch.submit(request_of(small.pipe, 0, 0, DrawOptions())).result()
        assert drawn.stats.trees == {name: drawn.stats.rounds}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", ["small", "synthetic", "fixture"])
def test_exact_is_ar_for_many_seeds(request: pytest.FixtureRequest, which: str, kind: str) -> None:
    """Twenty seeds and four trees of each kind, one image and three at a time; of the fixture, which takes twenty times
    as long, a quarter of the seeds for each tree."""
    images: PlainImages = request.getfixturevalue(which)
    trees = [tree for tree in KINDS[kind] if tree not in FILES or which == "small"]
    for number, tree in enumerate(trees):
        seeds = range(number, SEEDS, 4) if which == "fixture" else range(SEEDS)
        for seed in seeds:
            images.draw([seed], tree)
        for first in range(0, 3 if which == "fixture" else SEEDS, 3):
            images.draw(seeds[first : first + 3], tree)


@pytest.mark.parametrize(
    "settings", [{"temperature": 0}, {"guidance_scale": 1.0}, {"top_k": 1}, {"top_k": 3}, {"top_p": 0.6}]
)
@pytest.mark.parametrize("which", ["small", "synthetic"])
def test_with_other_settings(request: pytest.FixtureRequest, which: str, settings: dict[str, float]) -> None:
    """Greedy images, images without guidance, images whose draws have no rival."""
    pipe = request.getfixturevalue(which).pipe
    images = PlainImages(pipe, random_features(pipe, 3), **settings)
    for tree in FEW:
        if tree not in FILES or which == "small":
            images.draw([0, 1, 2], tree)
            images.draw([1], tree)


# whatever is guessed ----------------------------------------------------------------------------------------
def say(images: PlainImages, patch: pytest.MonkeyPatch, wrong: bool) -> None:
    """From now on the elder guesses behind a node are the image's own tokens, or wrong ones; others are always wrong.

    Also where the sequence forces a token.
    """
    kinds = images.pipe.manifest.model.plan.tokens

    def fill(tokens: list[int], origins: list[int], _: Tree, guessed: list[Step], sequence: TokenSequence) -> None:
        own = images.sequence(sequence.seed)
        for node, depth, elders in guessed:
            position = sequence.done + depth - 1
            right = int(own[position]) if position < len(own) else 0
            tokens[node] = (right + 1) % kinds if wrong or elders else right
            origins[node] = Origin.JACOBI

    patch.setattr(jacobi, "fill", fill)


@pytest.mark.parametrize("which", ["small", "synthetic"])
def test_guesses_that_are_wrong_on_purpose(
    request: pytest.FixtureRequest, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token a call where the drafter says nothing, at most those it drafts and one more where it does."""
    images: PlainImages = request.getfixturevalue(which)
    plan = images.pipe.manifest.model.plan
    say(images, monkeypatch, wrong=True)
    for tree in FEW:
        if tree in FILES and which == "synthetic":
            continue
        output = images.draw([0, 1, 2], tree)
        if tree in WITHOUT_DRAFTER:
            assert output.stats.target_calls == plan.length - 1
            assert (output.origins == Origin.TARGET).all() and output.stats.tau == 1
        else:
            assert output.stats.tau <= 2 and not (output.origins == Origin.JACOBI).any()
        for seed in (3, 4):
            assert images.draw([seed], tree).stats.target_calls >= plan.length // 2


@pytest.mark.parametrize("which", ["small", "synthetic"])
@pytest.mark.parametrize("tree", ["jacobi_1", "jacobi_4", "jacobi_16", "jacobi_40", "jacobi_6x3"])
def test_guesses_that_are_the_images_own_tokens(
    request: pytest.FixtureRequest, which: str, tree: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call brings the whole chain and one token more."""
    images: PlainImages = request.getfixturevalue(which)
    plan, depth = images.pipe.manifest.model.plan, images.pipe.manifest.tree(tree).tree().depth
    missing = plan.length - 1  # the first token is the prefill's
    say(images, monkeypatch, wrong=False)
    for seeds in ([0], [1], [2, 3, 4]):
        output = images.draw(seeds, tree)
        assert output.stats.target_calls == math.ceil(missing / (depth + 1))
        places = plan.code_positions[plan.code_positions > 0] - 1
        bonus = places % (depth + 1) == depth  # the last token of a call
        for origins in output.origins[:, plan.code_positions > 0]:
            np.testing.assert_array_equal(origins, np.where(bonus, Origin.TARGET, Origin.JACOBI))


@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"top_p": 0.3}, {"temperature": 0}])
def test_rivals_are_what_came_second(small_vocabulary: Pipeline, options: dict[str, float]) -> None:
    """In the race of the target's draw, among what the sampler keeps; kept by position for the next round."""
    batch = small_vocabulary.batch(2, tree="jacobi_6x3", **options)  # type: ignore[arg-type]
    jobs = [batch.submit(request_of(small_vocabulary, p, p, DrawOptions())) for p in range(2)]
    lane, checked = batch.lane, 0
    for _ in range(6):
        batch.step()
        for slot, job in enumerate(jobs):
            sequence = job._sequence
            assert lane.second is not None and sequence is not None and not job.done
            for node, depth in enumerate(lane.tree.depths):
                if sequence.newest.start + depth >= len(sequence.tokens):
                    continue  # nobody fills the noise there
                count = kept(lane.logits[slot, node], sequence.sampling)
                ids = lane.kept_ids[slot, node, :count]
                race = lane.logits[slot, node, :count] + lane.noise[slot, depth][ids]
                ranked = ids[np.argsort(-race, kind="stable")]
                assert lane.drawn[slot, node] == ranked[0]
                assert lane.second[slot, node] == ranked[min(1, count - 1)]
                checked += count > 1
            nodes = lane.tree.continuations[sequence.newest.path[-1]]
            nodes = nodes[nodes >= 0]
            ahead = slice(sequence.done, sequence.done + len(nodes))
            behind = [lane.drawn[slot, nodes], lane.second[slot, nodes]]
            np.testing.assert_array_equal(sequence.guesses[:, ahead], behind)
    assert (checked > 40) == (options != {"temperature": 0})


# whatever stands beside it ----------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def alone(small_vocabulary: Pipeline) -> dict[str, Alone]:
    return {tree: Alone(small_vocabulary, tree, SERVED) for tree in FEW}


@settings(max_examples=25, deadline=None, derandomize=True)
@given(happenings=events(len(SERVED)), slots=st.integers(1, 4), tree=st.sampled_from(FEW))
def test_random_arrival_and_cancellation(
    small_vocabulary: Pipeline, alone: dict[str, Alone], happenings: list[Any], slots: int, tree: str
) -> None:
    play(small_vocabulary, small_vocabulary.batch(slots, tree=tree), happenings, alone[tree])


@pytest.mark.usefixtures("spoilt")
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(happenings=events(len(SERVED)), slots=st.integers(1, 4), tree=st.sampled_from(FEW))
def test_on_a_device_too(
    apart: Pipeline, alone: dict[str, Alone], happenings: list[Any], slots: int, tree: str
) -> None:
    """With memory apart, calls for 1, 2, 4 slots, and nothing readable but what was fetched."""
    play(apart, apart.batch(slots, tree=tree), happenings, alone[tree])


@pytest.mark.usefixtures("spoilt")
@pytest.mark.parametrize("tree", ["jacobi_2x2", "jacobi_12x8", "mixed_1x1", "mixed_6x6", "bush"])
def test_guesses_on_a_device_are_those_of_the_host(small: PlainImages, apart: Pipeline, tree: str) -> None:
    """What came second is fetched, too: the same tokens come from the same sources."""
    given = {name: rows[:8] for name, rows in small.features.items()}
    here, there = (pipe.generate(**given, tree=tree) for pipe in (small.pipe, apart))
    np.testing.assert_array_equal(here.origins, there.origins)
    np.testing.assert_array_equal(here.rounds, there.rounds)
    small.check(there)
