"""LlamaGen's facts: its checkpoints under canonical names, its stack, its drafter's, its defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from ....runtime.bundle import SamplingDefaults
from ....runtime.errors import CascadeError
from ....runtime.plan import TokenPlan
from ...checkpoints.reading import read_json
from ...checkpoints.settings import check_grid, check_names, rules, sampling_of, state_table
from ...checkpoints.source import Derived, DummySource, RenamedSource, TensorSource, renamed
from ...checkpoints.t5 import check_text_matches, open_t5
from ...checkpoints.vq import check_vq_matches, open_vq, vq_shapes
from ...model import ADJACENT, DrafterModel, Readout, StackSpec, TargetModel
from ...models.vq import VQConfig
from ...parts import Parts
from ...request import BuildRequest
from .. import Family
from .condition import conditioner
from .drafter import DrafterConfig
from .model import LlamaGenConfig, rope_2d
from .presets import PRESETS, Preset, get_preset
from .reader import drafter_shapes, llamagen_shapes, open_drafter, open_llamagen
from .reference import LanternReference, LlamaGenReference

NAME = "llamagen"
_LAYER = {
    "attention.qkv": "attention.wqkv", "attention.o": "attention.wo", "feed_forward.gate": "feed_forward.w1",
    "feed_forward.up": "feed_forward.w3", "feed_forward.down": "feed_forward.w2",
    "attention_norm": "attention_norm", "ffn_norm": "ffn_norm",
}  # fmt: skip
_DRAFTER_LAYER = {
    "attention.o": "self_attn.o_proj", "feed_forward.gate": "mlp.gate_proj", "feed_forward.up": "mlp.up_proj",
    "feed_forward.down": "mlp.down_proj", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip


def rotary(grid: int, head_dim: int, zeros: int, base: float) -> Callable[[int], np.ndarray]:
    """LlamaGen's 2-D table behind `zeros` rows of zeros, cut or filled with zeros to as many rows as are asked for."""

    def table(rows: int) -> np.ndarray:
        tail = max(0, rows - zeros - grid * grid)
        return rope_2d(grid, head_dim, zeros, tail=tail, base=base).numpy()[:rows]

    return table


def target_model(source: TensorSource, config: LlamaGenConfig, variant: str) -> TargetModel:
    """A LlamaGen transformer, its tensors under their original names."""
    names = {"embedding": "tok_embeddings", "norm": "norm", "readout": "output"}
    names |= {f"layers.{i}.{ours}": f"layers.{i}.{theirs}" for i in range(config.n_layer)
              for ours, theirs in _LAYER.items()}  # fmt: skip
    if config.condition == "text":
        names |= {f"condition.{fc}": f"cls_embedding.cap_proj.{fc}" for fc in ("fc1", "fc2")}
    else:
        names["condition.classes"] = "cls_embedding.embedding_table"
    tensors = renamed(source, {f"{ours}.weight": f"{theirs}.weight" for ours, theirs in names.items()})
    if config.condition == "text":
        null, length = "cls_embedding.uncond_embedding", config.prefix_len
        tensors["condition.null_features"] = Derived(
            (length, config.caption_dim), lambda: source.load(null)[:length]
        )
    stack = StackSpec(
        dim=config.dim, n_layer=config.n_layer, n_head=config.n_head, n_kv_head=config.n_head,
        head_dim=config.head_dim, ffn_dim=config.ffn_dim, eps=config.norm_eps, pairing=ADJACENT,
        rotary=rotary(config.grid, config.head_dim, config.prefix_len, config.rope_base),
    )  # fmt: skip
    return TargetModel(
        family=NAME, variant=variant, checkpoint=source, weights=RenamedSource(source.path, tensors), stack=stack,
        readout=Readout(config.dim), conditioner=conditioner(config),
        plan=TokenPlan(config.grid, config.grid, config.vocab_size),
        reference=lambda checkpoint: LlamaGenReference(checkpoint, config),
    )  # fmt: skip


def drafter_model(source: TensorSource, config: DrafterConfig) -> DrafterModel:
    """A LANTERN drafter of LlamaGen, its tensors under LANTERN's names."""
    names = {"embedding": "embed_tokens", "fc": "fc"}
    names |= {f"layers.0.{ours}": f"layers.0.{theirs}" for ours, theirs in _DRAFTER_LAYER.items()}
    tensors = renamed(source, {f"{ours}.weight": f"{theirs}.weight" for ours, theirs in names.items()})
    if config.bias:
        tensors |= renamed(source, {"fc.bias": "fc.bias"})
    parts = [f"layers.0.self_attn.{p}_proj.weight" for p in "qkv"]
    tensors["layers.0.attention.qkv.weight"] = Derived(
        (3 * config.dim, config.dim), lambda: torch.cat([source.load(part) for part in parts])
    )
    stack = StackSpec(
        dim=config.dim, n_layer=1, n_head=config.n_head, n_kv_head=config.n_head, head_dim=config.head_dim,
        ffn_dim=config.ffn_dim, eps=config.norm_eps, pairing=ADJACENT, input_norm=False,
        rotary=rotary(config.grid, config.head_dim, config.prefix_len - 1, config.rope_base),
    )  # fmt: skip
    return DrafterModel(
        kind="eagle-1", checkpoint=source, weights=RenamedSource(source.path, tensors), stack=stack,
        sees_padding=True, fc_bias=config.bias, reference=lambda checkpoint: LanternReference(checkpoint, config),
    )  # fmt: skip


_ENTRIES = (  # of a config file
    "dim", "n_layer", "n_head", "vocab_size", "grid", "block_size", "cls_token_num", "caption_dim", "num_classes",
    "norm_eps", "rope_base", "vq_ch_mult", "vq_z_channels", "vq_codebook_dim", "cfg_scale", "temperature", "top_k",
    "top_p", "rules", "states",
)  # fmt: skip


def open_checkpoints(request: BuildRequest) -> tuple[Parts, SamplingDefaults]:
    """LlamaGen from files in the original formats; everything is checked before anything is read.

    Options of the request win over its config file. Raises CascadeError.
    """
    settings: dict[str, Any] = {}
    if request.config is not None:
        settings = read_json(request.config)
        check_names(settings, _ENTRIES, request.config)
    settings |= request.overrides
    if request.checkpoint is None:
        raise CascadeError("give LlamaGen's checkpoint: --checkpoint FILE.")
    if request.vq is None:
        raise CascadeError("give the VQ tokenizer, which is a file of its own (as vq_ds16_t2i.pt): --vq FILE.")
    source, config = open_llamagen(request.checkpoint, settings)
    target = target_model(source, config, f"{config.condition[0]}2i {config.n_layer}x{config.dim}")
    vq_source, vq_config = open_vq(request.vq, settings)
    check_vq_matches(target.plan, vq_config)
    parts: dict[str, Any] = {"rules": rules(settings)}
    if request.drafter is not None:
        parts["drafter"] = drafter_model(*open_drafter(request.drafter, config))
    if request.text is not None:
        parts["text"], parts["text_config"], parts["tokenizer"] = open_t5(request.text)
        check_text_matches(target.conditioner.info, parts["text_config"])
    if request.config is not None:
        parts["states"] = state_table(settings, request.config.parent, (config.vocab_size, config.dim))
    return Parts(target, vq_source, vq_config, **parts), _sampling(config, settings)


def _sampling(config: LlamaGenConfig, settings: Mapping[str, Any]) -> SamplingDefaults:
    """LlamaGen's defaults for texts and classes, unless the config has its own."""
    guidance, top_k = (7.5, 1000) if config.condition == "text" else (4.0, 2000)
    return sampling_of(settings, SamplingDefaults(guidance, 1.0, top_k, 1.0), config.vocab_size)


def preset_config(name: str, grid: int | None = None) -> LlamaGenConfig:
    """The dimensions of a preset; `grid` may differ from its own. Raises CascadeError."""
    preset: Preset = get_preset(name)
    return LlamaGenConfig(
        dim=preset.dim, n_layer=preset.n_layer, n_head=preset.n_head, ffn_dim=preset.ffn_dim,
        vocab_size=preset.vocab_size, grid=check_grid(preset.grid if grid is None else grid),
        prefix_len=preset.prefix_len, condition=preset.condition, caption_dim=preset.caption_dim,
        num_classes=preset.num_classes,
    )  # fmt: skip


def drafter_config(config: LlamaGenConfig) -> DrafterConfig:
    """A drafter of LANTERN's shape for a target."""
    return DrafterConfig(
        dim=config.dim, n_head=config.n_head, ffn_dim=config.ffn_dim, vocab_size=config.vocab_size,
        grid=config.grid, prefix_len=config.prefix_len,
    )  # fmt: skip


def open_dummy(name: str, grid: int | None, _: int | None) -> tuple[Parts, SamplingDefaults]:
    """Random weights of a preset's size, with a drafter of LANTERN's shape and no text encoder."""
    preset, config = get_preset(name), preset_config(name, grid)
    vq, drafter = VQConfig(codebook_size=preset.vocab_size, ch_mult=preset.vq_ch_mult), drafter_config(config)
    parts = Parts(
        target_model(DummySource(llamagen_shapes(config)), config, preset.name), DummySource(vq_shapes(vq)), vq,
        drafter=drafter_model(DummySource(drafter_shapes(drafter)), drafter), dummy=True,
    )  # fmt: skip
    return parts, SamplingDefaults(preset.guidance_scale, 1.0, preset.top_k, 1.0)


FAMILY = Family(
    NAME, open_checkpoints, frozenset(PRESETS), open_dummy,
    {name: preset.published for name, preset in PRESETS.items() if preset.published is not None},
    default="llamagen-t2i-xl-stage1",
)  # fmt: skip
