"""Target and text encoder as one module, while they are trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...export.families.llamagen.model import LlamaGen, prefix_causal_mask
from ...export.models.t5 import T5Encoder
from .config import Recipe


class TextToImage(nn.Module):
    """Target and text encoder under one roof while they are trained together."""

    def __init__(self, recipe: Recipe, vocab_size: int) -> None:
        super().__init__()
        self.text = T5Encoder(recipe.text(vocab_size))
        self.target = LlamaGen(recipe.target())
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02 if isinstance(module, nn.Linear) else 0.1)

    def prefix(self, ids: Tensor, mask: Tensor, uncond: Tensor) -> Tensor:
        """Prefix embeddings [R, T, D] of token ids [R, T]; rows marked uncond [R] get the null caption."""
        return self.target.cls_embedding(self.text(ids, mask), uncond)

    def forward(
        self, ids: Tensor, mask: Tensor, uncond: Tensor, codes: Tensor, hidden_codes: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits [R, HW, V] of codes [R, HW] under teacher forcing, and the states [R, HW, D] in mid-stack.

        Codes marked in hidden_codes bool [R, HW - 1] are read as zeros.
        """
        prefix = self.prefix(ids, mask, uncond)
        read = self.target.tok_embeddings(codes[:, :-1])
        if hidden_codes is not None:
            read = read.masked_fill(hidden_codes[..., None], 0.0)
        x = torch.cat([prefix, read], dim=1)
        allowed, rope = prefix_causal_mask(mask, x.shape[1]), self.target.rope[None, : x.shape[1]]
        middle = x
        for number, block in enumerate(self.target.layers, start=1):
            x = block(x, rope, allowed, None)
            middle = x if 2 * number <= len(self.target.layers) else middle
        first = prefix.shape[1] - 1
        return self.target.logits(self.target.norm(x[:, first:])), middle[:, first:]
