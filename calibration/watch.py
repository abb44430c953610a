"""Rules that are watched while they decide: what calibration learns from real drawings."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from ..runtime.noise import Stream
from ..runtime.rules import LOGITS, SIMILARITY, STATES, Decision, Draws, Node, Rule
from ..runtime.rules.exact import race
from ..runtime.rules.swap import Swap
from .swaps import Swaps


@dataclass
class Acceptance:
    """How often the k-th child of a visited node is accepted, by the node's depth.

    `visited` and `accepted` map (depth, rank) to counts; only nodes that have a k-th child count.
    """

    visited: dict[tuple[int, int], int] = field(default_factory=lambda: defaultdict(int))
    accepted: dict[tuple[int, int], int] = field(default_factory=lambda: defaultdict(int))

    def note(self, node: Node, child: int | None) -> None:
        for rank, number in enumerate(node.nodes):
            self.visited[node.depth, rank] += 1
            self.accepted[node.depth, rank] += number == child

    def table(self) -> np.ndarray:
        """float64 [depths, ranks]: shares; where a rank was seen too rarely, that of the depth before."""
        depths = 1 + max((depth for depth, _ in self.visited), default=-1)
        ranks = 1 + max((rank for _, rank in self.visited), default=-1)
        shares = np.zeros((depths, ranks))
        for depth in range(depths):
            for rank in range(ranks):
                seen = self.visited.get((depth, rank), 0)
                if seen >= _ENOUGH:
                    shares[depth, rank] = self.accepted[depth, rank] / seen
                elif depth:
                    shares[depth, rank] = shares[depth - 1, rank]
        return shares


_ENOUGH = 20


@dataclass
class Similarities:
    """Cosines at visited nodes, and prices, by the children's depth.

    `breadth`: between siblings, each pair once. `depth`: between the node and the child that the rule would give a
    second chance (the likeliest); image rows' first tokens left out. `draw`: where the draw of a coupled tree was not
    drafted, 1 less the price of the cheapest child: what tau_draw is compared with where nothing follows that child.
    """

    breadth: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    depth: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    draw: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))

    def note_draw(self, node: Node, draws: Draws, swap: Swap) -> None:
        """A draw that was not drafted, with the prices that `swap` sets."""
        kept = [index for index, at in enumerate(node.places) if at is not None]
        if kept:
            scores = race(node.ids, node.logits, draws)
            self.draw[node.depth + 1].append(1 - float(swap.prices(node, kept, scores).min()))

    def note(self, node: Node) -> None:
        if len(node.nodes) > 1:
            block = node.alike_all(node.nodes)
            self.breadth[node.depth + 1] += block[np.triu_indices(len(node.nodes), 1)].tolist()
        places = [(at, child) for at, child in zip(node.places, node.nodes, strict=True) if at is not None]
        if places and not node.row_start:
            likeliest = min(places)[1]
            self.depth[node.depth + 1].append(node.alike(node.index, likeliest))


@dataclass(frozen=True)
class Watching:
    """A rule in the place of `rule`, for those who look on while it decides."""

    rule: Rule

    @property
    def name(self) -> str:
        return self.rule.name

    @property
    def noise(self) -> Stream | None:
        return self.rule.noise

    @property
    def needs(self) -> frozenset[str]:
        """What the rule reads, and what those who look on do."""
        return self.rule.needs | self.looks_at

    @property
    def compares_siblings(self) -> bool:
        return self.rule.compares_siblings

    @property
    def looks_at(self) -> frozenset[str]:
        return frozenset({LOGITS})


@dataclass(frozen=True)
class Watched(Watching):
    """`rule`, with every decision noted; it decides as the rule does.

    With a `swap` that knows the bundle's table of states, `rule` being `exact`, draws that were not drafted are priced,
    too; with `swaps` what taking their place would do is noted.
    """

    swap: Swap | None = None
    acceptance: Acceptance = field(default_factory=Acceptance)
    similarities: Similarities = field(default_factory=Similarities)
    swaps: Swaps | None = None

    @property
    def looks_at(self) -> frozenset[str]:
        return frozenset({LOGITS, SIMILARITY} if self.swaps is None else {LOGITS, SIMILARITY, STATES})

    def decide(self, node: Node, draws: Draws) -> Decision:
        decision = self.rule.decide(node, draws)
        self.acceptance.note(node, decision.child)
        if self.swaps is not None:
            self.swaps.note(node, draws, decision, self.swap)
        if node.nodes:
            self.similarities.note(node)
            if self.swap is not None and decision.child is None:
                self.similarities.note_draw(node, draws, self.swap)
        return decision
