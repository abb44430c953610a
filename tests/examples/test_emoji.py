"""The demo recipe at a tiny scale, on drawn shapes in place of artwork: no network."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file
from support import build

from cascade_trt.cli import cli
from cascade_trt.examples.emoji import target, tokenizer
from cascade_trt.examples.emoji.__main__ import main
from cascade_trt.examples.emoji.augment import plain, views
from cascade_trt.examples.emoji.captions import BACKGROUNDS, caption
from cascade_trt.examples.emoji.config import RECIPES, Augment, Recipe
from cascade_trt.examples.emoji.data import DataSet, Emoji, is_held_out, render
from cascade_trt.examples.emoji.drafter import make_samples, train_drafter
from cascade_trt.examples.emoji.encode import draw_codes
from cascade_trt.examples.emoji.model import TextToImage
from cascade_trt.examples.emoji.progress import Run
from cascade_trt.examples.emoji.sample import sample
from cascade_trt.examples.emoji.ship import load_average, ship
from cascade_trt.examples.emoji.start import start_from
from cascade_trt.examples.emoji.target import train_target
from cascade_trt.examples.emoji.text import encode, train_text_tokenizer
from cascade_trt.examples.emoji.tokenizer import psnr, train_tokenizer
from cascade_trt.export.families.llamagen.model import prefix_causal_mask
from cascade_trt.runtime.errors import CascadeError

COLOURS = {"red circle": "#d00", "blue circle": "#00d", "green leaf": "#0a0", "orange fruit": "#f80"}


@pytest.fixture(scope="module")
def data() -> DataSet:
    names, icons = [], {"noto": {}, "fluent": {}}
    for number, (label, colour) in enumerate(COLOURS.items()):
        code = f"1F{number:03X}"
        names.append({"label": label, "hexcode": code, "group": 3 + number % 2, "tags": [f"tag{number}"]})
        shapes = {"noto": '<circle cx="16" cy="16" r="12"', "fluent": '<rect x="4" y="4" width="24" height="24"'}
        for style, shape in shapes.items():
            icons[style][code.lower()] = (
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">{shape} fill="{colour}"/></svg>'
            )
    names.append({"label": "a flag", "hexcode": "1FFFF", "group": 9, "tags": []})  # not of the recipe's groups
    return render(RECIPES["tiny"], names, icons)


def test_rendered_images(data: DataSet) -> None:
    assert data.rgba.shape == (8, 32, 32, 4)
    assert {(p.concept, p.style) for p in data.emoji} == {(c, s) for c in COLOURS for s in ("noto", "fluent")}
    red = next(i for i, p in enumerate(data.emoji) if (p.concept, p.style) == ("red circle", "noto"))
    assert data.rgba[red, 16, 16].tolist() == [221, 0, 0, 255]
    assert data.rgba[red, 0, 0, 3] == 0


def test_held_out_pairs_keep_their_concept_in_training() -> None:
    styles = ["noto", "fluent", "twemoji"]
    held = [(c, s) for c in range(4000) for s in styles if is_held_out(str(c), s, styles)]
    assert 0.04 < len(held) / 12000 < 0.055
    assert len({concept for concept, _ in held}) == len(held)  # never two styles of one concept
    assert not is_held_out("x", "noto", ["noto"])


def test_captions_name_what_is_seen() -> None:
    image = Emoji("red apple", "noto", 4, ("fruit",), True, False)
    rng = random.Random(0)
    texts = {caption(image, background, rng) for background in BACKGROUNDS for _ in range(100)}
    assert {"a red apple", "the red apple", "red apple on a pink background, noto style"} <= texts
    assert all("red apple" in text for text in texts)
    assert all("background" in caption(image, "black", rng) for _ in range(50))


def test_views(data: DataSet) -> None:
    rgba = torch.from_numpy(data.rgba)
    pixels, backgrounds = views(rgba, data.emoji, random.Random(1), Augment(coloured=1.0))
    assert pixels.shape == (8, 3, 32, 32)
    assert pixels.abs().max() <= 1
    for image, name in zip(pixels, backgrounds, strict=True):
        wanted = torch.tensor(BACKGROUNDS[name]) / 127.5 - 1
        torch.testing.assert_close(image[:, 0, 0], wanted, atol=0.02, rtol=0)
    still, _ = views(rgba, data.emoji, random.Random(1), Augment(0.0, 0.0, 0.0, 0.0))
    torch.testing.assert_close(still, plain(rgba), atol=0.02, rtol=0)


def test_codes_are_drawn_among_those_that_look_alike() -> None:
    """exp(score / grain) is the distribution; without grain the best code; the same seed draws the same codes."""
    scores = torch.tensor([0.9, 0.89, 0.5]).expand(1, 20_000, 3)
    prices = torch.tensor([0.0, 0.01 * np.log(3), 0.0])
    assert (draw_codes(scores, prices, 0.0, 0) == 1).all()
    codes = draw_codes(scores, prices, 0.01, 0)
    share = torch.bincount(codes.flatten(), minlength=3) / codes.numel()
    torch.testing.assert_close(share, torch.tensor([np.e, 3.0, 0.0]) / (np.e + 3), atol=0.015, rtol=0)
    assert torch.equal(codes, draw_codes(scores, prices, 0.01, 0))
    assert not torch.equal(codes, draw_codes(scores, prices, 0.01, 1))


def train(recipe: Recipe, data: DataSet, out: Path) -> None:
    vq = train_tokenizer(recipe, data, out)
    words = train_text_tokenizer(data, out)
    model = train_target(recipe, data, vq, words, out)
    samples = make_samples(recipe, data, words, model, out)
    drafter = train_drafter(recipe, samples, model.target, out)
    ship(recipe, model, vq, drafter, words, out / "weights")


@pytest.mark.slow
def test_from_images_to_a_drawn_image(data: DataSet, tmp_path: Path) -> None:
    """The steps, the shipped formats, the build that reads them as any checkpoint, and a prompt drawn."""
    recipe = RECIPES["tiny"]
    train(recipe, data, tmp_path)
    weights = tmp_path / "weights"
    for step in ("tokenizer", "target", "drafter"):
        assert (tmp_path / step / "loss.png").is_file()
    build("llamagen", "--checkpoint", weights / "target.safetensors", "--vq", weights / "vq.safetensors",
          "--drafter", weights / "drafter.safetensors", "--text", weights / "text", "--config", weights / "config.json",
          "--tree", "pair_4", "--out", tmp_path / "bundle")  # fmt: skip
    assert json.loads((tmp_path / "bundle" / "manifest.json").read_text())["rules"] == dict(recipe.rules)
    result = CliRunner().invoke(
        cli, ["generate", "a red circle", "--bundle", str(tmp_path / "bundle"), "--out", str(tmp_path / "a.png")]
    )
    assert result.exit_code == 0, result.output
    assert Image.open(tmp_path / "a.png").size == (32, 32)


@pytest.mark.slow
@pytest.mark.parametrize(("module", "each_step"), [(tokenizer, "losses"), (target, "hide")])
def test_an_interrupted_training_goes_on_where_it_was(
    data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType, each_step: str
) -> None:
    """Interrupted at the third of four steps and started again: the very weights of an uninterrupted run."""
    recipe = replace(RECIPES["tiny"], target_steps=4)
    vq, words = train_tokenizer(recipe, data, tmp_path), train_text_tokenizer(data, tmp_path)

    def weights(out: Path) -> dict[str, torch.Tensor]:
        if module is tokenizer:
            return train_tokenizer(recipe, data, out).state_dict()
        return train_target(recipe, data, vq, words, out).state_dict()

    monkeypatch.setattr(module, "_EVERY", 2)
    whole = weights(tmp_path / "whole")
    calls, original = [], getattr(module, each_step)

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(module, each_step, interrupted)
    with pytest.raises(KeyboardInterrupt):
        weights(tmp_path / "parts")
    resumed = weights(tmp_path / "parts")
    assert len(calls) == 5  # two, the interrupted one, and the last two
    for name, tensor in resumed.items():
        torch.testing.assert_close(tensor, whole[name], rtol=0, atol=0)
    assert np.isfinite(psnr(vq, recipe, data))


def test_prompts_are_padded_on_the_left_and_unknown_words_fall_into_pieces(data: DataSet, tmp_path: Path) -> None:
    words = train_text_tokenizer(data, tmp_path)
    ids, mask = encode(words, ["a red circle", "a RED circle", "zebra " * 9], 8)
    assert ids.shape == (3, 8)
    assert ids[0].tolist() == ids[1].tolist()
    assert mask[0].tolist() == [False] * 4 + [True] * 4
    assert ids[0, -1] == words.token_to_id("</s>") == ids[2, -1]
    assert mask[2].all()


@pytest.mark.slow
def test_a_training_starts_from_shipped_weights(data: DataSet, tmp_path: Path) -> None:
    """The tokenizer is done and the target stands where grain begins, with the shipped weights; steps go on from it."""
    recipe = replace(RECIPES["tiny"], target_steps=4, grain_start=0.5)
    train(recipe, data, tmp_path / "first")
    weights, out = tmp_path / "first" / "weights", tmp_path / "second"
    start_from(recipe, data, weights, out)
    state = torch.load(out / "target" / "state.pt", weights_only=True)
    assert state["step"] == 2
    shipped = load_file(weights / "target.safetensors")
    for name, tensor in shipped.items():
        torch.testing.assert_close(state["average"][f"target.{name}"], tensor.float(), rtol=0, atol=0)
    train(recipe, data, out)
    assert [entry["step"] for entry in Run(out, "tokenizer").read_log()] == []  # nothing was left to train
    assert [entry["step"] for entry in Run(out, "target").read_log()] == [4, 4]
    moved = load_file(out / "weights" / "target.safetensors")
    assert any(not torch.equal(moved[name], tensor) for name, tensor in shipped.items())
    with pytest.raises(CascadeError, match="give a folder that step `ship` wrote"):
        start_from(recipe, data, tmp_path / "nowhere", tmp_path / "third")
    with pytest.raises(CascadeError, match="size mismatch"):
        start_from(replace(recipe, dim=32), data, weights, tmp_path / "fourth")


@pytest.mark.slow
def test_the_average_is_what_is_shipped(data: DataSet, tmp_path: Path) -> None:
    recipe = RECIPES["tiny"]
    vq = train_tokenizer(recipe, data, tmp_path)
    words = train_text_tokenizer(data, tmp_path)
    model = train_target(recipe, data, vq, words, tmp_path)
    stored = load_average(recipe, words.get_vocab_size(), tmp_path)
    for name, tensor in stored.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=0, atol=0)


@torch.no_grad()
def test_samples_carry_the_states_that_reading_the_whole_image_gives(data: DataSet, tmp_path: Path) -> None:
    recipe, words = RECIPES["tiny"], train_text_tokenizer(data, tmp_path)
    torch.manual_seed(0)
    model = TextToImage(recipe, words.get_vocab_size()).eval()
    texts = ["a red circle", "blue circle on a pink background"]
    codes, *streams = sample(recipe, model, words, texts, seed=3)
    ids, mask = encode(words, texts, recipe.prefix_len)
    for hidden, uncond in zip(streams, (False, True), strict=True):
        prefix = model.prefix(ids, mask, torch.full((2,), uncond))
        embeds = torch.cat([prefix, model.target.tok_embeddings(codes[:, :-1])], dim=1)
        length = embeds.shape[1]
        read = model.target.stack(embeds, torch.arange(length)[None], prefix_causal_mask(mask, length))
        torch.testing.assert_close(hidden, read, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def shipped_weights(data: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of weights that step `ship` wrote; not to be changed."""
    out = tmp_path_factory.mktemp("shipped")
    train(RECIPES["tiny"], data, out)
    return out / "weights"


@pytest.mark.slow
def test_a_new_drafter_leaves_the_target_as_it_was(data: DataSet, shipped_weights: Path, tmp_path: Path) -> None:
    """`ship --keep WEIGHTS`: a drafter and a table of states beside the very weights it was given."""
    weights, out = shipped_weights, tmp_path / "second"
    data.save(out)
    arguments = ["ship", "--config", "tiny", "--keep", str(weights), "--out", str(out)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    for name in ("target.safetensors", "vq.safetensors", "text/model.safetensors"):
        assert (out / "weights" / name).read_bytes() == (weights / name).read_bytes()
    assert (out / "weights" / "states.npz").is_file()
    given = load_file(weights / "drafter.safetensors")
    assert load_file(out / "weights" / "drafter.safetensors").keys() == given.keys()
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 0, again.output
    other = tmp_path / "other"
    shutil.copytree(weights, other)
    moved = load_file(weights / "target.safetensors")
    save_file({name: tensor * 1.5 for name, tensor in moved.items()}, other / "target.safetensors")
    refused = CliRunner().invoke(main, ["ship", "--config", "tiny", "--keep", str(other), "--out", str(out)])
    assert refused.exit_code == 2
    assert "another target" in refused.output
    fewer, words = replace(RECIPES["tiny"], drafter_samples=3), train_text_tokenizer(data, tmp_path)
    with pytest.raises(CascadeError, match="samples of another recipe"):
        make_samples(fewer, data, words, TextToImage(fewer, words.get_vocab_size()), out)
    refused = CliRunner().invoke(main, [*arguments, "--start", str(weights)])
    assert refused.exit_code == 2
    assert "without --start" in refused.output
    missing = CliRunner().invoke(main, ["ship", "--config", "tiny", "--keep", str(out), "--out", str(out)])
    assert missing.exit_code == 2
    assert "give a folder that step `ship` wrote" in missing.output


@pytest.mark.slow
def test_a_drafter_goes_on_from_another(data: DataSet, shipped_weights: Path, tmp_path: Path) -> None:
    """`--drafter FILE`: two small steps from the drafter given, where a new one is elsewhere altogether."""
    weights = shipped_weights
    given = load_file(weights / "drafter.safetensors")
    begun = given["fc.bias"] + 1
    save_file(given | {"fc.bias": begun}, tmp_path / "begun.safetensors")
    distances = []
    for more in ([], ["--drafter", str(tmp_path / "begun.safetensors")]):
        out = tmp_path / f"out{len(more)}"
        data.save(out)
        arguments = ["ship", "--config", "tiny", "--keep", str(weights), "--out", str(out), *more]
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
        trained = load_file(out / "weights" / "drafter.safetensors")["fc.bias"]
        distances.append(float((trained - begun).abs().max()))
    assert distances[1] < 0.1 < 0.9 < distances[0]
    arguments = ["ship", "--config", "tiny", "--keep", str(weights), "--out", str(tmp_path / "out0")]
    refused = CliRunner().invoke(main, [*arguments, "--drafter", str(weights / "vq.safetensors")])
    assert refused.exit_code == 2
    assert "cannot be started from" in refused.output
    refused = CliRunner().invoke(main, ["ship", "--config", "tiny", "--drafter", str(tmp_path / "begun.safetensors")])
    assert refused.exit_code == 2
    assert "goes with --keep" in refused.output
