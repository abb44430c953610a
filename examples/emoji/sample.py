"""Samples from the target in PyTorch, batched, under guidance: for the drafter's data and for contact sheets."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...export.families.llamagen.model import KVCache
from .config import Recipe
from .model import TextToImage
from .text import encode


class _Filled(KVCache):
    """A cache of which only the first `filled` slots are read."""

    filled: int

    def update(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = super().update(layer, slots, k, v)
        return keys[:, :, : self.filled], values[:, :, : self.filled]


def _one_query_a_row(device: torch.device) -> AbstractContextManager[object]:
    """Plain products on a GPU, whose fused kernels work on 64 queries at a time: 0.9 ms a layer on an H200, not 2.1."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cuda" else nullcontext()


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
    with device:
        cache = _Filled(config, 2 * count, total)
    visible = torch.ones(2 * count, total, dtype=torch.bool, device=device)
    visible[:, :length] = mask2
    allowed = (torch.ones(total, total, dtype=torch.bool, device=device).tril()[None] & visible[:, None]) | torch.eye(
        total, dtype=torch.bool, device=device
    )
    generator = torch.Generator(device).manual_seed(seed)
    slots = torch.arange(length, device=device)
    cache.filled = length
    h = target.stack(prefix, slots[None], allowed[:, None, :length, :length], cache, slots)
    states, codes = [h], []
    for step in range(config.image_tokens):
        last = h[:, -1]
        state = last[count:] + scale * (last[:count] - last[count:])
        logits = target.logits(state) / recipe.temperature
        kept = logits.kthvalue(max(1, logits.shape[-1] - recipe.top_k + 1), dim=-1, keepdim=True).values
        p = logits.masked_fill(logits < kept, -torch.inf).softmax(-1)
        token = torch.multinomial(p, 1, generator=generator)  # [P, 1]
        codes.append(token)
        if step + 1 < config.image_tokens:
            slot = torch.tensor([length + step], device=device)
            embeds = target.tok_embeddings(token.repeat(2, 1))
            cache.filled = length + step + 1
            with _one_query_a_row(device):
                h = target.stack(embeds, slot[None], allowed[:, None, slot, : cache.filled], cache, slot)
            states.append(h)
    hidden = torch.cat(states, dim=1)
    return torch.cat(codes, dim=1), hidden[:count], hidden[count:]
