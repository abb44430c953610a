"""Opens Janus-Pro's published folders, the original ones and transformers' own, and drafters for them.

Every size comes from the tensors; `config.json` tells the heads, and what stands in no tensor.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ....runtime.errors import CascadeError
from ...checkpoints.reading import read_json, shown
from ...checkpoints.settings import check_grid, older_rotation, positive, whole
from ...checkpoints.source import (
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
    renamed,
)
from ...checkpoints.vq import vq_config_of
from ...models.llama import LayerConfig
from ...models.vq import VQConfig
from ..llama import layer_shapes
from .model import JanusConfig

TEXT = "language_model.model"
VQ = "gen_vision_model."
# What draws no image: the understanding tower with its aligner, the head of text, the VQ encoder.
_UNUSED = ("vision_model.", "aligner.", "language_model.lm_head.", f"{VQ}encoder.", f"{VQ}quant_conv.")
_KINDS = ("multi_modality", "janus")  # model_type: the original, transformers' own
_DEFAULT_HEADS = 32  # LlamaConfig's, as its other defaults below
# Names of transformers' own conversion, in the order in which they are tried.
_CONVERTED = (
    (r"model\.language_model\.", f"{TEXT}."),
    (r"lm_head\.", "language_model.lm_head."),
    (r"model\.vqmodel\.", VQ),
    (r"model\.generation_embeddings\.", "gen_embed."),
    (r"model\.generation_aligner\.fc1\.", "gen_aligner.layers.0."),
    (r"model\.generation_aligner\.hidden_layers\.0\.", "gen_aligner.layers.2."),
    (r"model\.generation_head\.proj_out\.", "gen_head.output_mlp_projector."),
    (r"model\.generation_head\.", "gen_head."),
    (r"model\.(vision_model|aligner)\.", r"\1."),
)
_CONVERTED_VQ = {"up": "conv_blocks", "down": "conv_blocks", "block": "res", "block_1": "0", "attn_1": "1",
                 "block_2": "2"}  # fmt: skip


def janus_shapes(config: JanusConfig) -> dict[str, Shape]:
    """Every tensor of the image path under its original name, the VQ's aside."""
    d, width, codes = config.dim, config.head_width, config.codes
    layer = LayerConfig(d, config.n_head, config.n_kv_head, config.head_dim, config.ffn_dim, config.norm_eps)
    shapes: dict[str, Shape] = {
        f"{TEXT}.embed_tokens.weight": (config.vocab_size, d),
        f"{TEXT}.norm.weight": (d,),
        "gen_embed.weight": (codes, config.code_dim),
    }
    for i in range(config.n_layer):
        shapes |= layer_shapes(layer, f"{TEXT}.layers.{i}")
    for name, rows, columns in (
        ("gen_aligner.layers.0", d, config.code_dim), ("gen_aligner.layers.2", d, d),
        ("gen_head.output_mlp_projector", width, d), ("gen_head.vision_head", codes, width),
    ):  # fmt: skip
        shapes |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
    return shapes


def open_janus(folder: Path, grid: int | None) -> tuple[TensorSource, JanusConfig, TensorSource, VQConfig]:
    """The image path of a folder under its original names, its config, and the VQ decoder with LlamaGen's names.

    `grid` is what the caller says of the image's side, None where the folder tells. Raises CascadeError for another
    kind of folder, missing, misshapen and unknown tensors, and what contradicts itself; nothing is read before.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CascadeError(f"{folder} is not a folder: give that of Janus-Pro's repository, as it was downloaded.")
    settings = _settings(folder)
    source = _original_names(open_source(folder, "checkpoint"))
    if "gen_embed.weight" not in source or f"{TEXT}.embed_tokens.weight" not in source:
        what = "a language model that draws nothing" if is_language_model(source) else looks_like(source)
        raise CascadeError(f"{folder} is not a Janus-Pro but {what.partition(':')[0]}: give Janus-Pro's folder.")
    kept = [name for name in source.names() if not name.startswith(_UNUSED)]
    vq = RenamedSource(folder, renamed(source, {n.removeprefix(VQ): n for n in kept if n.startswith(VQ)}))
    own = RenamedSource(folder, renamed(source, {n: n for n in kept if not n.startswith(VQ)}), source.notes)
    vq_config = vq_config_of(vq)
    config = _infer(own, settings, _grid(folder, vq_config.factor, grid))
    check_shapes(own, janus_shapes(config), "checkpoint", "its config.json")
    check_all_read(own, janus_shapes(config), "checkpoint")
    return own, config, vq, vq_config


def _settings(folder: Path) -> dict[str, Any]:
    """The language model's config. Raises CascadeError where config.json is another model's."""
    if not (folder / "config.json").is_file():
        raise CascadeError(f"{folder} has no config.json: give the folder of Janus-Pro's repository, as downloaded.")
    content = read_json(folder / "config.json")
    kind = content.get("model_type")
    if kind not in _KINDS:
        what = f"is a {shown(kind)} by its config.json, not a Janus-Pro"
        if kind is None:
            what = "does not say in config.json which kind of model it is"
        raise CascadeError(f"{folder} {what}: give Janus-Pro's folder.")
    for name in (folder.resolve().name, str(content.get("_name_or_path") or "")):
        if re.search(r"janus-?(1\.3b|flow)", name, re.IGNORECASE):
            raise CascadeError(
                f"{folder} is Janus or JanusFlow, not Janus-Pro, by its name ({shown(name)}): its prompts have another "
                "form, so give Janus-Pro."
            )
    settings = content.get("language_config" if kind == _KINDS[0] else "text_config", {})
    if not isinstance(settings, dict):
        raise CascadeError(f"{folder / 'config.json'} has no language model that can be read: download it again.")
    settings = older_rotation(settings)
    for name, plain in (("rope_scaling", None), ("attention_bias", False), ("mlp_bias", False), ("hidden_act", "silu")):
        value = settings.get(name)
        if value is not None and value != plain:
            raise CascadeError(
                f"{folder / 'config.json'} has {name} {shown(value)}, which no Janus-Pro has: give Janus-Pro's folder."
            )
    return settings


def _original_names(source: TensorSource) -> TensorSource:
    """The tensors of transformers' own conversion under their original names."""
    if not any(name.startswith("model.generation_") for name in source.names()):
        return source
    names: dict[str, str] = {}
    for name in source.names():
        found = name
        for pattern, original in _CONVERTED:
            found, changed = re.subn(rf"^{pattern}", original, found)
            if changed:
                break
        if found.startswith(VQ):
            found = ".".join(_CONVERTED_VQ.get(part, part) for part in found.split("."))
        if names.setdefault(found, name) != name:
            raise CascadeError(f"the checkpoint {source.path} holds the tensor {found} twice: check the files.")
    return RenamedSource(source.path, renamed(source, names), source.notes)


def _grid(folder: Path, factor: int, given: int | None) -> int:
    """The image's side in codes: by the number of its tokens, and by its side in pixels."""
    found = {"--grid": given} if given is not None else {}
    processor = _optional(folder / "processor_config.json")
    if processor.get("sft_format", "deepseek") != "deepseek":
        raise CascadeError(
            f"{folder / 'processor_config.json'} has the sft_format {shown(processor['sft_format'])}, not deepseek, "
            "which Janus-Pro's prompts have: give Janus-Pro's folder."
        )
    if "num_image_tokens" in processor:
        tokens = whole(processor, "num_image_tokens", 1)
        found["num_image_tokens"] = math.isqrt(tokens)
        if math.isqrt(tokens) ** 2 != tokens:
            raise CascadeError(f"num_image_tokens {tokens} is no square: correct {folder / 'processor_config.json'}.")
    preprocessor = _optional(folder / "preprocessor_config.json")
    size = preprocessor.get("size")
    pixels = size if "image_size" not in preprocessor and isinstance(size, Mapping) else preprocessor
    name = "image_size" if pixels is preprocessor else "height"
    if name in pixels:
        found[f"{name} in pixels"] = whole(pixels, name, 1) // factor
    if not found:
        raise CascadeError(
            f"{folder} has neither processor_config.json nor preprocessor_config.json, which tell the size of images: "
            "download the whole repository, or give --grid 24."
        )
    (first, side), *others = found.items()
    for other, value in others:
        if value != side:
            raise CascadeError(
                f"{first} makes images of {side} tokens a side, {other} of {value} ({factor} pixels each): correct one."
            )
    return check_grid(side)


def _optional(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def _infer(source: TensorSource, settings: Mapping[str, Any], grid: int) -> JanusConfig:
    vocab, dim = matrix(source, f"{TEXT}.embed_tokens.weight")
    codes, code_dim = matrix(source, "gen_embed.weight")
    ffn, _ = matrix(source, f"{TEXT}.layers.0.mlp.gate_proj.weight")
    width, _ = matrix(source, "gen_head.output_mlp_projector.weight")
    layers = count(source, f"{TEXT}.layers.", "checkpoint")
    for name, value in (("hidden_size", dim), ("vocab_size", vocab), ("intermediate_size", ffn),
                        ("num_hidden_layers", layers)):  # fmt: skip
        if whole(settings, name, value) != value:
            raise CascadeError(
                f"the language model has {name} {settings[name]} by config.json, {value} by its tensors in "
                f"{source.path}: download the whole repository."
            )
    heads, few, head_dim = _heads(source, settings, dim)
    return JanusConfig(
        dim=dim, n_layer=layers, n_head=heads, n_kv_head=few, head_dim=head_dim, ffn_dim=ffn, vocab_size=vocab,
        codes=codes, code_dim=code_dim, head_width=width, grid=grid,
        norm_eps=positive(settings, "rms_norm_eps", 1e-6, most=0.1),
        rope_base=positive(settings, "rope_theta", 10000.0, least=1),
    )  # fmt: skip


def _heads(source: TensorSource, settings: Mapping[str, Any], dim: int) -> tuple[int, int, int]:
    """Heads of queries, of keys and values, and their width."""
    heads = whole(settings, "num_attention_heads", _DEFAULT_HEADS)
    head_dim = whole(settings, "head_dim", dim // heads)
    few = whole(settings, "num_key_value_heads", heads)
    rows = [matrix(source, f"{TEXT}.layers.0.self_attn.{part}_proj.weight")[0] for part in "qk"]
    if rows != [heads * head_dim, few * head_dim] or not head_dim or head_dim % 2 or heads % few:
        raise CascadeError(
            f"{heads} heads ({few} of keys) of {head_dim} do not fit {rows[0]} rows of queries and {rows[1]} of keys: "
            f"correct num_attention_heads in {source.path / 'config.json'}."
        )
    return heads, few, head_dim


def drafter_shapes(config: LayerConfig, codes: int, bias: bool) -> dict[str, Shape]:
    """Every tensor of a drafter of LANTERN's form."""
    shapes = layer_shapes(config, "layers.0")
    shapes |= {"embed_tokens.weight": (codes, config.dim), "fc.weight": (config.dim, 2 * config.dim)}
    return shapes | ({"fc.bias": (config.dim,)} if bias else {})


def open_drafter(path: Path, target: JanusConfig) -> tuple[TensorSource, LayerConfig, float]:
    """Opens a drafter for `target`, its layer's config and its rotary base; its config.json is read where it lies.

    Raises CascadeError for another family's drafter, and for that of another target.
    """
    source = open_source(path, "drafter", ["fc.weight"])
    if "fc.weight" not in source or "embed_tokens.weight" not in source:
        raise CascadeError(f"{path} is not a drafter for Janus-Pro but {looks_like(source)}.")
    normed = any(name.endswith("q_norm.weight") for name in source.names())
    if normed or "layers.0.input_layernorm.weight" not in source:
        kind = "Chameleon (it norms queries and keys)" if normed else "LlamaGen (it has no input norm)"
        raise CascadeError(f"the drafter {path} is one for {kind}: give one that was trained for this Janus-Pro.")
    codes, dim = matrix(source, "embed_tokens.weight")
    if (dim, codes) != (target.dim, target.codes):
        raise CascadeError(
            f"the drafter {path} is {dim} wide with {codes} tokens, the target is {target.dim} wide with "
            f"{target.codes}: give the drafter that was trained for this target."
        )
    settings = _optional((path if Path(path).is_dir() else Path(path).parent) / "config.json")
    settings = {} if settings.get("num_hidden_layers", 1) != 1 else older_rotation(settings)  # else the target's own
    heads, few, head_dim = _drafter_heads(source, settings, target)
    ffn, _ = matrix(source, "layers.0.mlp.gate_proj.weight")
    config = LayerConfig(dim, heads, few, head_dim, ffn, positive(settings, "rms_norm_eps", target.norm_eps, most=0.1))
    shapes = drafter_shapes(config, codes, "fc.bias" in source)
    check_shapes(source, shapes, "drafter", "its config.json")
    check_all_read(source, shapes, "drafter")
    return source, config, positive(settings, "rope_theta", target.rope_base, least=1)


def _drafter_heads(source: TensorSource, settings: Mapping[str, Any], target: JanusConfig) -> tuple[int, int, int]:
    """Heads of queries, of keys and values, and their width. Where config.json tells the heads, the tensors tell what
    it leaves out; where it does not, the target's hold. Raises CascadeError where the tensors have others."""
    rows = [matrix(source, f"layers.0.self_attn.{part}_proj.weight")[0] for part in "qk"]
    heads = whole(settings, "num_attention_heads", target.n_head)
    if settings.get("num_attention_heads") is not None:
        head_dim = whole(settings, "head_dim", rows[0] // heads)
        few = whole(settings, "num_key_value_heads", rows[1] // head_dim if head_dim else 0)
    else:
        head_dim = whole(settings, "head_dim", target.head_dim)
        few = whole(settings, "num_key_value_heads", target.n_kv_head)
    if rows != [heads * head_dim, few * head_dim] or not few or head_dim % 2 or heads % few:
        raise CascadeError(
            f"the drafter {source.path} has {rows[0]} rows of queries and {rows[1]} of keys, which do not fit {heads} "
            f"heads ({few} of keys) of {head_dim}: give num_attention_heads, num_key_value_heads and head_dim in the "
            "drafter's config.json."
        )
    return heads, few, head_dim
