"""Trains the judge of `cascade-trt eval`, and measures real images with it.

The judge (evaluation/judge.py) sees real images of the training split alone: no held-out (concept, style) pair, no
reconstruction and no drawn image. So real held-out images test it, and what it says of the model is independent.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ...evaluation.captions import Caption, write_captions
from ...evaluation.judge import Judge, JudgeConfig, load_judge, save_judge
from ...evaluation.metrics import accuracy
from ...evaluation.real import PROMPTS, RealFeatures, load_real, real_scores, save_real
from ...evaluation.score import HELD_OUT, QUESTIONS, Gallery, Reference, background_of
from ...export.models.vq import VQModel
from ...runtime.images import to_images
from .augment import compose, random_moves, views
from .captions import BACKGROUNDS, caption
from .config import Augment, Recipe
from .data import DataSet, Emoji
from .encode import code_prices, draw_codes, similarities
from .progress import Run, cosine_rate

_EVERY = 100
_RATE = 3e-3
# Wider than any model's training views, so that the judge reads what is drawn a little off.
_VIEWS = Augment(shift=0.1, scale=0.25, coloured=0.75, mirrored=0.5)
_PROMPTS, _REFERENCE, _GALLERY_VIEWS = 1000, 1200, 4
TRAINING, BACKGROUND = "training", "background"
_GROUPS = (TRAINING, HELD_OUT, TRAINING, BACKGROUND, TRAINING)  # prompts in this turn: any first part is a fair mix


def make_judge(recipe: Recipe, data: DataSet, vq: VQModel, out: Path) -> dict[str, float]:
    """Trains the judge (or goes on) and fills out/weights with it, its prompts and the features of real images.

    Returns its accuracies. Does nothing but read them where everything is there and the tokenizer is the same.
    """
    judge = train_judge(recipe, data, Run(out, "judge"))
    file, made_from = out / "weights" / "judge.safetensors", _digest(recipe, judge, vq)
    notes = _notes(file)
    if notes.get("made_from") != made_from or load_real(file) is None or not (file.parent / PROMPTS).is_file():
        save_judge(judge, file, {})
        judge = load_judge(file)  # the features are those of the float16 weights that are shipped
        measure_real(recipe, data, vq, judge, file)
        notes = {"made_from": made_from, "steps": recipe.judge_steps, "accuracy": accuracies(judge, file)}
        save_judge(judge, file, notes)
    return notes["accuracy"]


def _notes(file: Path) -> dict[str, Any]:
    """The notes of the judge in `file`; empty where there is none yet."""
    labels = file.with_suffix(".json")
    return json.loads(labels.read_text())["notes"] if file.is_file() and labels.is_file() else {}


def train_judge(recipe: Recipe, data: DataSet, run: Run) -> Judge:
    """Trains (or goes on training) and returns the judge."""
    train = data.split(held_out=False, groups=recipe.judge_groups)
    concepts = sorted({data.emoji[i].concept for i in train})
    torch.manual_seed(0)
    judge = Judge(JudgeConfig(tuple(concepts), recipe.styles, BACKGROUNDS, recipe.image_size)).to(recipe.device)
    judge = judge.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a third faster on a CPU
    optimizer = torch.optim.AdamW(judge.parameters(), lr=_RATE, weight_decay=0.05)
    start = run.resume({"model": judge}, optimizer)
    wanted = torch.tensor([_labels(data.emoji[i], judge.config) for i in range(len(data.emoji))])
    for step in tqdm(range(start, recipe.judge_steps), desc="judge", initial=start, total=recipe.judge_steps):
        rng = random.Random(step)
        for group in optimizer.param_groups:
            group["lr"] = _RATE * cosine_rate(step, recipe.judge_steps, recipe.judge_steps // 20)
        chosen = _turn(train, step, recipe.judge_batch)
        rgba, images = torch.from_numpy(data.rgba[chosen]).to(recipe.device), [data.emoji[i] for i in chosen]
        pixels = jitter(views(rgba, images, rng, _VIEWS)[0] / 2 + 0.5, rng)
        concept, style = judge(pixels.contiguous(memory_format=torch.channels_last))
        labels = wanted[chosen].to(recipe.device)
        loss = F.cross_entropy(concept, labels[:, 0], label_smoothing=0.1) + F.cross_entropy(style, labels[:, 1])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if (step + 1) % _EVERY == 0 or step + 1 == recipe.judge_steps:
            right = (concept.argmax(1) == labels[:, 0]).float().mean()
            run.log(step + 1, loss=float(loss.detach()), concept=float(right))
            run.save({"model": judge}, optimizer, step + 1)
    if start < recipe.judge_steps:
        run.plot()
    return judge.eval().requires_grad_(False).cpu()


def _labels(image: Emoji, config: JudgeConfig) -> tuple[int, int]:
    """Concept (shared by all styles) and style; -1 for a concept that the judge does not learn."""
    known = image.concept in config.concepts
    return config.concepts.index(image.concept) if known else -1, config.styles.index(image.style)


def _turn(train: list[int], step: int, count: int) -> list[int]:
    """The images of a step: all in random order before any comes again, whatever step a run goes on from."""
    chosen, at = [], step * count
    while len(chosen) < count:
        epoch, place = divmod(at + len(chosen), len(train))
        order = random.Random(epoch).sample(train, len(train))
        chosen += order[place : place + count - len(chosen)]
    return chosen


def jitter(pixels: Tensor, rng: random.Random) -> Tensor:
    """Colours, sharpness and grain varied: what styles differ in, and what a tokenizer blurs. [B, 3, H, W] in 0..1."""
    noise = torch.Generator().manual_seed(rng.randrange(2**31))

    def draw(low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(len(pixels), 1, 1, 1, generator=noise)).to(pixels.device)

    gray = pixels.mean(1, keepdim=True)
    x = gray + (pixels - gray) * draw(0.6, 1.25)
    x = (x - 0.5) * draw(0.8, 1.15) + 0.5 + draw(-0.06, 0.06)
    if rng.random() < 0.5:
        side = pixels.shape[-1]
        small = int(side * rng.uniform(0.4, 0.8))
        x = F.interpolate(x, (small, small), mode="bilinear", antialias=True, align_corners=False)
        x = F.interpolate(x, (side, side), mode="bilinear", align_corners=False)
    grain = torch.randn(x.shape, generator=noise).to(x.device)
    return (x + grain * draw(0, 0.05)).clamp(0, 1)


def make_prompts(recipe: Recipe, data: DataSet, count: int, seed: int) -> list[tuple[Caption, int]]:
    """`count` prompts in training's wording, each with the index of the real image that it describes.

    Training pairs on white, training pairs on a named colour, and held-out pairs, whose style is always named.
    """
    rng = random.Random(seed)
    pools = {group: data.split(group == HELD_OUT, recipe.target_groups) for group in set(_GROUPS)}
    queues: dict[str, list[int]] = {group: [] for group in pools}
    coloured = [name for name in BACKGROUNDS if name != "white"]
    made = []
    for number in range(count):
        group = _GROUPS[number % len(_GROUPS)]
        if not pools[group]:  # nothing is held out
            group = TRAINING
        queues[group] = queues[group] or rng.sample(pools[group], len(pools[group]))
        index = queues[group].pop()
        image, named = data.emoji[index], f", {data.emoji[index].style} style"
        background = rng.choice(coloured) if group == BACKGROUND or (group == HELD_OUT and number % 3) else "white"
        text = caption(image, background, rng)
        if group == HELD_OUT and not text.endswith(named):
            text += named
        style = image.style if text.endswith(named) else None
        made.append((Caption(text, None, image.concept, style, background, group), index))
    return made


@torch.no_grad()
def measure_real(recipe: Recipe, data: DataSet, vq: VQModel, judge: Judge, file: Path) -> None:
    """Writes prompts.jsonl and judge.npz beside the judge in `file`."""
    tests, others = make_prompts(recipe, data, _PROMPTS, 1), make_prompts(recipe, data, _REFERENCE, 2)
    write_captions(file.parent / PROMPTS, (asked for asked, _ in tests))
    train = data.split(held_out=False, groups=recipe.target_groups)
    prices = code_prices(recipe, data, vq, train)
    pixels = real_views(recipe, data, tests, 3)
    made: dict[str, list[tuple[Tensor, list[int]]]] = {"real": [], "reconstruction": [], "codes": []}
    for seed, x in enumerate(tqdm(pixels.split(50), desc="real images", unit="batch")):
        x = x.to(recipe.device)
        made["real"].append(_seen(judge, x))
        cosines = similarities(vq, x)
        made["reconstruction"].append(_seen(judge, vq.decode_codes(cosines.argmax(-1))))
        made["codes"].append(_seen(judge, vq.decode_codes(draw_codes(cosines, prices, recipe.grain, seed))))
    sets = {
        name: (torch.cat([f for f, _ in parts]).numpy(), np.array([i for _, seen in parts for i in seen]))
        for name, parts in made.items()
    }
    views_ = torch.cat([_seen(judge, x)[0] for x in real_views(recipe, data, others, 4).split(50)])
    held_out = np.array([asked.group == HELD_OUT for asked, _ in others])
    gallery = make_gallery(recipe, data, judge)
    save_real(file.with_suffix(".npz"), file, RealFeatures(Reference(views_.numpy(), held_out), gallery, sets))


def make_gallery(recipe: Recipe, data: DataSet, judge: Judge) -> Gallery:
    """The mean features of a few views of every image whose concept the judge knows, on different backgrounds."""
    indices = [i for side in (False, True) for i in data.split(side, recipe.judge_groups)]
    concepts = np.array([_labels(data.emoji[i], judge.config)[0] for i in indices])
    rng, total = random.Random(5), torch.zeros(len(indices), judge.config.features)
    for _ in range(_GALLERY_VIEWS):
        asked = [(Caption("", background=rng.choice(list(BACKGROUNDS))), index) for index in indices]
        pixels = real_views(recipe, data, asked, rng.randrange(2**31))
        total += torch.cat([_seen(judge, x)[0] for x in pixels.split(50)])
    features = F.normalize(total, dim=-1) * judge.config.features**0.5
    return Gallery(features.numpy(), concepts)


def real_views(recipe: Recipe, data: DataSet, prompts: list[tuple[Caption, int]], seed: int) -> Tensor:
    """Fresh views [n, 3, H, W] in [-1, 1] of the prompts' images on their backgrounds, as far off as training's.

    At least a little off: equal images would have no distance to their neighbours.
    """
    own = recipe.augment
    augment = replace(own, shift=max(0.02, own.shift), scale=max(0.02, own.scale))
    indices = [index for _, index in prompts]
    moves = random_moves([data.emoji[i] for i in indices], random.Random(seed), augment)
    return compose(torch.from_numpy(data.rgba[indices]), [asked.background or "white" for asked, _ in prompts], moves)


def _seen(judge: Judge, pixels: Tensor) -> tuple[Tensor, list[int]]:
    """Features [B, F] and background indices of pixels [B, 3, H, W] in [-1, 1], rounded as a PNG rounds them."""
    images, names = to_images(pixels.float().cpu().numpy()), list(judge.config.backgrounds)
    rounded = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).float() / 255
    return judge.features(rounded), [names.index(background_of(image, judge.config.backgrounds)) for image in images]


def accuracies(judge: Judge, file: Path) -> dict[str, float]:
    """Accuracy on the test sets by "set/question" and "set/question/group"."""
    from ...evaluation.real import judge_prompts

    real = load_real(file)
    assert real is not None  # it has just been written
    found: dict[str, float | None] = {}
    for name, scores in real_scores(real, judge_prompts(file), judge, _PROMPTS, distances=False).items():
        for question in QUESTIONS:
            right = getattr(scores, question)
            found[f"{name}/{question}"] = accuracy(right)
            for group in sorted(set(_GROUPS)):
                found[f"{name}/{question}/{group}"] = accuracy(right[np.array([g == group for g in scores.groups])])
    return {name: value for name, value in found.items() if value is not None}


def _digest(recipe: Recipe, judge: Judge, vq: VQModel) -> str:
    """Of everything that the measurements hang on."""
    found = hashlib.sha256(repr((recipe.target_groups, recipe.augment, recipe.rate, recipe.grain)).encode())
    for module in (judge, vq):
        for _, tensor in sorted(module.state_dict().items()):
            found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]
