"""LlamaGen's transformer in PyTorch, with the original checkpoint's key names.

Architecture: LlamaGen (arXiv 2406.06525), class- and text-conditional. This module is the parity reference
of the exported graphs, the model the demo recipe trains, and PyTorch's side of the benchmarks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...models.llama import RMSNorm


@dataclass(frozen=True)
class LlamaGenConfig:
    """Dimensions of one LlamaGen transformer.

    `grid` is the side of the token grid (16 for 256 px with VQ-16); `prefix_len` the number of conditioning
    slots T (1 class token, or 120 caption slots); `caption_dim` the width C of the text features.
    """

    dim: int
    n_layer: int
    n_head: int
    ffn_dim: int
    vocab_size: int
    grid: int
    prefix_len: int
    condition: str  # "text" or "class"
    caption_dim: int = 2048
    num_classes: int = 1000
    norm_eps: float = 1e-5
    rope_base: float = 10000.0

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_head

    @property
    def image_tokens(self) -> int:
        return self.grid * self.grid


def llamagen_ffn_dim(dim: int) -> int:
    """Width of the SwiGLU layer: two thirds of 4 x dim, rounded up to a multiple of 256."""
    return 256 * math.ceil(int(2 * 4 * dim / 3) / 256)


def rope_2d(grid: int, head_dim: int, prefix_len: int, tail: int = 0, base: float = 10000.0) -> Tensor:
    """LlamaGen's 2-D rotary table.

    Returns float32 [prefix_len + grid * grid + tail, head_dim / 2, 2] of (cos, sin), one entry for each pair
    of adjacent channels: the first half of the pairs turns with the row, the second with the column. The
    prefix (and the tail, for tree slots past the image) holds zeros, not identity: LlamaGen multiplies the
    queries and keys of its conditioning slots by zero.
    """
    quarter = head_dim // 4
    inv_freq = 1.0 / base ** (torch.arange(0, head_dim // 2, 2)[:quarter].float() / (head_dim // 2))
    angle = torch.outer(torch.arange(grid).float(), inv_freq)  # [G, Dh/4]
    rows = angle[:, None, :].expand(grid, grid, quarter)
    columns = angle[None, :, :].expand(grid, grid, quarter)
    angles = torch.cat([rows, columns], dim=-1).reshape(grid * grid, head_dim // 2)
    table = torch.stack([angles.cos(), angles.sin()], dim=-1)  # [G * G, Dh/2, 2]
    return torch.cat([table.new_zeros(prefix_len, *table.shape[1:]), table, table.new_zeros(tail, *table.shape[1:])])


def apply_rope(x: Tensor, table: Tensor) -> Tensor:
    """Rotates adjacent channel pairs of x [R, N, H, Dh] by table [R or 1, N, Dh/2, 2], in float32."""
    pairs = x.float().unflatten(-1, (-1, 2))  # [R, N, H, Dh/2, 2]
    cos, sin = table[:, :, None, :, 0], table[:, :, None, :, 1]
    a, b = pairs[..., 0], pairs[..., 1]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2).type_as(x)


class KVCache:
    """Keys and values of every layer, [R, H, S, Dh] each, written at given slots."""

    def __init__(self, config: LlamaGenConfig, rows: int, slots: int, dtype: torch.dtype = torch.float32) -> None:
        shape = (config.n_layer, rows, config.n_head, slots, config.head_dim)
        self.k, self.v = torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)

    def update(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Writes k and v [R, H, N, Dh] at slots [N]; returns the whole cache of the layer [R, H, S, Dh]."""
        self.k[layer][:, :, slots] = k
        self.v[layer][:, :, slots] = v
        return self.k[layer], self.v[layer]


class Attention(nn.Module):
    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.wqkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.wo = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x: Tensor, rope: Tensor, mask: Tensor | None, store: Callable | None) -> Tensor:
        q, k, v = self.wqkv(x).unflatten(-1, (3, self.n_head, -1)).unbind(2)  # [R, N, H, Dh]
        q, k = apply_rope(q, rope), apply_rope(k, rope)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        if store is not None:
            k, v = store(k, v)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.wo(y.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.w3 = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.w2 = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)

    def forward(self, x: Tensor, rope: Tensor, mask: Tensor | None, store: Callable | None) -> Tensor:
        h = x + self.attention(self.attention_norm(x), rope, mask, store)
        return h + self.feed_forward(self.ffn_norm(h))


class CaptionMLP(nn.Module):
    def __init__(self, caption_dim: int, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(caption_dim, dim, bias=False)
        self.fc2 = nn.Linear(dim, dim, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(features), approximate="tanh"))


class CaptionEmbedder(nn.Module):
    """Text features [R, T, C] -> prefix embeddings [R, T, D]; rows marked `uncond` [R] use the null caption."""

    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.cap_proj = CaptionMLP(config.caption_dim, config.dim)
        null = torch.randn(config.prefix_len, config.caption_dim) / config.caption_dim**0.5
        self.uncond_embedding = nn.Parameter(null)

    def forward(self, features: Tensor, uncond: Tensor) -> Tensor:
        return self.cap_proj(torch.where(uncond[:, None, None], self.uncond_embedding[None], features))


class LabelEmbedder(nn.Module):
    """Class ids [R] -> prefix embeddings [R, 1, D]; the null class is `num_classes`."""

    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.num_classes = config.num_classes
        self.embedding_table = nn.Embedding(config.num_classes + 1, config.dim)

    def forward(self, class_ids: Tensor, uncond: Tensor) -> Tensor:
        return self.embedding_table(torch.where(uncond, self.num_classes, class_ids))[:, None]


def condition_embedder(config: LlamaGenConfig) -> CaptionEmbedder | LabelEmbedder:
    """The part of the model that turns captions or classes into prefix embeddings."""
    return CaptionEmbedder(config) if config.condition == "text" else LabelEmbedder(config)


class LlamaGen(nn.Module):
    """The transformer: prefix slots, then the image tokens in raster order."""

    rope: Tensor

    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.config = config
        self.cls_embedding = condition_embedder(config)
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
        rope = rope_2d(config.grid, config.head_dim, config.prefix_len, base=config.rope_base)
        self.register_buffer("rope", rope, persistent=False)

    def stack(
        self,
        embeds: Tensor,
        positions: Tensor,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        slots: Tensor | None = None,
    ) -> Tensor:
        """Runs the blocks on embeds [R, N, D] at positions [R or 1, N]; returns the normed hidden states.

        Without a cache, attention is causal over the N tokens, or follows the bool mask [R, 1, N, N]. With a
        cache, keys and values go to slots [N] and the mask is [R, 1, N, S].
        """
        rope = self.rope[positions]
        h = embeds
        for index, block in enumerate(self.layers):
            store = None
            if cache is not None and slots is not None:
                store = lambda k, v, i=index: cache.update(i, slots, k, v)  # noqa: E731
            h = block(h, rope, mask, store)
        return self.norm(h)

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 logits [R, N, V] of normed hidden states [R, N, D]."""
        return self.output(hidden).float()


def prefix_causal_mask(prefix_mask: Tensor, length: int) -> Tensor:
    """LlamaGen's attention mask over a whole sequence: causal, padded prefix slots hidden, diagonal kept.

    prefix_mask is bool [R, T]; returns bool [R, 1, length, length], True where a query may look.
    """
    rows, prefix_len = prefix_mask.shape
    visible = prefix_mask.new_ones(rows, length)
    visible[:, :prefix_len] = prefix_mask
    mask = torch.ones(length, length, dtype=torch.bool, device=prefix_mask.device).tril()
    eye = torch.eye(length, dtype=torch.bool, device=prefix_mask.device)
    return ((mask[None] & visible[:, None, :]) | eye)[:, None]
