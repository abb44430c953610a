"""LlamaGen's VQ tokenizers (VQ-16, VQ-8, small ones), and VQGANs with taming-transformers' names, as Chameleon's.

Every dimension is read off the decoder's tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...runtime.errors import CascadeError
from ...runtime.plan import TokenPlan
from ..models.vq import VQConfig
from .reading import shown
from .source import (
    INCOMPLETE,
    RenamedSource,
    Shape,
    TensorSource,
    check_all_read,
    check_shapes,
    count,
    looks_like,
    matrix,
    open_source,
    renamed,
)

_ENCODING = ("encoder.", "quant_conv.", "loss.", "discriminator.")  # of no use for decoding
_TAMING_MID = {"block_1": "0", "attn_1": "1", "block_2": "2"}


def vq_shapes(config: VQConfig) -> dict[str, Shape]:
    """Every tensor that decoding needs; the encoder's are not among them."""
    shapes: dict[str, Shape] = {"quantize.embedding.weight": (config.codebook_size, config.codebook_dim)}

    def conv(name: str, channels_in: int, channels: int, kernel: int) -> None:
        shapes[f"{name}.weight"] = (channels, channels_in, kernel, kernel)
        shapes[f"{name}.bias"] = (channels,)

    def norm(name: str, channels: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (channels,)

    def res(name: str, channels_in: int, channels: int) -> None:
        norm(f"{name}.norm1", channels_in)
        conv(f"{name}.conv1", channels_in, channels, 3)
        norm(f"{name}.norm2", channels)
        conv(f"{name}.conv2", channels, channels, 3)
        if channels_in != channels:
            conv(f"{name}.nin_shortcut", channels_in, channels, 1)

    def attention(name: str, channels: int) -> None:
        norm(f"{name}.norm", channels)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.{part}", channels, channels, 1)

    channels = config.ch * config.ch_mult[-1]
    conv("post_quant_conv", config.codebook_dim, config.z_channels, 1)
    conv("decoder.conv_in", config.z_channels, channels, 3)
    res("decoder.mid.0", channels, channels)
    attention("decoder.mid.1", channels)
    res("decoder.mid.2", channels, channels)
    for level, mult in enumerate(reversed(config.ch_mult)):
        name, out = f"decoder.conv_blocks.{level}", config.ch * mult
        for j in range(config.num_res_blocks + 1):
            res(f"{name}.res.{j}", channels, out)
            channels = out
            if level == 0 and config.attention:
                attention(f"{name}.attn.{j}", channels)
        if level < len(config.ch_mult) - 1:
            conv(f"{name}.upsample.conv", channels, channels, 3)
    norm("decoder.norm_out", channels)
    conv("decoder.conv_out", channels, 3, 3)
    return shapes


def open_vq(path: Path, overrides: Mapping[str, Any]) -> tuple[TensorSource, VQConfig]:
    """Opens a VQ tokenizer and works out its config.

    `overrides` may hold vq_ch_mult, vq_z_channels and vq_codebook_dim of a config file; they are only
    compared. Raises CascadeError for another kind of file, missing or misshapen tensors, and contradictions.
    """
    source = open_source(path, "VQ checkpoint", ["quantize.embedding.weight"], _ENCODING)
    if any(name.startswith(("language_model.", "gen_vision_model.")) for name in source.names()):
        raise CascadeError(f"{path} is a whole Janus checkpoint: give LlamaGen's VQ file with --vq.")
    if "quantize.embedding.weight" not in source:
        raise CascadeError(f"{path} is not a VQ tokenizer but {looks_like(source)}.")
    config = _infer(source)
    for name, found in (
        ("vq_ch_mult", list(config.ch_mult)),
        ("vq_z_channels", config.z_channels),
        ("vq_codebook_dim", config.codebook_dim),
    ):
        given = overrides.get(name)
        if given is not None and not _agree(given, found):
            raise CascadeError(
                f"the config says {name} {shown(given)}, the VQ checkpoint {path} has {found}: correct the config."
            )
    check_shapes(source, vq_shapes(config), "VQ checkpoint")
    check_all_read(source, vq_shapes(config), "VQ checkpoint")
    return source, config


def vq_config_of(source: TensorSource) -> VQConfig:
    """The config of a VQ decoder's tensors under LlamaGen's names, the encoder's not among them. Raises CascadeError as
    `open_vq` does."""
    config = _infer(source)
    check_shapes(source, vq_shapes(config), "VQ checkpoint")
    check_all_read(source, vq_shapes(config), "VQ checkpoint")
    return config


def open_vqgan(path: Path) -> tuple[TensorSource, VQConfig]:
    """Opens a VQGAN with taming-transformers' names, whose codes are not normalised; the source has LlamaGen's names.

    Raises CascadeError for another kind of file, missing or misshapen tensors, and those that would be left unread.
    """
    source = open_source(path, "VQ checkpoint", ["quantize.embedding.weight"], _ENCODING)
    if "quantize.embedding.weight" not in source:
        raise CascadeError(f"{path} is not a VQ tokenizer but {looks_like(source)}.")
    levels = count(source, "decoder.up.", "VQ checkpoint")
    if not levels:
        raise CascadeError(
            f"{path} is a VQ tokenizer, but not a VQGAN as Chameleon's (it has no decoder.up levels): give Meta's "
            "vqgan.ckpt."
        )
    names = {_name_of_taming(name, levels): name for name in source.names()}
    if len(names) < len(source.names()):
        raise CascadeError(
            f"the VQ checkpoint {path} has both taming's names and LlamaGen's: give Chameleon's own vqgan.ckpt."
        )
    source = RenamedSource(source.path, renamed(source, names), source.notes)
    attention = any(name.startswith("decoder.conv_blocks.0.attn.") for name in names)
    config = replace(_infer(source), attention=attention, normalised=False)
    check_shapes(source, vq_shapes(config), "VQ checkpoint")
    check_all_read(source, vq_shapes(config), "VQ checkpoint")
    return source, config


def _name_of_taming(name: str, levels: int) -> str:
    """LlamaGen's name of a tensor. Levels count from the lowest resolution there, from the highest in taming's."""
    if (mid := re.fullmatch(r"decoder\.mid\.(block_1|attn_1|block_2)\.(.+)", name)) is not None:
        return f"decoder.mid.{_TAMING_MID[mid[1]]}.{mid[2]}"
    if (up := re.fullmatch(r"decoder\.up\.([0-9]+)\.(block|attn|upsample)\.(.+)", name)) is None:
        return name
    return f"decoder.conv_blocks.{levels - 1 - int(up[1])}.{'res' if up[2] == 'block' else up[2]}.{up[3]}"


def _agree(given: Any, found: int | list[int]) -> bool:
    """Whether a setting says what the weights say.

    ch_mult names widths relative to ch, so [2, 2] at ch 64 and [1, 1] at ch 128 are the same decoder.
    """
    if isinstance(found, int):
        return given == found
    if not isinstance(given, list) or not all(isinstance(mult, int) for mult in given) or not given:
        return False
    return [mult * found[0] for mult in given] == [width * given[0] for width in found]


def _kernel(source: TensorSource, name: str) -> Shape:
    """The shape [out, in, height, width] of a convolution that has to be there."""
    if name not in source:
        raise CascadeError(
            f"the VQ checkpoint {source.path} lacks the tensor {name}: {INCOMPLETE}"
        )
    shape = source.shape(name)
    if len(shape) != 4 or 0 in shape:
        raise CascadeError(
            f"tensor {name} of {source.path} has the shape {list(shape)}, not four dimensions."
        )
    return shape


def _infer(source: TensorSource) -> VQConfig:
    codebook_size, codebook_dim = matrix(source, "quantize.embedding.weight")
    z_channels = _kernel(source, "decoder.conv_in.weight")[1]
    levels = count(source, "decoder.conv_blocks.", "VQ checkpoint")
    per_level = count(source, "decoder.conv_blocks.0.res.", "VQ checkpoint")
    if not levels or not per_level:
        raise CascadeError(
            f"the VQ checkpoint {source.path} lacks decoder.conv_blocks: give LlamaGen's VQ file."
        )
    widths = []
    for level in reversed(range(levels)):  # the highest resolution first, as in ch_mult
        widths.append(_kernel(source, f"decoder.conv_blocks.{level}.res.0.conv2.weight")[0])
    groups = VQConfig.groups
    if any(width % groups for width in widths):
        raise CascadeError(
            f"the VQ checkpoint {source.path} has {widths} channels, not multiples of {groups}: "
            "it is of another kind."
        )
    ch = widths[0]
    if any(width % ch for width in widths):
        ch = 1
    return VQConfig(
        codebook_size=codebook_size, codebook_dim=codebook_dim, z_channels=z_channels, ch=ch,
        ch_mult=tuple(width // ch for width in widths), num_res_blocks=per_level - 1,
    )  # fmt: skip


def check_vq_matches(plan: TokenPlan, vq: VQConfig) -> None:
    """Raises CascadeError when the transformer's tokens are not the tokenizer's codes."""
    if vq.codebook_size != plan.codes:
        raise CascadeError(
            f"the VQ checkpoint has {vq.codebook_size} codes, the transformer {plan.codes} tokens: "
            "give the tokenizer that the transformer was trained with."
        )
