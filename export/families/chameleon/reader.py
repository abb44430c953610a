"""Checkpoints of Chameleon's family, as downloaded: transformers' layouts, Meta's own, and LANTERN's drafters.

Dimensions come from the tensors' shapes. Norms of queries and keys have one row for all heads, a row for each, or a row
for each group of them; here they have one row or one for each head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ....runtime.errors import CascadeError
from ...checkpoints.reading import read_json, shown
from ...checkpoints.settings import older_rotation, positive, whole
from ...checkpoints.source import (
    Derived,
    RenamedSource,
    Shape,
    TensorSource,
    check_all_read,
    check_shapes,
    count,
    matrix,
    open_source,
    renamed,
    with_notes,
)
from ..llama import layer_shapes
from .model import ChameleonConfig
from .native import is_native, native_to_hf

_WEIGHTS = ("model.safetensors.index.json", "pytorch_model.bin.index.json", "model.safetensors", "pytorch_model.bin")
_NATIVE = "consolidated.pth"
_SKIPPED = ("model.vqmodel.", "rope.freqs")  # transformers' VQ encoder, which draws nothing; a table that is computed
_MASKED = "mask_image_logits"  # only Lumina-mGPT's configs have it
_HEAD_DIMS = "layers.0.self_attn.q_norm.weight"


def chameleon_shapes(config: ChameleonConfig) -> dict[str, Shape]:
    """Every tensor of the transformer, under transformers' names."""
    table = (config.vocab_size, config.dim)
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": table}
    for i in range(config.n_layer):
        shapes |= layer_shapes(config.layer, f"model.layers.{i}")
    return shapes | {"model.norm.weight": (config.dim,), "lm_head.weight": table}


def drafter_shapes(config: ChameleonConfig, bias: bool) -> dict[str, Shape]:
    """Every tensor of a LANTERN drafter."""
    d = config.dim
    shapes: dict[str, Shape] = {"embed_tokens.weight": (config.vocab_size, d), "fc.weight": (d, 2 * d)}
    return shapes | ({"fc.bias": (d,)} if bias else {}) | layer_shapes(config.layer, "layers.0")


def open_chameleon(folder: Path, title: str, is_lumina: bool) -> tuple[TensorSource, ChameleonConfig]:
    """Opens the checkpoint in a repository's folder, under transformers' names; `title` is the model's in messages.

    Raises CascadeError for a folder that is not whole, another model's, or a Chameleon that draws no images.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CascadeError(f"{folder} is not a folder: give that of {title}'s repository, as it was downloaded.")
    if (native := _native_folder(folder)) is not None:
        if is_lumina:
            raise CascadeError(
                f"{folder} has Meta's own layout, in which nobody has published {title}: build `anole` for Anole, or "
                f"give {title}'s folder."
            )
        settings = _native_settings(native)
        source = open_source(native / _NATIVE, "checkpoint", (), _SKIPPED)
    else:
        settings = _hf_settings(folder, title, is_lumina)
        source = open_source(folder, "checkpoint", (), _SKIPPED)
    if is_native(source):
        source = native_to_hf(source)
    if f"model.{_HEAD_DIMS}" not in source:
        raise CascadeError(
            f"{folder} is not {title}: its layers do not norm queries and keys as Chameleon does (no q_norm in "
            "layer 0), so give Chameleon's checkpoint."
        )
    source, config = _inferred(source, "model.", "checkpoint", settings)
    config = replace(config, n_layer=count(source, "model.layers.", "checkpoint"))
    if whole(settings, "num_hidden_layers", config.n_layer) != config.n_layer:
        raise CascadeError(
            f"the config of {folder} says num_hidden_layers {settings['num_hidden_layers']}, its weights have "
            f"{config.n_layer}: download the whole repository."
        )
    shapes = chameleon_shapes(config)
    check_shapes(source, shapes, "checkpoint", "its config.json")
    check_all_read(source, shapes, "checkpoint")
    return source, config


def _native_folder(folder: Path) -> Path | None:
    """Where Meta's weights lie: in the folder, or in its models/<size>. None where transformers' lie in it."""
    if any((folder / name).is_file() for name in _WEIGHTS):
        return None
    places = [folder, *sorted(path for path in (folder / "models").glob("*") if path.is_dir())]
    found = [place for place in places if (place / _NATIVE).is_file()]
    if not found:
        raise CascadeError(
            f"{folder} holds no weights (model.safetensors or pytorch_model.bin, or their index, or {_NATIVE}): "
            "download the whole repository."
        )
    if len(found) > 1:
        raise CascadeError(f"{folder} holds {_NATIVE} of several sizes: give the folder of one.")
    return found[0]


def _native_settings(folder: Path) -> dict[str, Any]:
    """Meta's params.json and consolidate_params.json, under transformers' names."""
    content = read_json(folder / "params.json")
    if isinstance(content.get("model"), Mapping):
        content = content | content["model"]
    if (folder / "consolidate_params.json").is_file():
        content = content | read_json(folder / "consolidate_params.json")
    if content.get("qk_normalization") is False:
        raise CascadeError(f"{folder} does not norm queries and keys by its params.json: give Chameleon's checkpoint.")
    names = {"dim": "hidden_size", "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads",
             "norm_eps": "rms_norm_eps", "rope_theta": "rope_theta", "swin_norm": "swin_norm"}  # fmt: skip
    settings = {theirs: content[ours] for ours, theirs in names.items() if content.get(ours) is not None}
    _refuse_variants(settings, folder)
    return settings


def _hf_settings(folder: Path, title: str, is_lumina: bool) -> dict[str, Any]:
    """The config.json of a repository in transformers' layout."""
    if not (folder / "config.json").is_file():
        raise CascadeError(f"{folder} has no config.json: download the whole repository of {title}.")
    settings = read_json(folder / "config.json")
    kind = settings.get("model_type", "chameleon")
    if kind != "chameleon":
        raise CascadeError(f"{folder} is a {shown(kind)} by its config: give {title}'s folder.")
    if settings.get(_MASKED):
        raise CascadeError(
            f"the config of {folder} says {_MASKED} {shown(settings[_MASKED])}: it is a Chameleon that draws no "
            f"images, so give {title}'s folder."
        )
    if is_lumina and _MASKED not in settings:
        raise CascadeError(
            f"{folder} is not {title} (its config does not say {_MASKED} false): build `anole` for Anole, or give "
            f"{title}'s folder."
        )
    if not is_lumina and _MASKED in settings:
        raise CascadeError(f"{folder} is Lumina-mGPT by its config ({_MASKED}), not {title}: build `lumina-mgpt`.")
    settings = older_rotation(settings)
    _refuse_variants(settings, folder)
    return settings


def _refuse_variants(settings: Mapping[str, Any], folder: Path) -> None:
    """Raises CascadeError for what a Chameleon may be, and these graphs are not."""
    for name, usual in (("swin_norm", False), ("tie_word_embeddings", False), ("rope_scaling", None),
                        ("hidden_act", "silu")):  # fmt: skip
        if settings.get(name, usual) not in (usual, None):
            raise CascadeError(
                f"the config of {folder} says {name} {shown(settings[name])}, which is not supported: the models of 7B "
                f"have {shown(usual)}."
            )


def _inferred(
    source: TensorSource, prefix: str, what: str, settings: Mapping[str, Any]
) -> tuple[TensorSource, ChameleonConfig]:
    """The dimensions of a transformer or drafter with layer 0 at `prefix`, and the source with regular norms.

    Raises CascadeError where the tensors contradict each other or the config.
    """
    layer = f"{prefix}layers.0"
    vocab, dim = matrix(source, f"{prefix}embed_tokens.weight")
    ffn, _ = matrix(source, f"{layer}.mlp.gate_proj.weight")
    inner, few = (matrix(source, f"{layer}.self_attn.{part}_proj.weight")[0] for part in "qk")
    norm = source.shape(f"{layer}.self_attn.q_norm.weight")
    head_dim = norm[-1] if norm else 0
    if not head_dim or head_dim % 2 or inner % head_dim or few % head_dim or inner % few:
        raise CascadeError(
            f"the {what} {source.path} has queries of {inner} channels, keys of {few} and norms of {head_dim}, which "
            "fit no heads: it is of another kind."
        )
    heads, kv_heads = inner // head_dim, few // head_dim
    source = _regular_norms(source, {"q": heads, "k": kv_heads}, head_dim)
    rows = [source.shape(f"{layer}.self_attn.{part}_norm.weight")[0] for part in "qk"
            if f"{layer}.self_attn.{part}_norm.weight" in source]  # fmt: skip
    found = {"hidden_size": dim, "intermediate_size": ffn, "vocab_size": vocab, "num_attention_heads": heads,
             "num_key_value_heads": kv_heads}  # fmt: skip
    for name, value in found.items():
        if whole(settings, name, value) != value:
            raise CascadeError(
                f"the config of the {what} {source.path} says {name} {settings[name]}, its weights have {value}: give "
                "the config that belongs to it."
            )
    return source, ChameleonConfig(
        dim=dim, n_layer=1, n_head=heads, n_kv_head=kv_heads, head_dim=head_dim, ffn_dim=ffn, vocab_size=vocab,
        norm_rows=(rows[0], rows[-1]), norm_eps=positive(settings, "rms_norm_eps", 1e-5, most=0.1),
        rope_base=positive(settings, "rope_theta", 10000.0, least=1),
    )  # fmt: skip


def _regular_norms(source: TensorSource, heads: Mapping[str, int], head_dim: int) -> TensorSource:
    """Norms of queries and keys as [1, Dh] or [heads, Dh]: they are kept as [Dh] or with a row for some heads, too."""
    tensors = renamed(source, {name: name for name in source.names()})
    for name in source.names():
        part = name.split(".")[-2][0] if ".self_attn.q_norm." in name or ".self_attn.k_norm." in name else ""
        shape = source.shape(name)
        if not part or not shape or shape[-1] != head_dim or len(shape) > 2:
            continue  # what is misshapen is found when shapes are checked
        rows, wanted = (shape[0] if len(shape) == 2 else 1), heads[part]
        repeats = wanted // rows if rows > 1 and not wanted % rows else 1

        def load(name: str = name, repeats: int = repeats) -> torch.Tensor:
            return source.load(name).reshape(-1, head_dim).repeat_interleave(repeats, dim=0)

        tensors[name] = Derived((rows * repeats, head_dim), load)
    return RenamedSource(source.path, tensors, source.notes)


def open_drafter(
    path: Path, target: ChameleonConfig, title: str, per_head: bool
) -> tuple[TensorSource, ChameleonConfig]:
    """Opens a LANTERN drafter for `target`; its config.json is read where it lies. `per_head`: those published for this
    model have norms of each head's own. One that has the other kind may be the other model's, which a note says.

    Raises CascadeError for the drafter of another model, as far as shapes tell.
    """
    source = open_source(path, "drafter", ["fc.weight"])
    missing = [name for name in ("fc.weight", "embed_tokens.weight") if name not in source]
    if missing:
        raise CascadeError(f"{path} is not a LANTERN drafter (it has no {missing[0]}): give that of {title}.")
    if _HEAD_DIMS not in source:
        raise CascadeError(f"the drafter {path} has no norms of queries and keys: give LANTERN's of {title}.")
    source, config = _inferred(source, "", "drafter", _drafter_settings(Path(path)))
    if (config.dim, config.vocab_size) != (target.dim, target.vocab_size):
        raise CascadeError(
            f"the drafter {path} is {config.dim} wide with {config.vocab_size} tokens, {title} is {target.dim} wide "
            f"with {target.vocab_size}: give the drafter that was trained for this target."
        )
    shapes = drafter_shapes(config, "fc.bias" in source)
    check_shapes(source, shapes, "drafter", "its config.json")
    check_all_read(source, shapes, "drafter")
    if config.n_head > 1 and per_head != (config.norm_rows[0] > 1):
        other = "for all heads together, as those of Lumina-mGPT" if per_head else "for each head, as those of Anole"
        source = with_notes(
            source, f"the drafter {path} has norms {other}: where it was not trained for {title}, it will guess badly."
        )
    return source, config


def _drafter_settings(path: Path) -> dict[str, Any]:
    """The drafter's config.json beside its weights; LANTERN does without it. One with more layers is not its own."""
    file = (path if path.is_dir() else path.parent) / "config.json"
    if not file.is_file():
        return {}
    content = read_json(file)
    return older_rotation(content) if content.get("num_hidden_layers", 1) == 1 else {}
