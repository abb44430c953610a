"""Janus-Pro and its drafter in PyTorch as parity asks for them: float32, one layer's weights in memory at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...checkpoints.source import TensorSource, load_module
from ...models.llama import Drafter, Layer, LayerConfig, RMSNorm
from .model import JanusConfig, rotary

_TEXT = "language_model.model"
CODES = "codes.weight"  # the table that `gen_embed` and `gen_aligner` make, [V, D]


@dataclass(frozen=True)
class JanusReference:
    """A `TargetReference` over a checkpoint with the original names, and CODES for what codes enter through."""

    source: TensorSource
    config: JanusConfig

    def prefix(self, given: Tensor, uncond: Tensor) -> Tensor:  # noqa: ARG002 - the rows have ids of their own
        return self._load(f"{_TEXT}.embed_tokens.weight")[given]

    def embed(self, ids: Tensor) -> Tensor:
        return self._load(CODES)[ids]

    def hidden(self, x: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
        config = self.config
        table = torch.from_numpy(rotary(int(positions.max()) + 1, config.head_dim, config.rope_base))[positions]
        for i in range(config.n_layer):
            with torch.device("meta"):
                layer = Layer(layer_config(config))
            x = load_module(layer, self.source, f"{_TEXT}.layers.{i}.")(x, table, visible)
        return load_module(RMSNorm(config.dim, config.norm_eps), self.source, f"{_TEXT}.norm.")(x)

    def features(self, hidden: Tensor) -> Tensor:
        return F.gelu(self._linear("gen_head.output_mlp_projector")(hidden))

    def logits(self, features: Tensor) -> Tensor:
        return self._linear("gen_head.vision_head")(features)

    def _load(self, name: str) -> Tensor:
        return self.source.load(name).float()

    def _linear(self, name: str) -> nn.Linear:
        """A module, so that what comes out of it is counted among the activations."""
        rows, columns = self.source.shape(f"{name}.weight")
        return load_module(nn.Linear(columns, rows, device="meta"), self.source, f"{name}.")


def layer_config(config: JanusConfig) -> LayerConfig:
    """Any of the model's layers."""
    return LayerConfig(
        config.dim, config.n_head, config.n_kv_head, config.head_dim, config.ffn_dim, config.norm_eps
    )


class DrafterReference:
    """A `DrafterReference` over a drafter's checkpoint."""

    def __init__(self, source: TensorSource, config: LayerConfig, codes: int, base: float) -> None:
        with torch.device("meta"):
            module = Drafter(config, codes, "fc.bias" in source)
        self._config, self._base, self._module = config, base, load_module(module, source)

    def states(self, hidden: Tensor, tokens: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
        rows = int(positions.max()) + 1
        table = torch.from_numpy(rotary(rows, self._config.head_dim, self._base))[positions]
        return self._module(hidden, tokens, table, visible)
