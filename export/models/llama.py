"""Llama's layer in PyTorch, with the key names of transformers' checkpoints: for Janus-Pro, Chameleon, their drafters.

Channels p and p + Dh/2 of a head are rotated together. Chameleon's has a LayerNorm of each head's queries and keys
before that (`norm_rows`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

QK_NORM_EPS = 1e-5  # of that LayerNorm; no config holds it


@dataclass(frozen=True)
class LayerConfig:
    """Dimensions of one layer. `norm_rows` are the rows of the norms of queries and of keys: one for all heads, or one
    for each; None without them."""

    dim: int
    n_head: int
    n_kv_head: int
    head_dim: int
    ffn_dim: int
    norm_eps: float
    norm_rows: tuple[int, int] | None = None


def rotate_halves(x: Tensor, table: Tensor) -> Tensor:
    """x [R, N, H, Dh] turned by table [R or 1, N, Dh/2, 2] of (cos, sin), in float32."""
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
    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        inner, few = config.n_head * config.head_dim, config.n_kv_head * config.head_dim
        self.q_proj = nn.Linear(config.dim, inner, bias=False)
        self.k_proj = nn.Linear(config.dim, few, bias=False)
        self.v_proj = nn.Linear(config.dim, few, bias=False)
        self.o_proj = nn.Linear(inner, config.dim, bias=False)
        self.q_norm: nn.Module = nn.Identity()
        self.k_norm: nn.Module = nn.Identity()
        if config.norm_rows is not None:
            self.q_norm, self.k_norm = (HeadNorm(rows, config.head_dim) for rows in config.norm_rows)

    def forward(self, x: Tensor, table: Tensor, visible: Tensor) -> Tensor:
        q, k, v = (proj(x).unflatten(-1, (-1, self.head_dim)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate_halves(self.q_norm(q), table), rotate_halves(self.k_norm(k), table)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # [R, heads, N, Dh]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, enable_gqa=True)
        return self.o_proj(y.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, ffn_dim, bias=False)
        self.up_proj = nn.Linear(dim, ffn_dim, bias=False)
        self.down_proj = nn.Linear(ffn_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """x [R, N, D], the rotary table's rows [R, N, Dh/2, 2] and visible bool [R, 1, N, N] to [R, N, D]."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = FeedForward(config.dim, config.ffn_dim)
        self.input_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.post_attention_layernorm = RMSNorm(config.dim, config.norm_eps)

    def forward(self, x: Tensor, table: Tensor, visible: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), table, visible)
        return x + self.mlp(self.post_attention_layernorm(x))


class Drafter(nn.Module):
    """A drafter of LANTERN's form: one layer behind a linear map of (embedding of the next token, hidden state).

    Sources: EAGLE (arXiv 2401.15077), LANTERN (arXiv 2410.03355).
    """

    def __init__(self, config: LayerConfig, tokens: int, bias: bool = True) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(tokens, config.dim)
        self.fc = nn.Linear(2 * config.dim, config.dim, bias=bias)
        self.layers = nn.ModuleList([Layer(config)])

    def forward(self, hidden: Tensor, ids: Tensor, table: Tensor, visible: Tensor) -> Tensor:
        """Predicted hidden states [R, n, D] of `ids` int64 [R, n], each with the state before it, [R, n, D]."""
        x = self.fc(torch.cat([self.embed_tokens(ids), hidden], dim=-1))
        return self.layers[0](x, table, visible)
