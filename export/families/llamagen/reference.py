"""LlamaGen and its drafter in PyTorch as parity asks for them: float32, one layer's weights in memory at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from ...checkpoints.source import TensorSource, load_module
from ...models.llama import RMSNorm
from .drafter import Drafter, DrafterConfig
from .model import Block, LlamaGenConfig, condition_embedder, rope_2d


class LlamaGenReference:
    """A `TargetReference` over a checkpoint with LlamaGen's own names."""

    def __init__(self, source: TensorSource, config: LlamaGenConfig) -> None:
        self._source, self._config = source, config

    def prefix(self, given: Tensor, uncond: Tensor) -> Tensor:
        return load_module(condition_embedder(self._config), self._source, "cls_embedding.")(given, uncond)

    def embed(self, ids: Tensor) -> Tensor:
        return self._source.load("tok_embeddings.weight")[ids].float()

    def hidden(self, x: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
        config = self._config
        rows = int(positions.max()) + 1
        tail = max(0, rows - config.prefix_len - config.image_tokens)
        rope = rope_2d(config.grid, config.head_dim, config.prefix_len, tail=tail, base=config.rope_base)
        for i in range(config.n_layer):
            with torch.device("meta"):
                block = Block(config)
            x = load_module(block, self._source, f"layers.{i}.")(x, rope[positions], visible, None)
        return load_module(RMSNorm(config.dim, config.norm_eps), self._source, "norm.")(x)

    def features(self, hidden: Tensor) -> Tensor:
        return hidden

    def logits(self, features: Tensor) -> Tensor:
        return features @ self._source.load("output.weight").float().T


class LanternReference:
    """A `DrafterReference` over a LANTERN checkpoint."""

    def __init__(self, source: TensorSource, config: DrafterConfig) -> None:
        with torch.device("meta"):
            module = Drafter(config)
        self._config, self._module = config, load_module(module, source)

    def states(self, hidden: Tensor, tokens: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
        config, module = self._config, self._module
        tail = max(0, int(positions.max()) + 2 - config.prefix_len - config.grid**2)
        rope = rope_2d(config.grid, config.head_dim, config.prefix_len - 1, tail=tail, base=config.rope_base)
        x = module.fc(torch.cat([module.embed_tokens(tokens), hidden], dim=-1))
        return module.layers[0](x, rope[positions], visible, None)
