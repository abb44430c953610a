"""Llama's layer under the names of transformers' checkpoints, as Janus-Pro, Chameleon and their drafters have it."""

from __future__ import annotations

import torch

from ..checkpoints.source import Derived, Shape, TensorSource, renamed
from ..model import QKV
from ..models.llama import LayerConfig

_LAYER = {  # canonical names, with those of a checkpoint
    "attention.o": "self_attn.o_proj", "feed_forward.gate": "mlp.gate_proj", "feed_forward.up": "mlp.up_proj",
    "feed_forward.down": "mlp.down_proj", "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip


def layer_shapes(config: LayerConfig, name: str) -> dict[str, Shape]:
    """The tensors of the layer `name`; where the config has rows for them, with norms of queries and keys."""
    d, f, inner, few = config.dim, config.ffn_dim, config.n_head * config.head_dim, config.n_kv_head * config.head_dim
    shapes: dict[str, Shape] = {
        "self_attn.q_proj.weight": (inner, d), "self_attn.k_proj.weight": (few, d),
        "self_attn.v_proj.weight": (few, d), "self_attn.o_proj.weight": (d, inner), "mlp.gate_proj.weight": (f, d),
        "mlp.up_proj.weight": (f, d), "mlp.down_proj.weight": (d, f), "input_layernorm.weight": (d,),
        "post_attention_layernorm.weight": (d,),
    }  # fmt: skip
    for part, rows in zip("qk", config.norm_rows or (), strict=False):
        shapes |= {f"self_attn.{part}_norm.{kind}": (rows, config.head_dim) for kind in ("weight", "bias")}
    return {f"{name}.{tensor}": shape for tensor, shape in shapes.items()}


def layer_tensors(source: TensorSource, ours: str, theirs: str) -> dict[str, Derived]:
    """The canonical tensors of the layer `ours`, made of those of `theirs`."""
    names = {f"{ours}.{name}.weight": f"{theirs}.{original}.weight" for name, original in _LAYER.items()}
    for part in "qk":
        if f"{theirs}.self_attn.{part}_norm.weight" in source:
            names |= {f"{ours}.attention.{part}_norm.{kind}": f"{theirs}.self_attn.{part}_norm.{kind}"
                      for kind in ("weight", "bias")}  # fmt: skip
    parts = [f"{theirs}.self_attn.{part}_proj.weight" for part in "qkv"]
    rows, columns = sum(source.shape(part)[0] for part in parts), source.shape(parts[0])[1]
    joined = Derived((rows, columns), lambda: torch.cat([source.load(part) for part in parts]))
    return renamed(source, names) | {f"{ours}.{QKV}.weight": joined}
