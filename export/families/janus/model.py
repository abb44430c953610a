"""The dimensions of Janus-Pro's image path.

Source: Janus-Pro (arXiv 2501.17811). The language model is a Llama; codes enter through an embedding and an MLP of
their own, and leave through another MLP. What Janus reads images with is not part of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


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


def rotary(rows: int, head_dim: int, base: float) -> np.ndarray:
    """float32 [rows, Dh/2, 2]: cos and sin of each position's angle for the pair (p, p + Dh/2)."""
    frequencies = base ** -(np.arange(0, head_dim, 2) / head_dim)
    angles = np.outer(np.arange(rows), frequencies)
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32)
