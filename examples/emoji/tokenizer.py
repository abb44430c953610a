"""Trains the VQ tokenizer in LlamaGen's format.

Most steps see random crops at half the side: convolutions do not mind, and they cost a quarter. Codes
are L2-normalised; the codebook starts from k-means of the encoder's output, and codes that go unused are moved
to latents that are badly served.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ...export.models.vq import VQModel
from .augment import plain, views
from .config import Augment, Recipe
from .data import DataSet
from .progress import Run, cosine_rate

_WARM = 0.1  # share of the steps without quantisation, before the codebook is made
_CROPS = 0.95  # share of the steps that see crops
_EVERY = 200
_RATE = 2e-3


def train_tokenizer(recipe: Recipe, data: DataSet, out: Path) -> VQModel:
    """Trains (or goes on training) and returns the tokenizer."""
    run = Run(out, "tokenizer")
    torch.manual_seed(0)
    model = VQModel(recipe.vq()).to(recipe.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, betas=(0.9, 0.95), weight_decay=1e-4)
    start = run.resume({"model": model}, optimizer)
    warm = int(recipe.vq_steps * _WARM)
    used = torch.zeros(recipe.codebook_size, device=recipe.device)
    train = data.split(held_out=False)
    for step in tqdm(range(start, recipe.vq_steps), desc="tokenizer", initial=start, total=recipe.vq_steps):
        rng = random.Random(step)
        x = batch_views(recipe, data, [rng.choice(train) for _ in range(recipe.vq_batch)], rng)
        if step < recipe.vq_steps * _CROPS:
            x = crop(x, recipe.image_size // 2, rng)
        if step == warm:
            init_codebook(model, recipe, data, train)
        for group in optimizer.param_groups:
            group["lr"] = _RATE * cosine_rate(step, recipe.vq_steps, 100)
        loss, reconstruction, ids = losses(model, x, quantise=step >= warm)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        used.index_add_(0, ids.flatten(), torch.ones(ids.numel(), device=used.device))
        if (step + 1) % _EVERY == 0 or step + 1 == recipe.vq_steps:
            if warm <= step < recipe.vq_steps * 0.8:
                revive(model, x, used)
            figures = {"loss": loss.detach(), "mse": reconstruction.detach(), "codes": (used > 0).sum()}
            run.log(step + 1, **{name: float(value) for name, value in figures.items()})
            used.zero_()
            run.save({"model": model}, optimizer, step + 1)
    if start < recipe.vq_steps:
        run.log(recipe.vq_steps, psnr=psnr(model, recipe, data))
        run.plot()
    return model.eval().requires_grad_(False)


def batch_views(recipe: Recipe, data: DataSet, indices: list[int], rng: random.Random) -> Tensor:
    """Random views float32 [B, 3, H, W] of the given images."""
    rgba = torch.from_numpy(data.rgba[indices]).to(recipe.device)
    return views(rgba, [data.emoji[i] for i in indices], rng, Augment())[0]


def crop(x: Tensor, side: int, rng: random.Random) -> Tensor:
    top, left = rng.randrange(x.shape[2] - side + 1), rng.randrange(x.shape[3] - side + 1)
    return x[:, :, top : top + side, left : left + side]


def losses(model: VQModel, x: Tensor, quantise: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, mean squared error and codes int64 [B, h, w] of pixels x [B, 3, H, W]."""
    z = model.latents(x)  # [B, h, w, C]
    ids = model.quantize.nearest(z.detach())
    codes = model.quantize.lookup(ids)
    y = model.decode_latents(z + (codes - z).detach() if quantise else z)
    mse = F.mse_loss(y, x)
    edges = sum(F.l1_loss(y.diff(dim=d), x.diff(dim=d)) for d in (2, 3))
    # Mostly the squared error, which PSNR counts: with equal weights 250 steps came to 19.7 dB, with these to 20.4.
    loss = 4 * mse + 0.1 * F.l1_loss(y, x) + 0.1 * edges
    if quantise:
        loss = loss + 0.25 * (z - codes.detach()).pow(2).sum(-1).mean() + (z.detach() - codes).pow(2).sum(-1).mean()
    return loss, mse, ids


@torch.no_grad()
def init_codebook(model: VQModel, recipe: Recipe, data: DataSet, train: list[int]) -> None:
    """Spherical k-means of latents from random views."""
    rng = random.Random(0)
    chunks = [
        model.latents(batch_views(recipe, data, [rng.choice(train) for _ in range(64)], rng)).flatten(0, 2)
        for _ in range(12)
    ]
    z = torch.cat(chunks)
    generator = torch.Generator().manual_seed(0)
    centres = z[torch.randperm(len(z), generator=generator)[: recipe.codebook_size].to(z.device)]
    if len(centres) < recipe.codebook_size:
        centres = F.normalize(torch.randn(recipe.codebook_size, z.shape[1], device=z.device), dim=-1)
    for _ in range(10):
        nearest = (z @ centres.T).argmax(-1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, z)
        empty = torch.bincount(nearest, minlength=len(centres)) == 0
        sums[empty] = z[torch.randint(len(z), (int(empty.sum()),), generator=generator).to(z.device)]
        centres = F.normalize(sums, dim=-1)
    model.quantize.embedding.weight.copy_(centres)


@torch.no_grad()
def revive(model: VQModel, x: Tensor, used: Tensor) -> None:
    """Moves codes that went unused to the latents that lie farthest from their code."""
    dead = (used == 0).nonzero()[:, 0]
    z = model.latents(x).flatten(0, 2)
    similarity = (z * model.quantize.lookup(model.quantize.nearest(z))).sum(-1)
    worst = similarity.argsort()[: len(dead)]
    model.quantize.embedding.weight[dead[: len(worst)]] = z[worst]


@torch.no_grad()
def psnr(model: VQModel, recipe: Recipe, data: DataSet) -> float:
    """Mean PSNR in dB (range 255) over the held-out images, plain on white, or over all when none is held out."""
    held = data.split(held_out=True) or data.split(held_out=False)
    errors = []
    for begin in range(0, len(held), 64):
        x = plain(torch.from_numpy(data.rgba[held[begin : begin + 64]]).to(recipe.device))
        y = model.decode_codes(model.encode(x)).clamp(-1, 1)
        errors.append(((y - x) * 127.5).pow(2).flatten(1).mean(1).cpu())
    return float((20 * np.log10(255) - 10 * torch.cat(errors).clamp(min=1e-6).log10()).mean())
