"""Chameleon and LANTERN's drafter in PyTorch as parity asks for them: float32, one layer's weights at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from ...checkpoints.source import TensorSource, load_module
from ...models.llama import Drafter, Layer, RMSNorm
from .model import ChameleonConfig, rope_1d


class ChameleonReference:
    """A `TargetReference` over a checkpoint with transformers' names.

    `kept` int64 [tokens] are the vocabulary's ids of the bundle's own: codes (the first `codes`), then forced.
    """

    def __init__(self, source: TensorSource, config: ChameleonConfig, kept: Tensor, codes: int) -> None:
        self._source, self._config, self._kept, self._codes = source, config, kept, codes

    def prefix(self, given: Tensor, uncond: Tensor) -> Tensor:  # noqa: ARG002
        """[R, T, D] of the prompt's ids [R, T]; an unconditional row has ids of its own."""
        return self._source.load("model.embed_tokens.weight")[given].float()

    def embed(self, ids: Tensor) -> Tensor:
        return self._source.load("model.embed_tokens.weight")[self._kept[ids]].float()

    def hidden(self, x: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
        config = self._config
        rope = rope_1d(int(positions.max()) + 1, config.head_dim, config.rope_base)[positions]
        for i in range(config.n_layer):
            with torch.device("meta"):
                block = Layer(config.layer)
            x = load_module(block, self._source, f"model.layers.{i}.")(x, rope, visible)
        return load_module(RMSNorm(config.dim, config.norm_eps), self._source, "model.norm.")(x)

    def features(self, hidden: Tensor) -> Tensor:
        return hidden

    def logits(self, features: Tensor) -> Tensor:
        return features @ self._source.load("lm_head.weight")[self._kept[: self._codes]].float().T


class LanternReference:
    """A `DrafterReference` over a LANTERN checkpoint. Its tokens are the bundle's own, `kept` of the vocabulary, and
    behind them the vocabulary's, for prompts."""

    def __init__(self, source: TensorSource, config: ChameleonConfig, kept: Tensor) -> None:
        with torch.device("meta"):
            module = Drafter(config.layer, config.vocab_size, "fc.bias" in source)
        self._config, self._module = config, load_module(module, source)
        self._ids = torch.cat([kept, torch.arange(config.vocab_size)])

    def states(self, hidden: Tensor, tokens: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
        config = self._config
        rope = rope_1d(int(positions.max()) + 1, config.head_dim, config.rope_base)[positions]
        return self._module(hidden, self._ids[tokens], rope, visible)
