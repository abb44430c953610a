"""Digests of a part's weights as they are read: the same for every precision and every tree of a bundle."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .checkpoints.source import Shape, TensorSource
from .parts import Parts


class WeightDigest:
    """A source that remembers what was loaded from it."""

    def __init__(self, source: TensorSource) -> None:
        self._source, self._seen = source, dict[str, bytes]()

    @property
    def path(self) -> Path:
        return self._source.path

    @property
    def notes(self) -> tuple[str, ...]:
        return self._source.notes

    def names(self) -> list[str]:
        return self._source.names()

    def shape(self, name: str) -> Shape:
        return self._source.shape(name)

    def load(self, name: str) -> torch.Tensor:
        tensor = self._source.load(name)
        if name not in self._seen:
            seen = hashlib.sha256(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            seen.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            self._seen[name] = seen.digest()
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._source

    def hexdigest(self) -> str:
        """Of all tensors that were loaded, in whatever order."""
        return hashlib.sha256(b"".join(sorted(self._seen.values()))).hexdigest()


def watched(parts: Parts) -> tuple[Parts, dict[str, WeightDigest]]:
    """The same parts, and the digests of target and drafter, which are complete once the graphs are written."""
    models: dict[str, Any] = {"target": parts.target, "drafter": parts.drafter}
    digests = {part: WeightDigest(model.weights) for part, model in models.items() if model is not None}
    changed = {part: replace(models[part], weights=digest) for part, digest in digests.items()}
    return replace(parts, **changed), digests
