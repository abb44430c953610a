"""Trains the target: a LlamaGen text-to-image transformer, with its text encoder.

Every step sees fresh views of random images, encoded on the fly, with some of the codes hidden (`hide`). An
exponential average of the weights is what gets shipped.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn
from tqdm import tqdm

from ...export.models.vq import VQModel
from .augment import views
from .captions import caption
from .config import Recipe
from .data import DataSet
from .encode import code_prices, draw_codes, similarities
from .model import TextToImage
from .optimizer import Optimizers
from .progress import Run, cosine_rate
from .text import encode
from .words import learn_words

_EVERY = 50
_AVERAGE = 0.99
_PROBE = 0.3  # weight of the concept's loss


class Probe(nn.Module):
    """Reads the concept from the states in mid-stack; it is trained along and then thrown away.

    LlamaGen's prefix slots have no rotary phase, so their keys are zero: every image token sees all words alike,
    and the less of them the more codes there are. Without a reason to carry the concept along, it is lost.
    """

    def __init__(self, concepts: list[str], dim: int) -> None:
        super().__init__()
        self._index = {concept: i for i, concept in enumerate(sorted(set(concepts)))}
        self.head = nn.Linear(dim, len(self._index))

    def forward(self, states: Tensor, concepts: list[str], told: Tensor) -> Tensor:
        """Mean nats of the concept over the positions of states [B, HW, D], over the rows in told bool [B]."""
        states = F.rms_norm(states, states.shape[-1:])
        labels = torch.tensor([self._index[concept] for concept in concepts], device=states.device)
        logits = self.head(states).transpose(1, 2)  # [B, concepts, HW]
        nats = F.cross_entropy(logits, labels[:, None].expand(-1, states.shape[1]), reduction="none")
        # The first rows count twice: there the codes do not give the concept away yet.
        nats = (nats.mean(1) + nats[:, : nats.shape[1] // 4].mean(1)) / 2
        return (nats * told).sum() / told.sum().clamp(min=1)


def train_target(recipe: Recipe, data: DataSet, vq: VQModel, tokenizer: Tokenizer, out: Path) -> TextToImage:
    """Trains (or goes on training) and returns the averaged model."""
    run = Run(out, "target")
    parts, optimizer = make_parts(recipe, data, tokenizer.get_vocab_size())
    model, average, probe = parts["model"], parts["average"], parts["probe"]
    assert isinstance(model, TextToImage) and isinstance(average, TextToImage)
    train = data.split(held_out=False, groups=recipe.target_groups)
    start = run.resume(parts, optimizer)
    if start == 0:
        learn_words(recipe, data, tokenizer, model, train, run)
        average.load_state_dict(model.state_dict())
    model.text.requires_grad_(False)  # it stays as it is, like LlamaGen's T5
    prices = code_prices(recipe, data, vq, train)
    forward = torch.compile(model) if recipe.compile else model
    for step in tqdm(range(start, recipe.target_steps), desc="target", initial=start, total=recipe.target_steps):
        rng = random.Random(step)
        grain = recipe.grain if step >= recipe.grain_start * recipe.target_steps else 0.0
        chosen, ids, mask, uncond, codes = batch(recipe, data, vq, prices, tokenizer, train, rng, grain)
        left = 1 - step / recipe.target_steps
        hidden = hide(codes, recipe.hidden * min(1.0, left / 0.4), rng)  # the last 40 % go over to whole images
        with torch.autocast(recipe.device, torch.bfloat16, enabled=recipe.bf16):
            logits, middle = forward(ids, mask, uncond, codes, hidden)
        loss = F.cross_entropy(logits.flatten(0, 1), codes.flatten())
        named = probe(middle.float(), [data.emoji[i].concept for i in chosen], ~uncond)
        optimizer.update(loss + _PROBE * named, cosine_rate(step, recipe.target_steps, 100), clip=1.0)
        update_average(average, model, min(_AVERAGE, (step + 1) / (step + 10)))
        if (step + 1) % _EVERY == 0 or step + 1 == recipe.target_steps:
            run.log(step + 1, loss=float(loss.detach()), concept=float(named.detach()))
            if (step + 1) % (4 * _EVERY) == 0 or step + 1 == recipe.target_steps:
                run.log(step + 1, **validate(recipe, data, vq, prices, tokenizer, average, grain))
            run.save(parts, optimizer, step + 1)
    if start < recipe.target_steps:
        run.plot()
    return average.eval()


def make_parts(recipe: Recipe, data: DataSet, vocab_size: int) -> tuple[dict[str, nn.Module], Optimizers]:
    """What a run trains and saves: the model, its average, the probe; and their optimisers."""
    torch.manual_seed(0)
    model = TextToImage(recipe, vocab_size).to(recipe.device)
    average = TextToImage(recipe, vocab_size).to(recipe.device)
    concepts = [data.emoji[i].concept for i in data.split(held_out=False, groups=recipe.target_groups)]
    probe = Probe(concepts, recipe.dim).to(recipe.device)
    optimizer = Optimizers((model.target, probe), recipe.target_lr, weight_decay=0.05)
    return {"model": model, "average": average, "probe": probe}, optimizer


@torch.no_grad()
def batch(
    recipe: Recipe, data: DataSet, vq: VQModel, prices: Tensor, tokenizer: Tokenizer, pool: list[int],
    rng: random.Random, grain: float,
) -> tuple[list[int], Tensor, Tensor, Tensor, Tensor]:
    """Emoji numbers, ids [B, T], mask [B, T], uncond [B] and codes [B, HW] of random views from the pool."""
    chosen = [rng.choice(pool) for _ in range(recipe.target_batch)]
    images = [data.emoji[i] for i in chosen]
    pixels, backgrounds = views(torch.from_numpy(data.rgba[chosen]).to(recipe.device), images, rng, recipe.augment)
    texts = [caption(p, b, rng) for p, b in zip(images, backgrounds, strict=True)]
    ids, mask = encode(tokenizer, texts, recipe.prefix_len)
    uncond = torch.tensor([rng.random() < recipe.caption_dropout for _ in chosen])
    codes = draw_codes(similarities(vq, pixels), prices, grain, rng.getrandbits(40))
    device = recipe.device
    return chosen, ids.to(device), mask.to(device), uncond.to(device), codes


def hide(codes: Tensor, share: float, rng: random.Random) -> Tensor:
    """Which codes are hidden from the model, bool [B, HW - 1]: in `share` of the images any part, in others none.

    Who sees a third of a known image knows the rest of it, and never learns what the caption means: of the nats of
    an image, a caption that names one of 545 is worth 6 in 300. Where codes are hidden the caption is all there is.
    """
    parts = torch.tensor([rng.random() if rng.random() < share else 0.0 for _ in codes])
    noise = torch.rand(codes.shape[0], codes.shape[1] - 1, generator=torch.Generator().manual_seed(rng.getrandbits(40)))
    return (noise < parts[:, None]).to(codes.device)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, keep: float) -> None:
    for mean, now in zip(average.parameters(), model.parameters(), strict=True):
        mean.lerp_(now, 1 - keep)


@torch.no_grad()
def validate(
    recipe: Recipe, data: DataSet, vq: VQModel, prices: Tensor, tokenizer: Tokenizer, model: TextToImage, grain: float
) -> dict[str, float]:
    """Nats per token of the averaged model on seen and on held-out images, in fresh views.

    Also with another image's caption: the difference is what the model has learned of captions.
    """
    figures = {}
    for name, held_out in (("train_nats", False), ("held_out_nats", True)):
        pool = data.split(held_out, recipe.target_groups) or data.split(False, recipe.target_groups)
        losses, others = [], []
        for seed in range(3):
            rng = random.Random(10_000 + seed)
            _, ids, mask, uncond, codes = batch(recipe, data, vq, prices, tokenizer, pool, rng, grain)
            everyone = torch.zeros_like(uncond)
            logits, _ = model(ids, mask, everyone, codes)
            losses.append(float(F.cross_entropy(logits.flatten(0, 1), codes.flatten())))
            logits, _ = model(ids.roll(1, 0), mask.roll(1, 0), everyone, codes)
            others.append(float(F.cross_entropy(logits.flatten(0, 1), codes.flatten())))
        figures[name] = sum(losses) / len(losses)
        figures[f"{name}_other_caption"] = sum(others) / len(others)
    return figures
