"""The parts of a model, opened and checked: target, VQ decoder, drafter, text encoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..runtime.errors import CascadeError
from ..runtime.rules.states import StateTable
from .checkpoints.source import TensorSource
from .models.drafter import DrafterConfig
from .models.llamagen import LlamaGenConfig
from .models.t5 import T5Config
from .models.vq import VQConfig

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Parts:
    """Opened checkpoints with their configs; `shapes` holds the tensors of each that the graphs need."""

    variant: str
    target: TensorSource
    config: LlamaGenConfig
    vq: TensorSource
    vq_config: VQConfig
    shapes: Mapping[str, Shapes]
    drafter: TensorSource | None = None
    drafter_config: DrafterConfig | None = None
    text: TensorSource | None = None
    text_config: T5Config | None = None
    tokenizer: Path | None = None
    dummy: bool = False
    rules: Mapping[str, str] = field(default_factory=dict)  # what a rule's bare name means with these weights
    states: StateTable | None = None

    def parameters(self, part: str) -> int:
        """Number of weights of a part."""
        return sum(math.prod(shape) for shape in self.shapes[part].values())

    def provenance(self) -> dict[str, Any]:
        """Where the weights came from: file name and size of each part."""
        found: dict[str, Any] = {}
        for part, source in (
            ("target", self.target), ("vq", self.vq), ("drafter", self.drafter), ("text", self.text),
        ):  # fmt: skip
            if source is None:
                continue
            if self.dummy:
                found[part] = {"weights": "random (--dummy-weights)"}
            else:
                found[part] = {"file": source.path.name, "parameters": self.parameters(part)}
        return found

    def counted(self, progress: Callable[[str, int, int], None]) -> Parts:
        """The same parts, reporting every tensor that is read."""
        total = sum(self.parameters(part) for part in self.shapes)
        counter = _Counter(progress, total)

        def wrap(part: str, source: TensorSource | None) -> Any:
            return None if source is None else _CountedSource(source, f"exporting {part}", counter)

        return replace(
            self,
            target=wrap("target", self.target),
            vq=wrap("VQ decoder", self.vq),
            drafter=wrap("drafter", self.drafter),
            text=wrap("text encoder", self.text),
        )


    def rounded(self, dtype: torch.dtype) -> Parts:
        """The same parts with every weight rounded to `dtype` and back."""

        def wrap(source: TensorSource | None) -> Any:
            return None if source is None else _RoundedSource(source, dtype)

        return replace(
            self, target=wrap(self.target), vq=wrap(self.vq), drafter=wrap(self.drafter), text=wrap(self.text)
        )


class _Counter:
    """Weights read so far, of the total; a tensor that is read twice counts once."""

    def __init__(self, progress: Callable[[str, int, int], None], total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0
        self._seen: set[tuple[str, str]] = set()

    def count(self, what: str, name: str, weights: int) -> None:
        if (what, name) not in self._seen:
            self._seen.add((what, name))
            self._done += weights
        self._progress(what, self._done, self._total)


class _View:
    """A source seen through a change of `load`."""

    def __init__(self, source: TensorSource) -> None:
        self._source = source
        self.path = source.path

    def names(self) -> list[str]:
        return self._source.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._source.shape(name)

    def load(self, name: str) -> torch.Tensor:
        return self._source.load(name)

    def __contains__(self, name: object) -> bool:
        return name in self._source


class _CountedSource(_View):
    """Tells a counter of every tensor that is loaded, and refuses damaged ones."""

    def __init__(self, source: TensorSource, what: str, counter: _Counter) -> None:
        super().__init__(source)
        self._what, self._counter = what, counter

    def load(self, name: str) -> torch.Tensor:
        tensor = self._source.load(name)
        if not torch.isfinite(tensor).all():
            raise CascadeError(f"tensor {name} of {self.path} holds NaN or infinite values: the file is damaged.")
        self._counter.count(self._what, name, tensor.numel())
        return tensor


class _RoundedSource(_View):
    """Rounds every tensor to a dtype; what is returned is float32."""

    def __init__(self, source: TensorSource, dtype: torch.dtype) -> None:
        super().__init__(source)
        self._dtype = dtype

    def load(self, name: str) -> torch.Tensor:
        return self._source.load(name).to(self._dtype).float()
