"""How well each signal of `cascade` and `swap` foretells what taking a child for the target's own draw would do.

Where `exact` has to draw a token t that was not drafted, the target has just computed the states behind the children x,
and in the next round it computes the one behind t. How alike the two really are is what the signals have to guess.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..runtime.rules import Decision, Draws, Node
from ..runtime.rules.swap import Swap


@dataclass(frozen=True)
class _Open:
    """Children whose counterpart is not computed yet: its seed and position, their states [k, D], their signals."""

    place: tuple[int, int]
    states: np.ndarray
    signals: dict[str, np.ndarray]


@dataclass
class Swaps:
    """`signals` holds a list of each signal's values, `alike` the cosines of the states behind t and behind x.

    siblings: the mean cosine of x with its siblings; parent: that of x with the node; draw: that of the rows of x and t
    in the table of states, where there is one.
    """

    signals: dict[str, list[float]] = field(default_factory=dict)
    alike: list[float] = field(default_factory=list)
    _open: _Open | None = None

    def note(self, node: Node, draws: Draws, decision: Decision, swap: Swap | None) -> None:
        """A decision of `exact`, at every node that is visited, image by image."""
        place = (draws.seed, draws.position)
        if self._open is not None and node.index == 0:
            if place == self._open.place:
                self._close(node.states([0])[0])
            self._open = None
        if decision.child is not None or len(node.nodes) < 2:
            return  # only children have no siblings to ask
        block = node.alike_all(node.nodes)
        count = len(node.nodes)
        signals = {"siblings": (block.sum(1) - block.diagonal()) / (count - 1),
                   "parent": np.array([node.alike(node.index, child) for child in node.nodes])}  # fmt: skip
        if swap is not None and swap.states is not None:
            signals["draw"] = swap.states.cosines(node.tokens, decision.token)
        self._open = _Open((draws.seed, draws.position + 1), node.states(node.nodes), signals)

    def _close(self, state: np.ndarray) -> None:
        assert self._open is not None
        lengths = np.linalg.norm(self._open.states, axis=1) * np.linalg.norm(state)
        self.alike += (self._open.states @ state / np.maximum(lengths, 1e-12)).tolist()
        for name, values in self._open.signals.items():
            self.signals.setdefault(name, []).extend(values.tolist())

    def correlations(self) -> dict[str, float]:
        """Each signal's rank correlation (Spearman) with how alike the states are; {} where nothing was seen."""
        if len(set(self.alike)) < 2:
            return {}
        return {name: float(np.corrcoef(_ranks(values), _ranks(self.alike))[0, 1])
                for name, values in self.signals.items() if len(set(values)) > 1}  # fmt: skip


def _ranks(values: list[float]) -> np.ndarray:
    return np.argsort(np.argsort(values, kind="stable"), kind="stable").astype(float)
