"""The parts of a model, opened and checked: target, VQ decoder, drafter, text encoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..runtime.errors import CascadeError
from ..runtime.model_info import NEAREST, TextInfo
from ..runtime.rules.states import StateTable
from .checkpoints.reading import spelt
from .checkpoints.source import TensorSource, files_read
from .checkpoints.t5 import t5_shapes
from .checkpoints.vq import vq_shapes
from .model import DrafterModel, TargetModel
from .models.t5 import T5Config
from .models.vq import VQConfig

TOKENIZER = "tokenizer.json"  # in a bundle


@dataclass(frozen=True)
class Parts:
    """Opened checkpoints of any family."""

    target: TargetModel
    vq: TensorSource
    vq_config: VQConfig
    drafter: DrafterModel | None = None
    text: TensorSource | None = None
    text_config: T5Config | None = None
    tokenizer: Path | bytes | None = None  # tokenizer.json, or what is in it
    prompt: TextInfo | None = None  # how a model that reads token ids takes prompts; its file is TOKENIZER
    rounding: str = NEAREST  # of decoded numbers
    dummy: bool = False
    rules: Mapping[str, str] = field(default_factory=dict)  # what a rule's bare name means with these weights
    states: StateTable | None = None
    origins: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # of what was fetched: repository, revision

    def _shapes(self) -> dict[str, list[tuple[int, ...]]]:
        """The shapes of every tensor that the graphs need, of each part."""

        def of(weights: TensorSource) -> list[tuple[int, ...]]:
            return [weights.shape(name) for name in weights.names()]

        shapes = {"target": of(self.target.weights), "vq": list(vq_shapes(self.vq_config).values())}
        if self.drafter is not None:
            shapes["drafter"] = of(self.drafter.weights)
        if self.text_config is not None:
            shapes["text"] = list(t5_shapes(self.text_config).values())
        return shapes

    def parameters(self, part: str) -> int:
        """Number of weights of a part."""
        return sum(math.prod(shape) for shape in self._shapes()[part])

    def provenance(self) -> dict[str, Any]:
        """Where the weights came from: file name, escaped where it cannot be printed, and size of each part."""
        found: dict[str, Any] = {}
        drafter = self.drafter.checkpoint if self.drafter is not None else None
        for part, source in (
            ("target", self.target.checkpoint), ("vq", self.vq), ("drafter", drafter), ("text", self.text),
        ):  # fmt: skip
            if source is None:
                continue
            if self.dummy:
                found[part] = {"weights": "random (--dummy-weights)"}
            else:
                found[part] = {"file": spelt(source.path.name), "parameters": self.parameters(part)}
                found[part] |= self.origins.get(part, {})
        return found

    @property
    def notes(self) -> list[str]:
        """What a user should know of how the files were read."""
        opened = [self.target, self.drafter]
        sources = [model.checkpoint for model in opened if model is not None] + [self.vq, self.text]
        return [note for source in sources if source is not None for note in source.notes]

    def counted(self, progress: Callable[[str, int, int], None]) -> Parts:
        """The same parts, reporting every tensor that is read."""
        counter = _Counter(progress, sum(self.parameters(part) for part in self._shapes()))
        return self._seen_through(lambda part, source: _CountedSource(source, f"exporting {part}", counter))

    def rounded(self, dtype: torch.dtype) -> Parts:
        """The same parts with every weight rounded to `dtype` and back."""
        return self._seen_through(lambda _, source: _RoundedSource(source, dtype))

    def _seen_through(self, view: Callable[[str, TensorSource], TensorSource]) -> Parts:
        """The same parts with a view of every source."""

        def of(part: str, model: Any) -> Any:
            """A model with views of its checkpoint and of its canonical weights."""
            views = {name: view(part, getattr(model, name)) for name in ("checkpoint", "weights")}
            return replace(model, **views)

        return replace(
            self,
            target=of("target", self.target),
            vq=view("VQ decoder", self.vq),
            drafter=None if self.drafter is None else of("drafter", self.drafter),
            text=None if self.text is None else view("text encoder", self.text),
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
        self.path, self.notes = source.path, source.notes

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
        if tensor.numel() and not _is_finite(tensor):
            raise self._not_finite(name)
        self._counter.count(self._what, name, tensor.numel())
        return tensor

    def _not_finite(self, name: str) -> CascadeError:
        """Says which tensor of which file it is: `name` may be ours, and made of several."""
        reads = files_read(lambda: self._source.load(name))
        for file, own, tensor in reads:
            if tensor.numel() and not _is_finite(tensor):
                return CascadeError(
                    f"tensor {spelt(own)} of {file} holds NaN or infinite values: the file is damaged, so download it "
                    "again."
                )
        made = ", ".join(spelt(own) for _, own, _ in reads) or name
        return CascadeError(
            f"what is computed from {made} of {self.path} is more than float32 can hold: give weights of usual size."
        )


def _is_finite(tensor: torch.Tensor) -> bool:
    """Of a tensor that is not empty. Its ends tell, NaN if one is there, in a tenth of the time of a look at each."""
    wide = tensor.dtype == torch.float64  # what float32 cannot hold becomes infinite in the graphs
    return bool(torch.isfinite(torch.stack(torch.aminmax(tensor.float() if wide else tensor))).all())


class _RoundedSource(_View):
    """Rounds every tensor to a dtype; what is returned is float32."""

    def __init__(self, source: TensorSource, dtype: torch.dtype) -> None:
        super().__init__(source)
        self._dtype = dtype

    def load(self, name: str) -> torch.Tensor:
        return self._source.load(name).to(self._dtype).float()
