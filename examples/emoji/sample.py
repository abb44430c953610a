"""Samples from the target in PyTorch, batched, under guidance: for the drafter's data and for contact sheets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor

from ...export.models.llamagen import KVCache
from .config import Recipe
from .model import TextToImage
from .text import encode


@torch.no_grad()
def sample(
    recipe: Recipe, model: TextToImage, tokenizer: Tokenizer, texts: Sequence[str], seed: int,
    guidance_scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Codes int64 [P, HW] and both streams' hidden states [P, T + HW - 1, D] (conditional, unconditional)."""
    scale = recipe.guidance_scale if guidance_scale is None else guidance_scale
    target, count = model.target, len(texts)
    config, device = target.config, target.rope.device
    ids, mask = (x.to(device) for x in encode(tokenizer, texts, recipe.prefix_len))
    mask2, uncond = mask.repeat(2, 1), torch.arange(2 * count, device=device) >= count
    prefix = model.prefix(ids.repeat(2, 1), mask2, uncond)  # [2P, T, D]
    length, total = config.prefix_len, config.prefix_len + config.image_tokens - 1
    cache = KVCache(config, 2 * count, total)
    cache.k, cache.v = cache.k.to(device), cache.v.to(device)
    visible = torch.ones(2 * count, total, dtype=torch.bool, device=device)
    visible[:, :length] = mask2
    allowed = (torch.ones(total, total, dtype=torch.bool, device=device).tril()[None] & visible[:, None]) | torch.eye(
        total, dtype=torch.bool, device=device
    )
    generator = torch.Generator(device).manual_seed(seed)
    slots = torch.arange(length, device=device)
    h = target.stack(prefix, slots[None], allowed[:, None, :length], cache, slots)
    states, codes = [h], []
    for step in range(config.image_tokens):
        last = h[:, -1]
        state = last[count:] + scale * (last[:count] - last[count:])
        logits = target.logits(state) / recipe.temperature
        kept = logits.topk(min(recipe.top_k, logits.shape[-1])).values[:, -1:]
        p = logits.masked_fill(logits < kept, -torch.inf).softmax(-1)
        token = torch.multinomial(p, 1, generator=generator)  # [P, 1]
        codes.append(token)
        if step + 1 < config.image_tokens:
            slot = torch.tensor([length + step], device=device)
            embeds = target.tok_embeddings(token.repeat(2, 1))
            h = target.stack(embeds, slot[None], allowed[:, None, slot], cache, slot)
            states.append(h)
    hidden = torch.cat(states, dim=1)
    return torch.cat(codes, dim=1), hidden[:count], hidden[count:]
