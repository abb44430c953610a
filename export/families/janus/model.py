"""Janus-Pro's image path in PyTorch, with the original checkpoint's key names; the parity reference of the graphs.

Source: Janus-Pro (arXiv 2501.17811). The language model is a Llama; codes enter through an embedding and an MLP of
their own, and leave through another MLP. What Janus reads images with is not part of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class JanusConfig:
    """Dimensions of one Janus-Pro.

    `vocab_size` counts tokens of text, `codes` those of the image (a space of its own); `code_dim` is the width of
    `gen_embed`, `head_width` that between the two layers of `gen_head`. `grid` is the side of the image in codes.
    """

    dim: int
    n_layer: int
    n_head: int
    n_kv_head: int
    head_dim: int
    ffn_dim: int
    vocab_size: int
    codes: int
    code_dim: int
    head_width: int
    grid: int
    norm_eps: float = 1e-6
    rope_base: float = 10000.0


@dataclass(frozen=True)
class LayerConfig:
    """One Llama layer, of the model or of a drafter."""

    dim: int
    n_head: int
    n_kv_head: int
    head_dim: int
    ffn_dim: int
    norm_eps: float


def rotary(rows: int, head_dim: int, base: float) -> np.ndarray:
    """float32 [rows, Dh/2, 2]: cos and sin of each position's angle for the pair (p, p + Dh/2)."""
    frequencies = base ** -(np.arange(0, head_dim, 2) / head_dim)
    angles = np.outer(np.arange(rows), frequencies)
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32)


def rotate_halves(x: Tensor, table: Tensor) -> Tensor:
    """x [R, N, H, Dh] turned by table [R or 1, N, Dh/2, 2]."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = table[:, :, None, :, 0], table[:, :, None, :, 1]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class RMSNorm(nn.Module):
    """Llama's: normalises in float32, then scales."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        h = x.float()
        return (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.eps)).type_as(x) * self.weight


class Attention(nn.Module):
    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.config = config
        inner, few = config.n_head * config.head_dim, config.n_kv_head * config.head_dim
        self.q_proj = nn.Linear(config.dim, inner, bias=False)
        self.k_proj = nn.Linear(config.dim, few, bias=False)
        self.v_proj = nn.Linear(config.dim, few, bias=False)
        self.o_proj = nn.Linear(inner, config.dim, bias=False)

    def forward(self, x: Tensor, table: Tensor, visible: Tensor) -> Tensor:
        width, shared = self.config.head_dim, self.config.n_head // self.config.n_kv_head
        q, k, v = (proj(x).unflatten(-1, (-1, width)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate_halves(q, table), rotate_halves(k, table)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # [R, heads, N, Dh]
        k, v = (t.repeat_interleave(shared, dim=1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        return self.o_proj(y.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.up_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.down_proj = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """x [R, N, D], the rotary table's rows [R, N, Dh/2, 2] and visible bool [R, 1, N, N] to [R, N, D]."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = FeedForward(config)
        self.input_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.post_attention_layernorm = RMSNorm(config.dim, config.norm_eps)

    def forward(self, x: Tensor, table: Tensor, visible: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), table, visible)
        return x + self.mlp(self.post_attention_layernorm(x))


class Drafter(nn.Module):
    """A drafter of LANTERN's form: one Llama layer over a linear map of (embedding of the next code, hidden state)."""

    def __init__(self, config: LayerConfig, codes: int, bias: bool) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(codes, config.dim)
        self.fc = nn.Linear(2 * config.dim, config.dim, bias=bias)
        self.layers = nn.ModuleList([Layer(config)])

    def forward(self, hidden: Tensor, codes: Tensor, table: Tensor, visible: Tensor) -> Tensor:
        """Predicted hidden states [R, n, D] of `codes` int64 [R, n], each with the state before it, [R, n, D]."""
        x = self.fc(torch.cat([self.embed_tokens(codes), hidden], dim=-1))
        return self.layers[0](x, table, visible)
