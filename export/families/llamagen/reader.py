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
from ...checkpoints.reading import read_json, spelt
from ...checkpoints.settings import check_grid, one_of, positive, whole
from ...checkpoints.source import (
    Derived,
    RenamedSource,
    Shape,
    TensorSource,
    check_all_read,
    check_shapes,
    count,
    is_language_model,
    looks_like,
    matrix,
    open_source,
    with_notes,
)
from .drafter import DrafterConfig
from .model import LlamaGenConfig

_HEADS = {3200: 32}  # GPT-3B: head_dim 100; every other published model has head_dim 64
_IMAGENET = 1000  # classes of the published models
# What LANTERN's drafters were trained for, by `input_type` alone, whatever block_size their config names.
_INPUTS = {"t2i": (16, "text"), "t2i2": (32, "text"), "c2i": (24, "class")}
_LANTERN = {
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}
_LANTERN_ENDS = {"embed_tokens.weight": "tok_embeddings.weight", "lm_head.weight": "output.weight"}


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
    anchors = ["tok_embeddings.weight", "model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"]
    source = open_source(path, "checkpoint", anchors)
    settings = dict(overrides)
    if is_language_model(source):
        raise CascadeError(f"{path} is not a LlamaGen transformer (it has no cls_embedding) but {looks_like(source)}.")
    if any(anchor in source for anchor in anchors[1:]):
        settings = _hf_settings(path) | settings
        source = lantern_to_original(source)
    if "tok_embeddings.weight" not in source:
        raise CascadeError(f"{path} is not a LlamaGen transformer but {looks_like(source)}.")
    config = _infer(source, settings)
    shapes = llamagen_shapes(config)
    check_shapes(source, shapes, "checkpoint")
    check_all_read(source, shapes, "checkpoint")
    if config.condition == "class" and config.num_classes != _IMAGENET and settings.get("num_classes") is None:
        source = with_notes(
            source,
            f"{path} has {config.num_classes + 1} rows of classes: the last is taken for the null class of guidance, "
            f"the others for {config.num_classes} classes; give num_classes in --config to have that checked.",
        )
    return source, config


def _infer(source: TensorSource, settings: Mapping[str, Any]) -> LlamaGenConfig:
    vocab, dim = matrix(source, "tok_embeddings.weight")
    n_layer = count(source, "layers.", "checkpoint")
    if not n_layer:
        raise CascadeError(f"the checkpoint {source.path} lacks the tensor layers.0.attention.wqkv.weight.")
    ffn, _ = matrix(source, "layers.0.feed_forward.w1.weight")
    text = "cls_embedding.uncond_embedding" in source
    found: dict[str, Any] = {"dim": dim, "n_layer": n_layer, "vocab_size": vocab}
    if text:
        found["cls_token_num"], found["caption_dim"] = matrix(source, "cls_embedding.uncond_embedding")
    elif "cls_embedding.embedding_table.weight" in source:
        found["cls_token_num"] = 1
        found["num_classes"] = _classes(source, settings)
    else:
        raise CascadeError(
            f"the checkpoint {source.path} lacks the tensor cls_embedding.uncond_embedding (text) or "
            "cls_embedding.embedding_table.weight (classes): it is incomplete, so download it again."
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
        norm_eps=positive(settings, "norm_eps", 1e-5, most=0.1),
        rope_base=positive(settings, "rope_base", 10000.0, least=1),
    )  # fmt: skip


def _classes(source: TensorSource, settings: Mapping[str, Any]) -> int:
    """Rows of the class table but for the last, the null class. Raises CascadeError where the config says that each
    row is a class."""
    rows, _ = matrix(source, "cls_embedding.embedding_table.weight")
    if rows == whole(settings, "num_classes", rows - 1) or rows < 2:
        raise CascadeError(
            f"the checkpoint {source.path} has {rows} rows of classes, and none for the null class that guidance "
            "needs: give one that was trained with class dropout, or correct num_classes in --config."
        )
    return rows - 1


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
        "rope_base": "rope_base", "num_classes": "num_classes",
    }  # fmt: skip
    return {ours: content[theirs] for theirs, ours in names.items() if content.get(theirs) is not None}


def lantern_to_original(source: TensorSource) -> TensorSource:
    """LANTERN's re-layout under LlamaGen's names; q, k and v are joined row-wise when they are read.

    Raises CascadeError where one of the three is missing or has another shape, and for a name that comes up twice.
    """
    tensors: dict[str, Derived] = {}

    def put(original: str, tensor: Derived) -> None:
        if original in tensors:
            raise CascadeError(f"the checkpoint {source.path} holds tensor {spelt(original)} twice: check the file.")
        tensors[original] = tensor

    for name in source.names():
        bare = name.removeprefix("model.")
        match = re.fullmatch(r"layers\.([0-9]+)\.(.+)\.weight", bare)
        part = match[2] if match is not None else ""
        if match is not None and part == "self_attn.q_proj":
            put(f"layers.{match[1]}.attention.wqkv.weight", _joined(source, name))
        elif part not in ("self_attn.k_proj", "self_attn.v_proj"):
            original = _LANTERN_ENDS.get(bare, bare)
            if match is not None and part in _LANTERN:
                original = f"layers.{match[1]}.{_LANTERN[part]}.weight"
            put(original, Derived(source.shape(name), lambda name=name: source.load(name)))
    return RenamedSource(source.path, tensors, source.notes)


def _joined(source: TensorSource, query: str) -> Derived:
    """A layer's q, k and v, one below the other; `query` is the name of the first."""
    parts = [query.replace("q_proj", f"{part}_proj") for part in "qkv"]
    shapes = [matrix(source, part) for part in parts]
    if len(set(shapes)) > 1:
        raise CascadeError(
            f"tensor {spelt(query)} of {source.path} has the shape {list(shapes[0])}, its keys and values have "
            f"{list(shapes[1])} and {list(shapes[2])}: LlamaGen's are alike, so give LlamaGen's checkpoint."
        )
    rows, columns = shapes[0]
    return Derived((3 * rows, columns), lambda: torch.cat([source.load(part) for part in parts]))


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
    source = open_source(path, "drafter", ["fc.weight"])
    if "fc.weight" not in source or "embed_tokens.weight" not in source:
        raise CascadeError(f"{path} is not a LANTERN drafter but {looks_like(source)}.")
    vocab, dim = matrix(source, "embed_tokens.weight")
    if dim != target.dim or vocab != target.vocab_size:
        raise CascadeError(
            f"the drafter {path} is {dim} wide with {vocab} tokens, the target is {target.dim} wide with "
            f"{target.vocab_size}: give the drafter that was trained for this target."
        )
    settings = _drafter_settings(Path(path))
    if whole(settings, "hidden_size", dim) != dim:
        raise CascadeError(
            f"the drafter's config says hidden_size {settings['hidden_size']}, its weights {path} are {dim} wide: "
            "give the config that belongs to it."
        )
    kind = one_of(settings, "input_type", tuple(_INPUTS))
    ffn, _ = matrix(source, "layers.0.mlp.gate_proj.weight")
    config = DrafterConfig(
        dim=dim,
        n_head=whole(settings, "num_attention_heads", target.n_head),
        ffn_dim=ffn,
        vocab_size=vocab,
        grid=max(_INPUTS[kind][0] if kind else 0, target.grid),
        prefix_len=target.prefix_len,
        bias="fc.bias" in source,
        norm_eps=positive(settings, "rms_norm_eps", 1e-6, most=0.1),
        rope_base=target.rope_base,
    )
    if dim % config.n_head or config.head_dim % 4:
        raise CascadeError(
            f"the drafter's {config.n_head} heads do not divide its width {dim} into multiples of 4: "
            "correct num_attention_heads in its config."
        )
    check_shapes(source, drafter_shapes(config), "drafter")
    check_all_read(source, drafter_shapes(config), "drafter")
    return with_notes(source, *_drafter_notes(path, settings, kind, target)), config


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


def _drafter_notes(path: Path, settings: Mapping[str, Any], kind: str | None, target: LlamaGenConfig) -> list[str]:
    """What does not fit where the drafter's config names another stage than the target's."""
    grid, condition = _INPUTS[kind] if kind else (target.grid, target.condition)
    tokens = whole(settings, "block_size", grid * grid)
    fits = tokens == target.image_tokens or (kind is not None and grid == target.grid)
    if condition == target.condition and fits:
        return []
    return [
        f"the drafter {path} was trained for {tokens} tokens an image from a {condition} (its config says "
        f"{kind or 'block_size'}), the target draws {target.image_tokens} from a {target.condition}: it will guess "
        "badly; give the drafter of the target's stage."
    ]
