"""The facts of Chameleon's family: checkpoints under canonical names, stacks, drafters."""

from __future__ import annotations

import numpy as np
import torch

from ....runtime.bundle import OWN, TOKENS, ConditionInfo
from ...checkpoints.source import Derived, RenamedSource, TensorSource, renamed
from ...model import HALVES, Conditioner, DrafterModel, Readout, StackSpec, TargetModel
from ...models.llama import QK_NORM_EPS
from ..llama import layer_tensors
from .model import ChameleonConfig, rope_1d
from .reference import ChameleonReference, LanternReference
from .sequence import Sequence


def stack(config: ChameleonConfig) -> StackSpec:
    """The layers of a transformer, or the one of a drafter."""
    return StackSpec(
        dim=config.dim, n_layer=config.n_layer, n_head=config.n_head, n_kv_head=config.n_kv_head,
        head_dim=config.head_dim, ffn_dim=config.ffn_dim, eps=config.norm_eps, pairing=HALVES,
        rotary=lambda rows: _rotary(rows, config), qk_norm_eps=QK_NORM_EPS,
    )  # fmt: skip


def _rotary(rows: int, config: ChameleonConfig) -> np.ndarray:
    return rope_1d(rows, config.head_dim, config.rope_base).numpy()


def _rows(source: TensorSource, name: str, ids: torch.Tensor) -> Derived:
    """So many rows of a table."""
    return Derived((len(ids), source.shape(name)[1]), lambda: source.load(name)[ids])


def target_model(
    source: TensorSource, config: ChameleonConfig, sequence: Sequence, name: str, variant: str, length: int
) -> TargetModel:
    """A Chameleon transformer, cut to images: the head has the codes, the embedding the codes and what is forced.

    The prompt's embeddings are those of the whole vocabulary. `length` are the slots of the prefix.
    """
    plan, kept = sequence.plan, sequence.kept
    table = "model.embed_tokens.weight"
    tensors = renamed(source, {"norm.weight": "model.norm.weight", "condition.embedding.weight": table})
    tensors["embedding.weight"] = _rows(source, table, kept)
    tensors["readout.weight"] = _rows(source, "lm_head.weight", kept[: plan.codes])
    for i in range(config.n_layer):
        tensors |= layer_tensors(source, f"layers.{i}", f"model.layers.{i}")
    info = ConditionInfo(
        TOKENS, length, uncond_length=len(sequence.form.uncond), positions=OWN, vocabulary=config.vocab_size
    )
    return TargetModel(
        family=name, variant=variant, checkpoint=source, weights=RenamedSource(source.path, tensors),
        stack=stack(config), readout=Readout(config.dim), conditioner=Conditioner(info), plan=plan,
        reference=lambda checkpoint: ChameleonReference(checkpoint, config, kept, plan.codes),
    )  # fmt: skip


def drafter_model(source: TensorSource, config: ChameleonConfig, kept: torch.Tensor) -> DrafterModel:
    """A LANTERN drafter. Its table has the bundle's own tokens, and behind them the vocabulary: it reads prompts."""
    bias = "fc.bias" in source
    names = {"fc.weight": "fc.weight"} | ({"fc.bias": "fc.bias"} if bias else {})
    tensors = renamed(source, names) | layer_tensors(source, "layers.0", "layers.0")
    tensors["embedding.weight"] = _rows(
        source, "embed_tokens.weight", torch.cat([kept, torch.arange(config.vocab_size)])
    )
    return DrafterModel(
        kind="eagle-1", checkpoint=source, weights=RenamedSource(source.path, tensors), stack=stack(config),
        sees_padding=False, fc_bias=bias, prompt_ids=config.vocab_size,
        reference=lambda checkpoint: LanternReference(checkpoint, config, kept),
    )  # fmt: skip
