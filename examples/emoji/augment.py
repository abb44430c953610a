"""Views of an image: background colour, a small shift and scale, a mirror image."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .captions import BACKGROUNDS
from .config import Augment
from .data import Emoji


def views(
    rgba: Tensor, images: Sequence[Emoji], rng: random.Random, augment: Augment
) -> tuple[Tensor, list[str]]:
    """One random view of each image: pixels float32 [B, 3, H, W] in [-1, 1], and the backgrounds' names.

    rgba is uint8 [B, H, W, 4].
    """
    names = list(BACKGROUNDS)
    chosen = [rng.choice(names) if rng.random() < augment.coloured else "white" for _ in images]
    return compose(rgba, chosen, random_moves(images, rng, augment)), chosen


def random_moves(images: Sequence[Emoji], rng: random.Random, augment: Augment) -> Tensor:
    """An affine map for each image, float32 [B, 2, 3]: scale, mirror image, shift."""
    moves = torch.zeros(len(images), 2, 3)
    for i, image in enumerate(images):
        scale = 1 + rng.uniform(0, augment.scale)  # above 1 the image gets smaller, so nothing is cut off
        flip = -1.0 if image.mirror and rng.random() < augment.mirrored else 1.0
        x, y = (rng.uniform(-augment.shift, augment.shift) for _ in range(2))
        moves[i] = torch.tensor([[scale * flip, 0, x], [0, scale, y]])
    return moves


def plain(rgba: Tensor, backgrounds: Sequence[str] | None = None) -> Tensor:
    """The images as they are, on white or on the named backgrounds: float32 [B, 3, H, W] in [-1, 1]."""
    return compose(rgba, backgrounds or ["white"] * len(rgba), None)


def compose(rgba: Tensor, backgrounds: Sequence[str], moves: Tensor | None) -> Tensor:
    """Alpha-blends premultiplied pixels over the backgrounds after the affine `moves` [B, 2, 3]."""
    x = rgba.float().permute(0, 3, 1, 2) / 255  # [B, 4, H, W]
    alpha = x[:, 3:]
    premultiplied = torch.cat([x[:, :3] * alpha, alpha], dim=1)
    if moves is not None:
        where = F.affine_grid(moves.to(x.device), list(x.shape), align_corners=False)
        premultiplied = F.grid_sample(premultiplied, where, align_corners=False)
    colours = torch.tensor([BACKGROUNDS[name] for name in backgrounds], device=x.device) / 255.0  # [B, 3]
    blended = premultiplied[:, :3] + (1 - premultiplied[:, 3:]) * colours[:, :, None, None]
    return blended.clamp(0, 1) * 2 - 1
