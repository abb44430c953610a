"""Chameleon's transformer in PyTorch, with the key names of transformers' checkpoints; and LANTERN's drafter of it.

Architecture: Chameleon (arXiv 2405.09818): Llama with a LayerNorm of each head's queries and keys before they are
rotated. The drafter is one such layer behind a linear map of (embedding of the next token, hidden state): LANTERN
(arXiv 2410.03355) after EAGLE (arXiv 2401.15077). Both are what the exported graphs are compared with.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class ChameleonConfig:
    """Dimensions of a Chameleon transformer, or of a drafter with its one layer.

    `norm_rows` are the rows of the norms of queries and of keys: one for all heads, or one for each.
    """

    dim: int
    n_layer: int
    n_head: int
    n_kv_head: int
    head_dim: int
    ffn_dim: int
    vocab_size: int
    norm_rows: tuple[int, int]
    norm_eps: float = 1e-5
    rope_base: float = 10000.0


QK_NORM_EPS = 1e-5  # of the LayerNorm; no config holds it


def rope_1d(rows: int, head_dim: int, base: float = 10000.0) -> Tensor:
    """float32 [rows, head_dim / 2, 2] of (cos, sin); pair p turns channels p and p + head_dim / 2."""
    inv_freq = 1.0 / base ** (torch.arange(0, head_dim, 2).float() / head_dim)
    angles = torch.outer(torch.arange(rows).float(), inv_freq)
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def apply_rope(x: Tensor, table: Tensor) -> Tensor:
    """Rotates the halves of each head of x [R, N, H, Dh] by table [R, N, Dh/2, 2], in float32."""
    a, b = x.float().chunk(2, dim=-1)
    cos, sin = table[:, :, None, :, 0], table[:, :, None, :, 1]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).type_as(x)


class RMSNorm(nn.Module):
    """Normalises in float32, casts back, then scales."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        h = x.float()
        return (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.eps)).type_as(x) * self.weight


class HeadNorm(nn.Module):
    """A LayerNorm over the channels of each head, with scale and shift [1 or H, Dh]."""

    def __init__(self, rows: int, head_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(rows, head_dim))
        self.bias = nn.Parameter(torch.zeros(rows, head_dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=QK_NORM_EPS) * self.weight + self.bias


class Attention(nn.Module):
    def __init__(self, config: ChameleonConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        inner, few = config.n_head * config.head_dim, config.n_kv_head * config.head_dim
        self.q_proj = nn.Linear(config.dim, inner, bias=False)
        self.k_proj = nn.Linear(config.dim, few, bias=False)
        self.v_proj = nn.Linear(config.dim, few, bias=False)
        self.o_proj = nn.Linear(inner, config.dim, bias=False)
        self.q_norm = HeadNorm(config.norm_rows[0], config.head_dim)
        self.k_norm = HeadNorm(config.norm_rows[1], config.head_dim)

    def forward(self, x: Tensor, rope: Tensor, visible: Tensor) -> Tensor:
        q, k, v = (proj(x).unflatten(-1, (-1, self.head_dim)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = apply_rope(self.q_norm(q), rope), apply_rope(self.k_norm(k), rope)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # [R, heads, N, Dh]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, enable_gqa=True)
        return self.o_proj(y.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, config: ChameleonConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.up_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.down_proj = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """x [R, N, D] to the same; `rope` [R, N, Dh/2, 2] of its positions, `visible` bool [R, 1, N, N]."""

    def __init__(self, config: ChameleonConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = FeedForward(config)
        self.input_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.post_attention_layernorm = RMSNorm(config.dim, config.norm_eps)

    def forward(self, x: Tensor, rope: Tensor, visible: Tensor) -> Tensor:
        h = x + self.self_attn(self.input_layernorm(x), rope, visible)
        return h + self.mlp(self.post_attention_layernorm(h))


class Transformer(nn.Module):
    def __init__(self, config: ChameleonConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = RMSNorm(config.dim, config.norm_eps)


class Chameleon(nn.Module):
    def __init__(self, config: ChameleonConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Transformer(config)
        self.lm_head = nn.Linear(config.dim, config.vocab_size, bias=False)

    def forward(self, ids: Tensor, positions: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        """States after the final norm [R, N, D] and logits [R, N, V] of ids int64 [R, N]."""
        config, x = self.config, self.model.embed_tokens(ids)
        rope = rope_1d(int(positions.max()) + 1, config.head_dim, config.rope_base)[positions]
        for layer in self.model.layers:
            x = layer(x, rope, visible)
        hidden = self.model.norm(x)
        return hidden, self.lm_head(hidden)


class Drafter(nn.Module):
    """LANTERN's drafter; `bias` is that of its first linear map."""

    def __init__(self, config: ChameleonConfig, bias: bool = True) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.dim)
        self.fc = nn.Linear(2 * config.dim, config.dim, bias=bias)
        self.layers = nn.ModuleList([Block(config)])

    def forward(self, hidden: Tensor, ids: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
        """Predicted states [R, N, D] of the tokens ids [R, N], each paired with the target's state before it."""
        x = self.fc(torch.cat([self.embed_tokens(ids), hidden], dim=-1))
        rope = rope_1d(int(positions.max()) + 1, self.config.head_dim, self.config.rope_base)[positions]
        return self.layers[0](x, rope, visible)
