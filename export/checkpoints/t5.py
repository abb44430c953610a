"""The text encoder: a local transformers folder of T5 v1.1 or flan-t5."""

from __future__ import annotations

from dataclasses import MISSING, fields
from pathlib import Path

from ...runtime.bundle import FEATURES, ConditionInfo
from ...runtime.errors import CascadeError
from ..models.t5 import T5Config
from .settings import whole
from .source import Shape, TensorSource, check_shapes, open_source, read_json


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

    Raises CascadeError when one of them is missing, or the model is not a T5 with gated GELU.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CascadeError(f"the text encoder {folder} is not a folder: give a transformers folder, or --text none.")
    content = read_json(folder / "config.json")
    missing = [
        field.name for field in fields(T5Config) if field.default is MISSING and field.name not in content
    ]
    if missing:
        raise CascadeError(f"{folder / 'config.json'} is not a T5 config: it lacks {missing[0]}.")
    for name in ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads"):
        whole(content, name, 1)
    gated = content.get("feed_forward_proj", "gated-gelu")
    if gated != "gated-gelu":
        raise CascadeError(
            f"the text encoder {folder} uses {gated!r}: give a T5 v1.1 or a flan-t5, which use gated-gelu."
        )
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.is_file():
        raise CascadeError(
            f"{folder} has no tokenizer.json: make one with transformers' "
            f"`AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})`."
        )
    config = T5Config.from_dict(content)
    source = open_source(folder, "text encoder")
    check_shapes(source, t5_shapes(config), "text encoder")
    return source, config, tokenizer


def check_text_matches(condition: ConditionInfo, text: T5Config) -> None:
    """Raises CascadeError when the encoder's features are not what the transformer reads."""
    if condition.kind != FEATURES:
        raise CascadeError("this checkpoint draws classes, not texts: leave --text out.")
    if text.d_model != condition.width:
        raise CascadeError(
            f"the text encoder gives features of {text.d_model}, the checkpoint reads {condition.width}: "
            "give the encoder it was trained with."
        )
