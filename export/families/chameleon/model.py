"""Chameleon's transformer in PyTorch, with the key names of transformers' checkpoints: the graphs' reference.

Architecture: Chameleon (arXiv 2405.09818): Llama with a LayerNorm of each head's queries and keys before they are
rotated.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...models.llama import Layer, LayerConfig, RMSNorm


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

    @property
    def layer(self) -> LayerConfig:
        """Any of the layers."""
        return LayerConfig(
            self.dim, self.n_head, self.n_kv_head, self.head_dim, self.ffn_dim, self.norm_eps, self.norm_rows
        )


def rope_1d(rows: int, head_dim: int, base: float = 10000.0) -> Tensor:
    """float32 [rows, head_dim / 2, 2] of (cos, sin); pair p turns channels p and p + head_dim / 2."""
    inv_freq = 1.0 / base ** (torch.arange(0, head_dim, 2).float() / head_dim)
    angles = torch.outer(torch.arange(rows).float(), inv_freq)
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


class Transformer(nn.Module):
    def __init__(self, config: ChameleonConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Layer(config.layer) for _ in range(config.n_layer))
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
