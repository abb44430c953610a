"""The fixture of Janus-Pro: what the original code computed, engine by engine and through the whole pipeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from graph_calls import Target, prefill, session
from janus import JANUS, save_drafter
from support import build

from cascade_trt.runtime.pipeline import Pipeline
from cascade_trt.runtime.prompts import PromptEncoder, rows_of

DRAFTED = ("small_6", "chain_4", "dynamic_12x4x3", "chain_1", "chain_2")
TREES = (*DRAFTED[:3], "mixed_4", "mixed_8x4", "jacobi_5", "jacobi_12x8")
GOLDEN = dict(np.load(JANUS / "golden.npz"))
PROMPTS = [str(prompt) for prompt in GOLDEN["prompts"]]
SCALE = float(GOLDEN["cfg_scale"])


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = tmp_path_factory.mktemp("janus")
    trees = (part for tree in DRAFTED for part in ("--tree", tree))
    build("janus-pro", "--checkpoint", JANUS, "--drafter", save_drafter(folder / "drafter"), "--batch", 3, *trees,
          "--prompt-length", 64, "--out", folder / "bundle")  # fmt: skip
    return Pipeline.load(folder / "bundle", threads=1)


def encoded(pipe: Pipeline) -> tuple[np.ndarray, np.ndarray]:
    """Ids [4, T] and mask [4, T]: both prompts, then the unconditional row of each."""
    text = pipe.manifest.text
    assert text is not None
    found = PromptEncoder(pipe.folder, text).encode(PROMPTS)
    rows = np.stack([rows_of(text, *one) for one in zip(found.ids, found.mask, strict=True)], axis=1)  # [2, P, T]
    return rows.reshape(4, -1), np.tile(found.mask, (2, 1))


def test_defaults_are_the_originals(pipe: Pipeline) -> None:
    """No cut; bytes are cut and not rounded."""
    sampling, model = pipe.manifest.sampling, pipe.manifest.model
    assert (sampling.guidance_scale, sampling.temperature, sampling.top_k, sampling.top_p) == (5.0, 1.0, 512, 1.0)
    assert model.rounding == "down" and (model.plan.rows, model.plan.columns, model.pixels) == (8, 8, 2)


def test_ids_of_both_rows(pipe: Pipeline) -> None:
    ids, mask = encoded(pipe)
    for prompt in range(2):
        for row, wanted in enumerate(GOLDEN[f"input_ids_{prompt}"]):
            found = 2 * row + prompt
            assert ids[found][mask[found]].tolist() == wanted.tolist()


def test_logits_and_states(pipe: Pipeline) -> None:
    """Of every listed step. Step 0 is the last slot of the prefix, whose rows see the unconditional pads."""
    ids, mask = encoded(pipe)
    target = Target(pipe.folder, mask)
    embeds = session(pipe.folder, "condition").run(None, {"ids": ids})[0]
    first = prefill(target, embeds, mask, mask.shape[1])
    tokens = GOLDEN["greedy_tokens"][:, : int(GOLDEN["logit_steps"].max())]
    rest = target(target.embed(np.tile(tokens, (2, 1))), mask.shape[1])
    for i, step in enumerate(GOLDEN["logit_steps"]):
        outputs, at = (first, -1) if step == 0 else (rest, step - 1)
        assert np.abs(outputs["hidden"][:, at] - GOLDEN["hidden"][:, i]).max() <= 2e-4
        wanted = GOLDEN["cond_uncond_logits"][:, i]
        found = np.full_like(wanted, np.nan)
        np.put_along_axis(found, outputs["ids"][:, at], outputs["logits"][:, at], axis=1)
        assert np.abs(found - wanted).max() <= 2e-4  # GELU by tanh would be 1e-3 away


@pytest.mark.parametrize("tree", [None, *TREES])
def test_greedy_tokens(pipe: Pipeline, tree: str | None) -> None:
    """Together, in turn and alone, whatever the tree."""
    rule = "ar" if tree is None else "exact"
    for order in ([0, 1], [1, 0, 1], [0], [1]):
        prompts = [PROMPTS[i] for i in order]
        output = pipe.generate(prompts, temperature=0, guidance_scale=SCALE, rule=rule, tree=tree)
        np.testing.assert_array_equal(output.codes, GOLDEN["greedy_tokens"][order])


def test_images(pipe: Pipeline) -> None:
    output = pipe.generate(PROMPTS, temperature=0, rule="ar")
    pixels = (np.clip(GOLDEN["image"], -1, 1) + 1) / 2 * 255
    for image, wanted in zip(output.images, pixels.astype(np.uint8).transpose(0, 2, 3, 1), strict=True):
        differences = np.abs(np.asarray(image).astype(int) - wanted)
        assert differences.max() <= 1 and differences.mean() <= 0.01  # half of all would differ if they were rounded


def test_white_space_around_a_prompt_is_nothing(pipe: Pipeline) -> None:
    bare, spaced = (pipe.generate([text], seed=1, rule="ar").codes for text in (PROMPTS[0], f" \n{PROMPTS[0]}\t "))
    np.testing.assert_array_equal(bare, spaced)


def test_a_long_prompt_keeps_its_template(pipe: Pipeline) -> None:
    text = pipe.manifest.text
    assert text is not None
    found = PromptEncoder(pipe.folder, text).encode([f"{PROMPTS[1]} {PROMPTS[1]}"])
    long, short = found.ids[0], GOLDEN["input_ids_1"][0]
    assert found.mask.all() and long[:40].tolist() == short[:40].tolist() and long[-5:].tolist() == short[-5:].tolist()
    assert found.warnings[0][0].endswith("the rest was cut.")


def test_padding_changes_nothing(pipe: Pipeline, tmp_path: Path) -> None:
    """A longer prefix is padding that no row sees: the same tokens, without guidance too."""
    build("janus-pro", "--checkpoint", JANUS, "--batch", 2, "--out", tmp_path / "bundle")
    wide = Pipeline.load(tmp_path / "bundle", threads=1)
    assert wide.manifest.model.condition.length == 128
    for scale in (1.0, SCALE):
        codes = [made.generate(PROMPTS, temperature=0, guidance_scale=scale, rule="ar").codes for made in (pipe, wide)]
        np.testing.assert_array_equal(*codes)
