"""Whether a model's activations fit fp16: the largest ones of the float32 modules, against fp16's range.

Weights that fit are checked when they are written; activations can outgrow fp16 all the same (T5's feed-forward
layers are known for it), and then give infinities in some images only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

FP16_LARGEST = 65504.0
_MARGIN = 4.0  # one prompt was looked at; others may reach further


@dataclass
class ActivationScan:
    """The largest absolute activation of each engine, and the class of the module that read or wrote it."""

    largest: dict[str, tuple[float, str]] = field(default_factory=dict)

    @contextmanager
    def watch(self, engine: str) -> Iterator[None]:
        """Counts the inputs and outputs of every PyTorch module that runs inside the block as `engine`'s."""

        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            for value in (*inputs, output):
                if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
                    reached = largest_activation(value)
                    if reached > self.largest.get(engine, (0.0, ""))[0]:
                        self.largest[engine] = (reached, type(module).__name__)

        with register_module_forward_hook(look):
            yield

    def entry(self, engine: str) -> dict[str, Any]:
        """What the manifest says: {} when nothing of `engine` was seen."""
        if engine not in self.largest:
            return {}
        value, module = self.largest[engine]
        return {"activations": {"largest": value, "module": module, "fp16": fp16_sentence(value, module)}}


def largest_activation(value: Tensor) -> float:
    """Largest magnitude in `value`, without the lowest number of its type: that marks what a mask hides."""
    value, lowest = value.detach(), torch.finfo(value.dtype).min
    low, high = torch.aminmax(value)
    if low == lowest:
        return float(value.masked_fill(value == lowest, 0).abs().max())
    return float(torch.maximum(-low, high))


def fp16_sentence(largest: float, module: str) -> str:
    """Whether fp16 holds activations up to `largest`, which was seen at a `module`."""
    seen = f"activations reach {largest:.3g} ({module})"
    if largest > FP16_LARGEST:
        return f"{seen}, beyond fp16's {FP16_LARGEST:.0f}: build with --precision bf16."
    if largest > FP16_LARGEST / _MARGIN:
        return f"{seen}, near fp16's {FP16_LARGEST:.0f}: --precision bf16 is safer."
    return f"{seen}, well inside fp16."


def fp16_advice(parity: Mapping[str, Any]) -> list[str]:
    """A sentence for each engine of a parity report that does not, or hardly, fit fp16."""
    found = []
    for engine, report in parity.items():
        seen = report.get("activations")
        if seen is not None and seen["largest"] > FP16_LARGEST / _MARGIN:
            found.append(f"{engine}: {seen['fp16']}")
    return found
