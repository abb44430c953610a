"""Janus-Pro's facts: its checkpoints under canonical names, its stack, its readout, its drafter's, its defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor

from ....runtime.bundle import TOKENS, ConditionInfo, SamplingDefaults
from ....runtime.errors import CascadeError
from ....runtime.model_info import DOWN
from ....runtime.plan import TokenPlan
from ...checkpoints.reading import read_json, spelt
from ...checkpoints.settings import check_grid, rules, sampling_of, state_table
from ...checkpoints.source import Derived, DummySource, RenamedSource, TensorSource, renamed
from ...checkpoints.vq import check_vq_matches, vq_shapes
from ...graphs.builder import GraphBuilder, as_numpy
from ...model import HALVES, Conditioner, DrafterModel, Readout, StackSpec, TargetModel
from ...models.llama import LayerConfig
from ...models.vq import VQConfig
from ...parts import Parts
from ...request import BuildRequest
from .. import Family
from ..llama import layer_tensors
from .model import JanusConfig, rotary
from .presets import GUIDANCE, PRESETS
from .prompt import PROMPT_LENGTH, dummy_prompt, open_prompt
from .reader import TEXT, drafter_shapes, janus_shapes, open_drafter, open_janus
from .reference import CODES, DrafterReference, JanusReference, layer_config

NAME = "janus-pro"
_SETTINGS = ("cfg_scale", "temperature", "top_k", "top_p", "rules", "states")  # of --config
_UNUSED = {  # options, with what they are for elsewhere
    "vq": "the VQ decoder is in the checkpoint", "text": "the model reads prompts itself",
    "n_head": "config.json tells the heads",
}  # fmt: skip


def folded(source: TensorSource, config: JanusConfig) -> TensorSource:
    """The checkpoint with one table of codes, CODES float32 [V, D], in the place of `gen_embed` and `gen_aligner`: a
    code's input is always the same, so it is computed here once. Parity reads the same table, and so in the precision
    that it is stored in."""
    kept = {name: name for name in source.names() if not name.startswith(("gen_embed.", "gen_aligner."))}
    table = {CODES: Derived((config.codes, config.dim), lambda: _code_table(source))}
    return RenamedSource(source.path, renamed(source, kept) | table, source.notes)


def _code_table(source: TensorSource) -> Tensor:
    """What `gen_aligner` makes of each row of `gen_embed`."""

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, *(source.load(f"gen_aligner.layers.{name}.{kind}").float() for kind in ("weight", "bias")))

    with torch.no_grad():
        return linear("2", F.gelu(linear("0", source.load("gen_embed.weight").float())))


def head_features(g: GraphBuilder, weights: TensorSource, hidden: ir.Value) -> ir.Value:
    """[R, N, E]: gen_head's first layer with its GELU by erf. Guidance mixes behind it."""
    name = "readout.mlp"
    h = g.linear(hidden, f"target.{name}", lambda: as_numpy(weights.load(f"{name}.weight")))
    bias = g.weight(f"target.{name}.bias", lambda: as_numpy(weights.load(f"{name}.bias")))
    return g.from_float(g.op("Gelu", g.to_float(g.op("Add", h, bias))))


def stack_spec(config: LayerConfig, layers: int, base: float) -> StackSpec:
    """Layers of a Llama with a 1-D rotary table."""
    return StackSpec(
        dim=config.dim, n_layer=layers, n_head=config.n_head, n_kv_head=config.n_kv_head, head_dim=config.head_dim,
        ffn_dim=config.ffn_dim, eps=config.norm_eps, pairing=HALVES,
        rotary=lambda rows: rotary(rows, config.head_dim, base),
    )  # fmt: skip


def target_model(source: TensorSource, config: JanusConfig, variant: str, prompt_length: int) -> TargetModel:
    """A Janus-Pro, its tensors under their original names."""
    source = folded(source, config)
    names = {
        "embedding.weight": CODES, "norm.weight": f"{TEXT}.norm.weight",
        "condition.embedding.weight": f"{TEXT}.embed_tokens.weight",
    }  # fmt: skip
    for ours, theirs in (("readout", "vision_head"), ("readout.mlp", "output_mlp_projector")):
        names |= {f"{ours}.{kind}": f"gen_head.{theirs}.{kind}" for kind in ("weight", "bias")}
    tensors = renamed(source, names)
    for i in range(config.n_layer):
        tensors |= layer_tensors(source, f"layers.{i}", f"{TEXT}.layers.{i}")
    return TargetModel(
        family=NAME, variant=variant, checkpoint=source, weights=RenamedSource(source.path, tensors),
        stack=stack_spec(layer_config(config), config.n_layer, config.rope_base),
        readout=Readout(config.head_width, head_features, bias=True),
        conditioner=Conditioner(ConditionInfo(TOKENS, prompt_length, vocabulary=config.vocab_size)),
        plan=TokenPlan(config.grid, config.grid, config.codes),
        reference=lambda checkpoint: JanusReference(checkpoint, config),
    )  # fmt: skip


def drafter_model(source: TensorSource, config: LayerConfig, codes: int, base: float) -> DrafterModel:
    """A drafter of LANTERN's form: it pairs the prompt's states with the embedding of code 0, as LlamaGen's does."""
    bias = "fc.bias" in source
    names = {"embedding.weight": "embed_tokens.weight", "fc.weight": "fc.weight"} | (
        {"fc.bias": "fc.bias"} if bias else {}
    )
    tensors = renamed(source, names) | layer_tensors(source, "layers.0", "layers.0")
    return DrafterModel(
        kind="eagle-1", checkpoint=source, weights=RenamedSource(source.path, tensors),
        stack=stack_spec(config, 1, base), sees_padding=False, fc_bias=bias,
        reference=lambda checkpoint: DrafterReference(checkpoint, config, codes, base),
    )  # fmt: skip


def open_checkpoints(request: BuildRequest) -> tuple[Parts, SamplingDefaults]:
    """Janus-Pro from a folder as it was downloaded; everything is checked before anything is read.

    Raises CascadeError.
    """
    if request.checkpoint is None:
        raise CascadeError("give the folder of Janus-Pro's repository, as it was downloaded: --checkpoint FOLDER.")
    for name, why in _UNUSED.items():
        if getattr(request, name) is not None:
            raise CascadeError(f"janus-pro takes no --{name.replace('_', '-')}, as {why}: leave it away.")
    settings = _settings(request)
    source, config, vq, vq_config = open_janus(request.checkpoint, request.grid)
    length = request.prompt_length or PROMPT_LENGTH
    prompt, tokenizer = open_prompt(request.checkpoint, config.vocab_size, length)
    target = target_model(source, config, f"{config.n_layer}x{config.dim}", length)
    check_vq_matches(target.plan, vq_config)
    parts: dict[str, Any] = {"rules": rules(settings)}
    if request.drafter is not None:
        found, layer, base = open_drafter(request.drafter, config)
        parts["drafter"] = drafter_model(found, layer, config.codes, base)
    if request.config is not None:
        parts["states"] = state_table(settings, request.config.parent, (config.codes, config.head_width))
    opened = Parts(target, vq, vq_config, tokenizer=tokenizer, prompt=prompt, rounding=DOWN, **parts)
    return opened, _sampling(config.codes, settings)


def _settings(request: BuildRequest) -> dict[str, Any]:
    """What --config says. Raises CascadeError for what it cannot say."""
    settings = read_json(request.config) if request.config is not None else {}
    unknown = [name for name in settings if name not in _SETTINGS]
    if unknown:
        raise CascadeError(
            f"the config {request.config} has {spelt(unknown[0])}, which says nothing here: janus-pro takes "
            f"{', '.join(_SETTINGS)}, and the checkpoint's own config.json says the rest."
        )
    return settings


def _sampling(codes: int, settings: Mapping[str, Any]) -> SamplingDefaults:
    """The original's defaults, which cut nothing, unless the config has its own."""
    return sampling_of(settings, SamplingDefaults(GUIDANCE, 1.0, codes, 1.0), codes)


def open_dummy(name: str, grid: int | None, prompt_length: int | None) -> tuple[Parts, SamplingDefaults]:
    """Random weights of a preset's size, with a drafter of LANTERN's form and a tokenizer of bytes."""
    preset = PRESETS[name]  # who asks has found the family by it
    config = JanusConfig(
        dim=preset.dim, n_layer=preset.n_layer, n_head=preset.n_head, n_kv_head=preset.n_head,
        head_dim=preset.dim // preset.n_head, ffn_dim=preset.ffn_dim, vocab_size=preset.vocab_size,
        codes=preset.codes, code_dim=preset.code_dim, head_width=preset.dim,
        grid=check_grid(preset.grid if grid is None else grid),
    )  # fmt: skip
    vq, layer = VQConfig(codebook_size=preset.codes, ch_mult=preset.vq_ch_mult), layer_config(config)
    length = prompt_length or PROMPT_LENGTH
    prompt, tokenizer = dummy_prompt(length)
    drafter = DummySource(drafter_shapes(layer, config.codes, bias=True))
    parts = Parts(
        target_model(DummySource(janus_shapes(config)), config, preset.name, length),
        DummySource(vq_shapes(vq)), vq, drafter=drafter_model(drafter, layer, config.codes, config.rope_base),
        tokenizer=tokenizer, prompt=prompt, rounding=DOWN, dummy=True,
    )  # fmt: skip
    return parts, _sampling(preset.codes, {})


FAMILY = Family(
    NAME, open_checkpoints, frozenset(PRESETS), open_dummy,
    {name: preset.published for name, preset in PRESETS.items()}, default="janus-pro-1b",
)  # fmt: skip
