"""The encoder of T5 v1.1 (flan-t5) in PyTorch, with the key names of transformers' T5EncoderModel.

Source: T5 (arXiv 1910.10683), v1.1: gated GELU, no biases, RMS norm, relative position bias shared by all layers,
no scaling of the scores. Positions are relative only, so left padding gives the same features as right padding.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class T5Config:
    """Dimensions of a T5 encoder; the field names are those of transformers' config.json."""

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_heads: int
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    pad_token_id: int = 0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> T5Config:
        """Reads a transformers config; keys that the encoder does not need are left aside."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})

    @classmethod
    def from_json(cls, path: Path) -> T5Config:
        return cls.from_dict(json.loads(path.read_text()))


def relative_buckets(length: int, buckets: int, max_distance: int) -> Tensor:
    """int64 [length, length]: T5's bucket of the distance from query (row) to key (column), both directions."""
    place = torch.arange(length)
    distance = place[None, :] - place[:, None]
    half = buckets // 2
    exact = half // 2
    far = distance.abs().clamp(min=1).float()
    wide = exact + (torch.log(far / exact) / math.log(max_distance / exact) * (half - exact)).long()
    bucket = torch.where(distance.abs() < exact, distance.abs(), wide.clamp(max=half - 1))
    return bucket + (distance > 0).long() * half


class T5Norm(nn.Module):
    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)).type_as(x)


class T5Attention(nn.Module):
    def __init__(self, config: T5Config, has_bias: bool) -> None:
        super().__init__()
        self.heads, inner = config.num_heads, config.num_heads * config.d_kv
        self.q, self.k, self.v = (nn.Linear(config.d_model, inner, bias=False) for _ in range(3))
        self.o = nn.Linear(inner, config.d_model, bias=False)
        if has_bias:
            self.relative_attention_bias = nn.Embedding(config.relative_attention_num_buckets, config.num_heads)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = (proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for proj in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        return self.o(y.transpose(1, 2).flatten(2))


class T5GatedFF(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.wi_0 = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wi_1 = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.wo(F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x))


class T5SelfAttentionLayer(nn.Module):
    def __init__(self, config: T5Config, has_bias: bool) -> None:
        super().__init__()
        self.SelfAttention = T5Attention(config, has_bias)
        self.layer_norm = T5Norm(config.d_model, config.layer_norm_epsilon)


class T5FeedForwardLayer(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.DenseReluDense = T5GatedFF(config)
        self.layer_norm = T5Norm(config.d_model, config.layer_norm_epsilon)


class T5Block(nn.Module):
    def __init__(self, config: T5Config, has_bias: bool) -> None:
        super().__init__()
        self.layer = nn.ModuleList([T5SelfAttentionLayer(config, has_bias), T5FeedForwardLayer(config)])

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        attention, feed_forward = self.layer
        x = x + attention.SelfAttention(attention.layer_norm(x), bias)  # type: ignore[operator]
        return x + feed_forward.DenseReluDense(feed_forward.layer_norm(x))  # type: ignore[operator]


class T5Stack(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.block = nn.ModuleList(T5Block(config, has_bias=i == 0) for i in range(config.num_layers))
        self.final_layer_norm = T5Norm(config.d_model, config.layer_norm_epsilon)


class T5Encoder(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = T5Stack(config)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Features [P, T, d_model] of ids int64 [P, T]; masked slots (mask bool [P, T] False) are zero."""
        config = self.config
        table = self.encoder.block[0].layer[0].SelfAttention.relative_attention_bias  # type: ignore[union-attr,index]
        buckets = relative_buckets(
            ids.shape[1], config.relative_attention_num_buckets, config.relative_attention_max_distance
        ).to(ids.device)
        bias = table(buckets).permute(2, 0, 1)[None]  # [1, H, T, T]
        bias = bias.masked_fill(~mask[:, None, None, :], torch.finfo(bias.dtype).min)
        x = self.shared(ids)
        for block in self.encoder.block:
            x = block(x, bias)
        return self.encoder.final_layer_norm(x) * mask[..., None].to(x.dtype)
