"""LANTERN's LlamaGen drafter (EAGLE-1/2 style) in PyTorch, with the public checkpoint's key names.

One decoder layer without an input norm. It reads the target's hidden state (after the final norm) of one token
with the embedding of the token that follows, and predicts the hidden state of that token; the frozen head of
the target turns it into logits. Sources: EAGLE (arXiv 2401.15077), LANTERN (arXiv 2410.03355).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...models.llama import FeedForward, RMSNorm
from .model import apply_rope, rope_2d


@dataclass(frozen=True)
class DrafterConfig:
    """Dimensions of a LANTERN LlamaGen drafter; slot s embeds the token of grid cell s - (prefix_len - 1)."""

    dim: int
    n_head: int
    ffn_dim: int
    vocab_size: int
    grid: int
    prefix_len: int
    bias: bool = True
    norm_eps: float = 1e-6
    rope_base: float = 10000.0

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_head


class DrafterAttention(nn.Module):
    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.q_proj = nn.Linear(config.dim, config.dim, bias=False)
        self.k_proj = nn.Linear(config.dim, config.dim, bias=False)
        self.v_proj = nn.Linear(config.dim, config.dim, bias=False)
        self.o_proj = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x: Tensor, rope: Tensor, mask: Tensor | None, store: Callable | None) -> Tensor:
        q, k, v = (proj(x).unflatten(-1, (self.n_head, -1)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = apply_rope(q, rope), apply_rope(k, rope)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        if store is not None:
            k, v = store(k, v)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.o_proj(y.transpose(1, 2).flatten(2))


class DrafterLayer(nn.Module):
    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self.self_attn = DrafterAttention(config)
        self.mlp = FeedForward(config.dim, config.ffn_dim)
        self.post_attention_layernorm = RMSNorm(config.dim, config.norm_eps)

    def forward(self, x: Tensor, rope: Tensor, mask: Tensor | None, store: Callable | None) -> Tensor:
        h = x + self.self_attn(x, rope, mask, store)
        return h + self.mlp(self.post_attention_layernorm(h))


class Drafter(nn.Module):
    rope: Tensor

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.dim)
        self.fc = nn.Linear(2 * config.dim, config.dim, bias=config.bias)
        self.layers = nn.ModuleList([DrafterLayer(config)])
        rope = rope_2d(config.grid, config.head_dim, config.prefix_len - 1, tail=20, base=config.rope_base)
        self.register_buffer("rope", rope, persistent=False)

    def forward(
        self, hidden: Tensor, ids: Tensor, mask: Tensor | None = None, store: Callable | None = None
    ) -> Tensor:
        """Predicted hidden states [R, N, D] of the tokens ids [R, N], each paired with the state before it.

        `hidden` [R, N, D] are target states; slots count from 0, so the sequence starts with the prefix.
        Attention is causal and, as in LANTERN, ignores the caption's padding; or it follows the bool mask [N, S] over
        the keys and values [R, H, S, Dh] that `store` makes of the call's own.
        """
        x = self.fc(torch.cat([self.embed_tokens(ids), hidden], dim=-1))
        return self.layers[0](x, self.rope[None, : ids.shape[1]], mask, store)
