"""The judge's file, its features and what it answers."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cascade_trt.evaluation.captions import Caption
from cascade_trt.evaluation.judge import Judge, features_of, load_features, load_judge, to_pixels
from cascade_trt.evaluation.real import load_real
from cascade_trt.evaluation.score import Gallery, background_of, figures, score_features, score_images
from cascade_trt.runtime.errors import CascadeError


def noise(count: int, side: int = 16, seed: int = 0) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)) for _ in range(count)]


def test_features_have_a_fixed_length_and_no_batch_effects(judge: Judge) -> None:
    images = noise(70) + noise(3, 40)  # more than a batch, two sizes
    found = features_of(judge.features, images)
    assert found.shape == (73, 4)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 2, rtol=1e-5)
    np.testing.assert_allclose(features_of(judge.features, images[69:71]), found[69:71], atol=1e-5)


def test_answers_are_those_of_the_heads(judge: Judge) -> None:
    images = noise(20)
    with torch.inference_mode():
        concept, style = judge(to_pixels(images))
    seen = [judge.config.concepts[i] for i in concept.argmax(1)]
    styles = [judge.config.styles[i] for i in style.argmax(1)]
    right = [Caption("x", concept=c, style=s) for c, s in zip(seen, styles, strict=True)]
    scores = score_images(images, right, judge, None)
    assert scores.concept.mean() == scores.style.mean() == scores.concept_top5.mean() == 1
    assert np.isnan(scores.background).all() and np.isnan(scores.nearest).all()
    wrong = [Caption("x", concept="cat" if c != "cat" else "red") for c in seen]
    assert score_images(images, wrong, judge, None).concept.mean() == 0
    unknown = score_images(images, [Caption("x", concept="zebra")] * 20, judge, None)
    assert np.isnan(unknown.concept).all()


def test_the_nearest_real_image(judge: Judge) -> None:
    gallery = Gallery(np.eye(4)[:3] * 2, np.array([2, 0, 1]))
    captions = [Caption("x", concept="cat"), Caption("x", concept="cat"), Caption("x", concept="red")]
    own = np.array([[2, 0, 0, 0], [0, 2, 0, 0], [0.1, 1.9, 0, 0]])
    assert score_features(own, ["white"] * 3, captions, judge, None, gallery).nearest.tolist() == [1, 0, 1]


def test_background_is_that_of_the_rim(judge: Judge) -> None:
    image = Image.new("RGB", (20, 20), (40, 30, 20))
    image.paste((255, 255, 255), (3, 3, 17, 17))
    assert background_of(image, judge.config.backgrounds) == "black"


def test_figures_of_groups_and_of_too_few(judge: Judge, judge_file: Path) -> None:
    captions = [Caption("x", concept="cat", group="held-out" if i % 2 else "training") for i in range(12)]
    real = load_real(judge_file)
    assert real is not None
    found = figures(score_images(noise(12), captions, judge, None), real.reference)
    assert found["groups"]["held-out"]["images"] == 6
    assert found["frechet"] > 0 and found["frechet_held_out"] > 0
    assert 0 <= found["precision"] <= 1 and 0 <= found["recall"] <= 1
    few = figures(score_images(noise(2), captions[:2], judge, None), real.reference)
    assert few["frechet"] is None and few["precision"] is None
    assert found["style"] is None


def test_damaged_judges(judge_file: Path, tmp_path: Path) -> None:
    with pytest.raises(CascadeError, match="there is no judge"):
        load_judge(tmp_path / "none.safetensors")
    for source in judge_file.parent.iterdir():
        shutil.copy(source, tmp_path / source.name)
    copy = tmp_path / judge_file.name
    content = copy.read_bytes()
    copy.write_bytes(content[: len(content) // 2])
    with pytest.raises(CascadeError, match="not one judge"):
        load_judge(copy)
    with pytest.raises(CascadeError, match="another judge"):
        load_real(copy)
    copy.with_suffix(".npz").write_bytes(b"nothing")
    with pytest.raises(CascadeError, match="damaged"):
        load_real(copy)


class Mean(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


def test_features_of_ones_own(tmp_path: Path) -> None:
    torch.jit.script(Mean()).save(str(tmp_path / "mean.pt"))
    images = noise(3)
    found = features_of(load_features(tmp_path / "mean.pt"), images)
    np.testing.assert_allclose(found, [np.asarray(image).mean((0, 1)) / 255 for image in images], rtol=1e-5)
    (tmp_path / "text.pt").write_text("no module")
    for name, said in (("none.pt", "there is no"), ("text.pt", "is no TorchScript")):
        with pytest.raises(CascadeError, match=said):
            load_features(tmp_path / name)
    with pytest.raises(CascadeError, match="one row of features"):
        features_of(lambda x: x, images)
