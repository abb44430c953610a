"""LlamaGen's checkpoints: the transformer in its original and LANTERN's layout, and LANTERN's drafter.

Dimensions come from the tensors' shapes. The grid and, for unusual head dimensions, the number of heads are
not in the weights; they come from a config.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ....runtime.errors import CascadeError
from ...checkpoints.settings import check_grid, positive, whole
from ...checkpoints.source import (
    Derived,
    RenamedSource,
    Shape,
    TensorSource,
    check_shapes,
    looks_like,
    matrix,
    open_source,
    read_json,
)
from .drafter import DrafterConfig
from .model import LlamaGenConfig

_HEADS = {3200: 32}  # GPT-3B: head_dim 100; every other published model has head_dim 64
_LANTERN = {
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}


def llamagen_shapes(config: LlamaGenConfig) -> dict[str, Shape]:
    """Every tensor that the graphs of a LlamaGen transformer need."""
    d, f, v = config.dim, config.ffn_dim, config.vocab_size
    shapes: dict[str, Shape] = {}
    if config.condition == "text":
        shapes["cls_embedding.uncond_embedding"] = (config.prefix_len, config.caption_dim)
        shapes["cls_embedding.cap_proj.fc1.weight"] = (d, config.caption_dim)
        shapes["cls_embedding.cap_proj.fc2.weight"] = (d, d)
    else:
        shapes["cls_embedding.embedding_table.weight"] = (config.num_classes + 1, d)
    shapes["tok_embeddings.weight"] = (v, d)
    for i in range(config.n_layer):
        shapes |= {
            f"layers.{i}.attention.wqkv.weight": (3 * d, d),
            f"layers.{i}.attention.wo.weight": (d, d),
            f"layers.{i}.feed_forward.w1.weight": (f, d),
            f"layers.{i}.feed_forward.w3.weight": (f, d),
            f"layers.{i}.feed_forward.w2.weight": (d, f),
            f"layers.{i}.attention_norm.weight": (d,),
            f"layers.{i}.ffn_norm.weight": (d,),
        }
    return shapes | {"norm.weight": (d,), "output.weight": (v, d)}


def open_llamagen(path: Path, overrides: Mapping[str, Any]) -> tuple[TensorSource, LlamaGenConfig]:
    """Opens a LlamaGen transformer under its original names and works out its config.

    `overrides` may hold the keys of a config file: dim, n_layer, n_head, vocab_size, grid (or block_size),
    cls_token_num, caption_dim, num_classes, norm_eps, rope_base. Where they contradict the weights, or the
    grid is nowhere to be found, CascadeError says so.
    """
    source = open_source(path, "checkpoint")
    settings = dict(overrides)
    if "model.embed_tokens.weight" in source or "model.layers.0.self_attn.q_proj.weight" in source:
        settings = _hf_settings(path) | settings
        source = lantern_to_original(source)
    if "tok_embeddings.weight" not in source:
        raise CascadeError(f"{path} is not a LlamaGen transformer but {looks_like(source)}.")
    config = _infer(source, settings)
    check_shapes(source, llamagen_shapes(config), "checkpoint")
    return source, config


def _infer(source: TensorSource, settings: Mapping[str, Any]) -> LlamaGenConfig:
    vocab, dim = matrix(source, "tok_embeddings.weight")
    layers = [int(m[1]) for name in source.names() if (m := re.match(r"layers\.(\d+)\.", name))]
    n_layer = max(layers, default=-1) + 1
    if not n_layer:
        raise CascadeError(f"the checkpoint {source.path} lacks the tensor layers.0.attention.wqkv.weight.")
    ffn, _ = matrix(source, "layers.0.feed_forward.w1.weight")
    text = "cls_embedding.uncond_embedding" in source
    found: dict[str, Any] = {"dim": dim, "n_layer": n_layer, "vocab_size": vocab}
    if text:
        found["cls_token_num"], found["caption_dim"] = matrix(source, "cls_embedding.uncond_embedding")
    elif "cls_embedding.embedding_table.weight" in source:
        found["cls_token_num"] = 1
        found["num_classes"] = matrix(source, "cls_embedding.embedding_table.weight")[0] - 1
    else:
        raise CascadeError(
            f"the checkpoint {source.path} lacks the tensor cls_embedding.uncond_embedding (text) or "
            "cls_embedding.embedding_table.weight (classes): it is incomplete."
        )
    for name, value in found.items():
        if whole(settings, name, value) != value:
            raise CascadeError(
                f"the config says {name} {settings[name]}, the checkpoint {source.path} has {value}: "
                "correct the config or give the checkpoint it belongs to."
            )
    n_head = whole(settings, "n_head", _HEADS.get(dim, max(1, dim // 64)))
    if dim % n_head or (dim // n_head) % 4:
        raise CascadeError(
            f"{n_head} heads do not divide the width {dim} into multiples of 4: give the right --n-head."
        )
    return LlamaGenConfig(
        dim=dim, n_layer=n_layer, n_head=n_head, ffn_dim=ffn, vocab_size=vocab, grid=_grid(settings),
        prefix_len=found["cls_token_num"], condition="text" if text else "class",
        caption_dim=found.get("caption_dim", 2048), num_classes=found.get("num_classes", 1000),
        norm_eps=positive(settings, "norm_eps", 1e-5), rope_base=positive(settings, "rope_base", 10000.0),
    )  # fmt: skip


def _grid(settings: Mapping[str, Any]) -> int:
    """The side of the token grid, which no tensor tells: rotary tables are not in the checkpoint."""
    block = whole(settings, "block_size", 0)
    grid = whole(settings, "grid", math.isqrt(block))
    if not grid:
        raise CascadeError(
            "the checkpoint does not tell its token grid: give --grid 16 (256 px), "
            "24 (384 px) or 32 (512 px)."
        )
    if block and grid * grid != block:
        raise CascadeError(f"block_size {block} is not the square of the grid {grid}: correct the config.")
    return check_grid(grid)


def _hf_settings(path: Path) -> dict[str, Any]:
    """What LANTERN's config.json beside the weights says."""
    file = (path if path.is_dir() else path.parent) / "config.json"
    if not file.is_file():
        return {}
    content = read_json(file)
    names = {
        "block_size": "block_size", "num_attention_heads": "n_head", "rms_norm_eps": "norm_eps",
        "rope_base": "rope_base",
    }  # fmt: skip
    return {ours: content[theirs] for theirs, ours in names.items() if content.get(theirs) is not None}


def lantern_to_original(source: TensorSource) -> TensorSource:
    """LANTERN's re-layout under LlamaGen's names; q, k and v are joined row-wise when they are read."""
    tensors: dict[str, Derived] = {}

    def plain(name: str, original: str) -> None:
        tensors[original] = Derived(source.shape(name), lambda: source.load(name))

    for name in source.names():
        bare = name.removeprefix("model.")
        match = re.match(r"layers\.(\d+)\.(.+)\.weight$", bare)
        if bare == "embed_tokens.weight":
            plain(name, "tok_embeddings.weight")
        elif name == "lm_head.weight":
            plain(name, "output.weight")
        elif match is None:
            plain(name, bare)
        elif match[2] in _LANTERN:
            plain(name, f"layers.{match[1]}.{_LANTERN[match[2]]}.weight")
        elif match[2] == "self_attn.q_proj":
            parts = [name.replace("q_proj", f"{p}_proj") for p in "qkv"]
            missing = [part for part in parts if part not in source]
            if missing:
                raise CascadeError(
                    f"the checkpoint {source.path} lacks the tensor {missing[0]}: it is incomplete."
                )
            rows = sum(source.shape(part)[0] for part in parts)
            tensors[f"layers.{match[1]}.attention.wqkv.weight"] = Derived(
                (rows, *source.shape(name)[1:]),
                lambda parts=parts: torch.cat([source.load(part) for part in parts]),
            )
    return RenamedSource(source.path, tensors)


def drafter_shapes(config: DrafterConfig) -> dict[str, Shape]:
    """Every tensor of a LANTERN LlamaGen drafter."""
    d, f = config.dim, config.ffn_dim
    attention = {f"layers.0.self_attn.{p}_proj.weight": (d, d) for p in "qkvo"}
    shapes: dict[str, Shape] = {
        "embed_tokens.weight": (config.vocab_size, d),
        "fc.weight": (d, 2 * d),
        **attention,
        "layers.0.mlp.gate_proj.weight": (f, d),
        "layers.0.mlp.up_proj.weight": (f, d),
        "layers.0.mlp.down_proj.weight": (d, f),
        "layers.0.post_attention_layernorm.weight": (d,),
    }
    return shapes | ({"fc.bias": (d,)} if config.bias else {})


def open_drafter(path: Path, target: LlamaGenConfig) -> tuple[TensorSource, DrafterConfig]:
    """Opens a LANTERN drafter for `target`; its config.json (or drafter_config.json) is read where it lies.

    Raises CascadeError when the drafter belongs to a target of another width or vocabulary.
    """
    source = open_source(path, "drafter")
    if "fc.weight" not in source or "embed_tokens.weight" not in source:
        raise CascadeError(f"{path} is not a LANTERN drafter but {looks_like(source)}.")
    vocab, dim = matrix(source, "embed_tokens.weight")
    if dim != target.dim or vocab != target.vocab_size:
        raise CascadeError(
            f"the drafter {path} is {dim} wide with {vocab} tokens, the target is {target.dim} wide with "
            f"{target.vocab_size}: give the drafter that was trained for this target."
        )
    settings = _drafter_settings(Path(path))
    ffn, _ = matrix(source, "layers.0.mlp.gate_proj.weight")
    config = DrafterConfig(
        dim=dim,
        n_head=whole(settings, "num_attention_heads", target.n_head),
        ffn_dim=ffn,
        vocab_size=vocab,
        grid=_drafter_grid(settings, target),
        prefix_len=target.prefix_len,
        bias="fc.bias" in source,
        norm_eps=positive(settings, "rms_norm_eps", 1e-6),
        rope_base=target.rope_base,
    )
    if dim % config.n_head or config.head_dim % 4:
        raise CascadeError(
            f"the drafter's {config.n_head} heads do not divide its width {dim} into multiples of 4: "
            "correct num_attention_heads in its config."
        )
    check_shapes(source, drafter_shapes(config), "drafter")
    return source, config


def _drafter_settings(path: Path) -> dict[str, Any]:
    """The drafter's own config beside its weights; one that belongs to the target has other keys."""
    folder = path if path.is_dir() else path.parent
    for name in ("drafter_config.json", "config.json"):
        file = folder / name
        if file.is_file():
            content = read_json(file)
            if "hidden_size" in content and content.get("num_hidden_layers") == 1:
                return content
    return {}


def _drafter_grid(settings: Mapping[str, Any], target: LlamaGenConfig) -> int:
    """The grid of the drafter's rotary table.

    LANTERN's drafter takes it from `input_type` alone (t2i: 256 tokens, t2i2: 1024, c2i: 576), whatever
    block_size its config names, and was trained that way.
    """
    grid = {"t2i": 16, "t2i2": 32, "c2i": 24}.get(settings.get("input_type", ""), target.grid)
    return max(grid, target.grid)
