"""The judge's step of the demo recipe at a tiny scale, on drawn squares in place of artwork."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cascade_trt.evaluation.judge import load_judge
from cascade_trt.evaluation.real import judge_prompts, load_real
from cascade_trt.evaluation.score import HELD_OUT
from cascade_trt.examples.emoji import judge as step
from cascade_trt.examples.emoji.config import RECIPES
from cascade_trt.examples.emoji.data import DataSet, Emoji
from cascade_trt.examples.emoji.progress import Run
from cascade_trt.export.models.vq import VQModel

RECIPE = replace(RECIPES["tiny"], judge_steps=6)


@pytest.fixture(scope="module")
def data() -> DataSet:
    """Eight concepts in two styles, squares of their own colour; the first is held out in one style."""
    rng = np.random.default_rng(0)
    images, rgba = [], np.zeros((16, 32, 32, 4), np.uint8)
    for i in range(16):
        concept, style = divmod(i, 2)
        rgba[i, 4 + 4 * style : 28, 4:28] = (*rng.integers(0, 200, 3), 255)
        held_out = concept == 0 and style == 1
        images.append(Emoji(f"thing {concept}", ("noto", "fluent")[style], 3, (), True, held_out))
    return DataSet(rgba, images)


def test_prompts_say_what_their_image_shows(data: DataSet) -> None:
    prompts = step.make_prompts(RECIPE, data, 50, 0)
    assert {asked.group for asked, _ in prompts} == {HELD_OUT, "training", "background"}
    for asked, index in prompts:
        image = data.emoji[index]
        assert image.concept == asked.concept and asked.concept in asked.prompt
        assert image.held_out == (asked.group == HELD_OUT)
        assert (asked.style is not None) == asked.prompt.endswith(f"{image.style} style")
        assert asked.style is not None or asked.group != HELD_OUT
        assert (asked.background == "white") or f"on a {asked.background} background" in asked.prompt


def test_every_image_comes_before_any_comes_again() -> None:
    train = list(range(10))
    seen = [index for number in range(10) for index in step._turn(train, number, 7)]
    assert all(sorted(seen[begin : begin + 10]) == train for begin in range(0, 70, 10))


@pytest.mark.slow
def test_the_step(data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained on the training split, measured on all of it; interrupted it goes on; a second call does nothing."""
    monkeypatch.setattr(step, "_PROMPTS", 20)
    monkeypatch.setattr(step, "_REFERENCE", 20)
    monkeypatch.setattr(step, "_EVERY", 2)
    whole = step.train_judge(RECIPE, data, Run(tmp_path, "whole")).state_dict()
    stop_after(4, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        step.train_judge(RECIPE, data, Run(tmp_path, "judge"))
    torch.manual_seed(1)
    vq = VQModel(RECIPE.vq())
    found = step.make_judge(RECIPE, data, vq, tmp_path)
    assert set(found) >= {"real images/concept", "reconstructions/nearest/held-out", "target's codes/style"}
    file = tmp_path / "weights" / "judge.safetensors"
    judge, real = load_judge(file), load_real(file)
    assert real is not None
    for name, tensor in judge.state_dict().items():
        torch.testing.assert_close(tensor.float(), whole[name].float(), rtol=1e-3, atol=1e-3)
    assert len(judge_prompts(file)) == len(real.sets["real"][0]) == 20
    assert real.gallery.features.shape == (16, 64)
    written = file.stat().st_mtime_ns
    assert step.make_judge(RECIPE, data, vq, tmp_path) == found
    assert file.stat().st_mtime_ns == written
    with torch.no_grad():
        vq.post_quant_conv.weight.mul_(0.5)  # another tokenizer: measured again
    step.make_judge(RECIPE, data, vq, tmp_path)
    assert file.stat().st_mtime_ns > written


def stop_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training stops once after so many steps, as Ctrl-C would stop it."""
    steps, jitter = [], step.jitter

    def stopping(pixels: torch.Tensor, rng: random.Random) -> torch.Tensor:
        steps.append(1)
        if len(steps) == count + 1:
            raise KeyboardInterrupt
        return jitter(pixels, rng)

    monkeypatch.setattr(step, "jitter", stopping)
