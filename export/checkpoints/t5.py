"""The text encoder: a local transformers folder of T5 v1.1 or flan-t5."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch

from ...runtime.bundle import FEATURES, ConditionInfo
from ...runtime.errors import CascadeError
from ..models.t5 import T5Config
from .reading import read_json, shown
from .settings import index, positive, whole
from .source import (
    RenamedSource,
    Shape,
    TensorSource,
    check_all_read,
    check_shapes,
    count,
    open_source,
    renamed,
)
from .tokenizer import read_vocabulary

_WHAT = "text encoder"
_ALIKE = ("t5", "mt5")  # model_type of encoders that compute the same; umt5 has a table of positions in each layer
_SHARED, _TIED = "shared.weight", "encoder.embed_tokens.weight"


def t5_shapes(config: T5Config) -> dict[str, Shape]:
    """Every tensor of the encoder."""
    d, inner = config.d_model, config.num_heads * config.d_kv
    shapes: dict[str, Shape] = {
        "shared.weight": (config.vocab_size, d),
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (
            config.relative_attention_num_buckets,
            config.num_heads,
        ),
        "encoder.final_layer_norm.weight": (d,),
    }
    for i in range(config.num_layers):
        block = f"encoder.block.{i}.layer"
        shapes |= {f"{block}.0.SelfAttention.{p}.weight": (inner, d) for p in "qkv"}
        shapes |= {
            f"{block}.0.SelfAttention.o.weight": (d, inner),
            f"{block}.0.layer_norm.weight": (d,),
            f"{block}.1.DenseReluDense.wi_0.weight": (config.d_ff, d),
            f"{block}.1.DenseReluDense.wi_1.weight": (config.d_ff, d),
            f"{block}.1.DenseReluDense.wo.weight": (d, config.d_ff),
            f"{block}.1.layer_norm.weight": (d,),
        }
    return shapes


def open_t5(folder: Path) -> tuple[TensorSource, T5Config, Path]:
    """Opens config.json, weights and tokenizer.json of `folder`; of a whole T5 only the encoder is used.

    Raises CascadeError when one of them is missing or damaged, or the model is not a T5 with gated GELU.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CascadeError(f"the text encoder {folder} is not a folder: give a transformers folder, or --text none.")
    config = read_config(folder)
    tokenizer = folder / "tokenizer.json"
    _check_tokenizer(tokenizer, config)
    source = _with_embedding(open_source(folder, _WHAT, ["encoder.final_layer_norm.weight"], ("decoder.", "lm_head.")))
    if count(source, "encoder.block.", _WHAT) < config.num_layers:
        raise CascadeError(
            f"the text encoder {folder} has fewer than the {config.num_layers} layers of its config (it lacks "
            f"encoder.block.{count(source, 'encoder.block.', _WHAT)}.layer.0): download it again."
        )
    shapes = t5_shapes(config)
    check_shapes(source, shapes, _WHAT)
    check_all_read(source, shapes, _WHAT)
    return source, config, tokenizer


def read_config(folder: Path) -> T5Config:
    """A transformers config of a T5 encoder; null means the default. Raises CascadeError for what it cannot be."""
    content = {name: value for name, value in read_json(folder / "config.json").items() if value is not None}
    where = f"the text encoder {folder}"
    others = [] if content.get("model_type", "t5") in _ALIKE else [content["model_type"]]
    others += [name for name in _names(content.get("architectures")) if not re.match("M?T5[A-Z]", name)]
    if others:
        raise CascadeError(f"{where} is a {shown(others[0])} by its config: give a T5 v1.1 or a flan-t5.")
    missing = [field.name for field in fields(T5Config) if field.default is MISSING and field.name not in content]
    if missing:
        raise CascadeError(f"{folder / 'config.json'} is not a T5 config: it lacks {missing[0]}.")
    gated = content.get("feed_forward_proj", "gated-gelu")
    activation = content.get("dense_act_fn", "gelu_new")
    if gated != "gated-gelu" or activation != "gelu_new" or content.get("is_gated_act", True) is not True:
        used = gated if gated != "gated-gelu" else activation
        raise CascadeError(
            f"{where} uses {shown(used)}: give a T5 v1.1 or a flan-t5, which use gated-gelu."
        )
    sizes = {field.name: whole(content, field.name, 1) for field in fields(T5Config) if field.default is MISSING}
    config = T5Config(
        **sizes,
        relative_attention_num_buckets=whole(content, "relative_attention_num_buckets", 32),
        relative_attention_max_distance=whole(content, "relative_attention_max_distance", 128),
        layer_norm_epsilon=positive(content, "layer_norm_epsilon", 1e-6, most=0.1),
        pad_token_id=index(content, "pad_token_id", 0, sizes["vocab_size"]),
    )
    exact = config.relative_attention_num_buckets // 4
    if not 1 <= exact < config.relative_attention_max_distance:
        raise CascadeError(
            f"{where} has {config.relative_attention_num_buckets} buckets of relative positions up to a distance of "
            f"{config.relative_attention_max_distance}: correct relative_attention_num_buckets (32) or "
            "relative_attention_max_distance (128) in its config."
        )
    return config


def _names(value: Any) -> list[str]:
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


def _check_tokenizer(file: Path, config: T5Config) -> None:
    """Raises CascadeError unless this is a tokenizer whose ids the encoder knows."""
    folder = file.parent
    if not file.is_file():
        raise CascadeError(
            f"{folder} has no tokenizer.json: make one with transformers' "
            f"`AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})`."
        )
    read_vocabulary(file, config.vocab_size, "the text encoder")


def _with_embedding(source: TensorSource) -> TensorSource:
    """The source with its table of embeddings under one name; files have it under either, or twice."""
    names = {name: name for name in source.names() if name != _TIED}
    if _TIED not in source:
        return source
    if _SHARED not in source:
        names[_SHARED] = _TIED
    elif source.shape(_SHARED) != source.shape(_TIED) or not torch.equal(source.load(_SHARED), source.load(_TIED)):
        raise CascadeError(
            f"the text encoder {source.path} holds two tables of embeddings that differ, {_SHARED} and {_TIED}: "
            "leave one of them out of the file."
        )
    return RenamedSource(source.path, renamed(source, names), source.notes)


def check_text_matches(condition: ConditionInfo, text: T5Config) -> None:
    """Raises CascadeError when the encoder's features are not what the transformer reads."""
    if condition.kind != FEATURES:
        raise CascadeError("this checkpoint draws classes, not texts: leave --text out.")
    if text.d_model != condition.width:
        raise CascadeError(
            f"the text encoder gives features of {text.d_model}, the checkpoint reads {condition.width}: "
            "give the encoder it was trained with."
        )
