"""`gsd`: Grouped Speculative Decoding (So et al., ICCV 2025): tokens of like probability are tested as a group.

Carried over from Jacobi decoding to trees. Both sides of the ratio are summed over a group around x: the `size`
tokens nearest in rank by the target's logits, without those whose probability differs by `p_thr` or more. Its
distance test on input embeddings is left out: the released code applies it to one model's embedding rows. A rejection
leaves the strict residual.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..errors import CascadeError
from .base import Node
from .relaxed import Relaxed
from .residual import Residual


@dataclass(frozen=True)
class Gsd(Relaxed):
    """size: tokens in a group, x included; p_thr: largest difference of probability inside a group."""

    size: int = 10
    p_thr: float = 0.15
    kind: ClassVar[str] = "gsd"
    weighs_q: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.between("p_thr", 0, 1)
        if self.size < 1:
            raise CascadeError(f"gsd: size must be at least 1, not {self.size}.")
        if self.children == "topk":
            raise CascadeError("gsd divides by the drafter's q, which top-k children lack: use children=sampled.")

    def weigh(self, node: Node, residual: Residual, index: int) -> tuple[float, float]:
        token = node.tokens[index]
        at = node.place(token)
        assert at is not None  # only supported children are weighed
        window = np.arange(max(0, at - self.size // 2), min(len(node.ids), at - self.size // 2 + self.size))
        near = np.abs(node.p[window] - node.p[at]) < self.p_thr
        group = window[near | (window == at)]
        return float(residual.p[group].sum()), float(residual.proposals()[group].sum())
