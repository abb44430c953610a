"""A model unlike LlamaGen in everything that families may differ in, in plain PyTorch: no cache, no graph builders.

| | LlamaGen | here |
|---|---|---|
| readout | linear | gelu MLP with biases, then linear with bias |
| rotary | 2-D, adjacent pairs, zeros at the prefix | 1-D, halves, each row from its own first slot |
| heads | as many keys as queries, H * Dh = D | 2 keys for 4 queries, H * Dh = 2 D |
| queries, keys | as they are | LayerNorm with scale and shift, of each head (q) and one for all (k) |
| biases | none | of q, k, v (target); of q, k, v, o (drafter) |
| sequence | a square of codes | a begin token, 3 rows of 5 codes with a row end behind each |
| unconditional row | mask of its conditional one | its own, 2 slots |
| drafter | no input norm, sees padding | input norm, norms of q and k, does not |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS, COLUMNS, CODES = 3, 5, 24
ROW_END, BEGIN = CODES, CODES + 1
TOKENS = CODES + 2
PREFIX, UNCOND, CAPTION = 7, 2, 12  # slots of a prefix, of the unconditional one, width of the features
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Sizes:
    dim: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    ffn: int = 96
    features: int = 48
    eps: float = 1e-6
    norm_eps: float = 1e-5  # of queries and keys
    theta: float = 500.0


SIZES = Sizes()


def layer_shapes(name: str, o_bias: bool) -> dict[str, tuple[int, ...]]:
    s = SIZES
    wide, narrow = s.heads * s.head_dim, s.kv_heads * s.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        f"{name}.attn.q.weight": (wide, s.dim), f"{name}.attn.q.bias": (wide,),
        f"{name}.attn.k.weight": (narrow, s.dim), f"{name}.attn.k.bias": (narrow,),
        f"{name}.attn.v.weight": (narrow, s.dim), f"{name}.attn.v.bias": (narrow,),
        f"{name}.attn.o.weight": (s.dim, wide),
        f"{name}.attn.q_norm.weight": (s.heads, s.head_dim), f"{name}.attn.q_norm.bias": (s.heads, s.head_dim),
        f"{name}.attn.k_norm.weight": (1, s.head_dim), f"{name}.attn.k_norm.bias": (1, s.head_dim),
        f"{name}.norm_in.weight": (s.dim,), f"{name}.norm_mid.weight": (s.dim,),
        f"{name}.mlp.gate.weight": (s.ffn, s.dim), f"{name}.mlp.up.weight": (s.ffn, s.dim),
        f"{name}.mlp.down.weight": (s.dim, s.ffn),
    }  # fmt: skip
    return shapes | ({f"{name}.attn.o.bias": (s.dim,)} if o_bias else {})


def target_shapes() -> dict[str, tuple[int, ...]]:
    s = SIZES
    shapes: dict[str, tuple[int, ...]] = {
        "codes.weight": (CODES, s.dim), "syntax.weight": (TOKENS - CODES, s.dim),
        "caption.weight": (s.dim, CAPTION), "caption.bias": (s.dim,), "null": (UNCOND, s.dim),
        "norm_out.weight": (s.dim,), "head.mlp.weight": (s.features, s.dim), "head.mlp.bias": (s.features,),
        "head.codes.weight": (CODES, s.features), "head.codes.bias": (CODES,),
    }  # fmt: skip
    for i in range(s.layers):
        shapes |= layer_shapes(f"blocks.{i}", o_bias=False)
    return shapes


def drafter_shapes() -> dict[str, tuple[int, ...]]:
    dim = SIZES.dim
    return {"tokens.weight": (TOKENS, dim), "join.weight": (dim, 2 * dim), "join.bias": (dim,),
            **layer_shapes("block", o_bias=True)}  # fmt: skip


def random_tensors(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Scales around 1, shifts and biases around 0 but not there, so that each matters; a head with clear winners."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        x = torch.randn(shape, generator=generator)
        if "norm" in name:
            tensors[name] = 0.3 * x + (1 if name.endswith("weight") else 0)
        elif name.endswith("bias"):
            tensors[name] = 0.3 * x
        else:
            tensors[name] = x * shape[-1] ** -0.5
    for name in ("head.codes.weight", "codes.weight", "syntax.weight", "tokens.weight"):
        if name in tensors:
            tensors[name] *= 4
    return tensors


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + SIZES.eps).sqrt() * weight


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x [R, N, heads, Dh]; weight and bias [heads or 1, Dh]."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + SIZES.norm_eps).sqrt() * weight + bias


def rotary(positions: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """[..., Dh/2] angles' (cos, sin), [..., Dh/2, 2]."""
    half = SIZES.head_dim // 2
    angles = positions[..., None].to(dtype) * SIZES.theta ** -(torch.arange(half, dtype=dtype) / half)
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    """x [R, N, heads, Dh], positions [R, N]; channel c turns with channel c + Dh/2."""
    table = rotary(positions, x.dtype)[:, :, None]  # [R, N, 1, Dh/2, 2]
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * table[..., 0] - b * table[..., 1], b * table[..., 0] + a * table[..., 1]], dim=-1)


def block(tensors: Tensors, name: str, x: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
    """x [R, N, D], positions [R, N], visible bool [R, N, N] -> [R, N, D]."""
    s, attn = SIZES, f"{name}.attn"
    h = rms_norm(x, tensors[f"{name}.norm_in.weight"])

    def heads(part: str, count: int) -> Tensor:
        y = h @ tensors[f"{attn}.{part}.weight"].T + tensors[f"{attn}.{part}.bias"]
        return y.unflatten(-1, (count, s.head_dim))  # [R, N, count, Dh]

    q, k, v = heads("q", s.heads), heads("k", s.kv_heads), heads("v", s.kv_heads)
    q = rotate(layer_norm(q, tensors[f"{attn}.q_norm.weight"], tensors[f"{attn}.q_norm.bias"]), positions)
    k = rotate(layer_norm(k, tensors[f"{attn}.k_norm.weight"], tensors[f"{attn}.k_norm.bias"]), positions)
    answers = []
    for head in range(s.heads):
        key, value = (t[:, :, head * s.kv_heads // s.heads] for t in (k, v))
        scores = q[:, :, head] @ key.transpose(1, 2) / s.head_dim**0.5  # [R, N, N]
        answers.append(scores.masked_fill(~visible, -torch.inf).softmax(-1) @ value)
    y = torch.cat(answers, dim=-1) @ tensors[f"{attn}.o.weight"].T
    x = x + y + tensors.get(f"{attn}.o.bias", torch.zeros(s.dim, dtype=x.dtype))
    h = rms_norm(x, tensors[f"{name}.norm_mid.weight"])
    gate, up = (h @ tensors[f"{name}.mlp.{part}.weight"].T for part in ("gate", "up"))
    return x + (F.silu(gate) * up) @ tensors[f"{name}.mlp.down.weight"].T


class Target:
    """Over the checkpoint's tensors, in their dtype; the methods are those of `TargetReference`."""

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors

    def prefix(self, given: Tensor, uncond: Tensor) -> Tensor:
        prefix = given @ self._tensors["caption.weight"].T + self._tensors["caption.bias"]
        null = torch.zeros(PREFIX, SIZES.dim, dtype=given.dtype)
        null[-UNCOND:] = self._tensors["null"]
        return torch.where(uncond[:, None, None], null, prefix)

    def embed(self, ids: Tensor) -> Tensor:
        return torch.cat([self._tensors["codes.weight"], self._tensors["syntax.weight"]])[ids]

    def hidden(self, x: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
        for i in range(SIZES.layers):
            x = block(self._tensors, f"blocks.{i}", x, positions, visible[:, 0])
        return rms_norm(x, self._tensors["norm_out.weight"])

    def features(self, hidden: Tensor) -> Tensor:
        return F.gelu(hidden @ self._tensors["head.mlp.weight"].T + self._tensors["head.mlp.bias"])

    def logits(self, features: Tensor) -> Tensor:
        return features @ self._tensors["head.codes.weight"].T + self._tensors["head.codes.bias"]


class Drafter:
    """The same of the drafter; `DrafterReference`."""

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors

    def states(self, hidden: Tensor, tokens: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
        pair = torch.cat([self._tensors["tokens.weight"][tokens], hidden], dim=-1)
        x = pair @ self._tensors["join.weight"].T + self._tensors["join.bias"]
        return block(self._tensors, "block", x, positions, visible[:, 0])
