"""Codes of pictures for the target's training, chosen for what they cost as well as for what they show.

Plain nearest-neighbour codes are noisy where a picture is flat: dozens of codes decode to much the same white,
and which one is nearest hangs on the whole picture. A target would spend most of its capacity on that noise. So
a code is chosen by cosine + rate x log frequency: on the demo's pictures 0.007 halves the codes' entropy for about
a decibel of PSNR. The decoder and the format stay what they are.
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

_PICTURES, _ROUNDS = 256, 6


@torch.no_grad()
def code_prices(recipe: Recipe, data: DataSet, vq: VQModel, pool: list[int]) -> Tensor:
    """float32 [V]: rate x log frequency of every code, settled over random views of the pool."""
    rng = random.Random(0)
    chosen = [rng.choice(pool) for _ in range(_PICTURES)]
    rgba = torch.from_numpy(data.rgba[chosen]).to(recipe.device)
    pixels, _ = views(rgba, [data.pictures[i] for i in chosen], rng, recipe.augment)
    similarity = torch.cat([similarities(vq, part) for part in pixels.split(64)])
    prices = torch.zeros(recipe.codebook_size, device=recipe.device)
    for _ in range(_ROUNDS):
        codes = (similarity + prices).argmax(-1)
        counts = torch.bincount(codes.flatten(), minlength=recipe.codebook_size) + 0.1
        prices = recipe.rate * (counts / counts.sum()).log()
    return prices


@torch.no_grad()
def encode_pixels(vq: VQModel, pixels: Tensor, prices: Tensor) -> Tensor:
    """Codes int64 [B, HW] of pixels [B, 3, H, W] under `prices` [V]."""
    return (similarities(vq, pixels) + prices).argmax(-1)


def similarities(vq: VQModel, pixels: Tensor) -> Tensor:
    """Cosines [B, HW, V] between the latents of pixels [B, 3, H, W] and the codes."""
    return vq.latents(pixels).flatten(1, 2) @ F.normalize(vq.quantize.embedding.weight, dim=-1).T
