"""Codes of images for the target's training: one of those that show much the same, drawn anew for each view.

Dozens of codes decode to much the same white. In a photograph grain decides which of them is nearest, and that is
why the distributions of real image models are flat: nobody can foretell it. Clean artwork has no grain, so its nearest
codes are a riddle with one answer each, which a target learns by heart. So a code is drawn with probability
proportional to exp((cosine + rate x log frequency) / grain); the rate keeps to fewer codes. On the demo's images (rate
0.005, grain 0.01) the draw has 1.3 nats of entropy, and costs 0.9 decibel of PSNR. The decoder and the format stay what
they are.
"""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor

from ...export.models.vq import VQModel
from .augment import views
from .config import Recipe
from .data import DataSet

_IMAGES, _ROUNDS = 256, 6


@torch.no_grad()
def code_prices(recipe: Recipe, data: DataSet, vq: VQModel, pool: list[int]) -> Tensor:
    """float32 [V]: rate x log frequency of every code, settled over random views of the pool."""
    rng = random.Random(0)
    chosen = [rng.choice(pool) for _ in range(_IMAGES)]
    rgba = torch.from_numpy(data.rgba[chosen]).to(recipe.device)
    pixels, _ = views(rgba, [data.emoji[i] for i in chosen], rng, recipe.augment)
    similarity = torch.cat([similarities(vq, part) for part in pixels.split(64)])
    prices = torch.zeros(recipe.codebook_size, device=recipe.device)
    for _ in range(_ROUNDS):
        codes = (similarity + prices).argmax(-1)
        counts = torch.bincount(codes.flatten(), minlength=recipe.codebook_size) + 0.1
        prices = recipe.rate * (counts / counts.sum()).log()
    return prices


@torch.no_grad()
def draw_codes(similarity: Tensor, prices: Tensor, grain: float, seed: int) -> Tensor:
    """Codes int64 [B, HW] for cosines [B, HW, V] under `prices` [V]; with grain 0 the best ones."""
    scores = similarity + prices
    if grain:
        generator = torch.Generator(scores.device).manual_seed(seed)
        noise = torch.rand(scores.shape, generator=generator, device=scores.device).clamp_(1e-9, 1 - 1e-7)
        scores = scores - grain * (-noise.log()).log()
    return scores.argmax(-1)


def similarities(vq: VQModel, pixels: Tensor) -> Tensor:
    """Cosines [B, HW, V] between the latents of pixels [B, 3, H, W] and the codes."""
    return vq.latents(pixels).flatten(1, 2) @ F.normalize(vq.quantize.embedding.weight, dim=-1).T
