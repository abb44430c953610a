"""Random trees and sequences for property tests."""

from __future__ import annotations

from hypothesis import strategies as st

from cascade_trt.runtime.plan import TokenPlan
from cascade_trt.runtime.tree import EAGLE, JACOBI, MOST_RIVALS, SOURCES, Tree, tree_from_branching

VOCAB = 20


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    """Trees that are drafted whole."""
    levels, width = [], 1
    for _ in range(draw(st.integers(1, 4))):
        counts = draw(st.lists(st.integers(0, 3), min_size=width, max_size=width).filter(any))
        levels.append(counts)
        width = sum(counts)
    return tree_from_branching("drawn", levels)


@st.composite
def trees_with_guesses(draw: st.DrawFn, drafted: bool = True) -> Tree:
    """Trees whose nodes have any sources that fit together; without `drafted` all are guesses.

    Siblings come in any order of their sources.
    """
    parents, sources, frontier = [-1], [EAGLE], [0]
    for _ in range(draw(st.integers(1, 5))):
        following: list[int] = []
        for node in frontier:
            choices = SOURCES if drafted and (node == 0 or sources[node] == EAGLE) else (JACOBI,)
            least = 1 if node == frontier[0] and not following else 0  # a level is never empty
            children = draw(st.lists(st.sampled_from(choices), min_size=least, max_size=3))
            for source in children:
                if source == JACOBI and _guesses_of(parents, sources, node) == MOST_RIVALS:
                    continue
                following.append(len(parents))
                parents.append(node)
                sources.append(source)
        frontier = following
    return Tree("drawn", tuple(parents), tuple(sources))


def _guesses_of(parents: list[int], sources: list[str], node: int) -> int:
    """How many guesses a node has behind it."""
    return sum(parent == node and source == JACOBI for parent, source in zip(parents, sources, strict=True))


@st.composite
def plans(draw: st.DrawFn, most: int = 4) -> TokenPlan:
    """Sequences with and without forced tokens at the start and at the ends of rows."""
    begin = [VOCAB + 1] * draw(st.integers(0, 2))
    row_end = VOCAB if begin or draw(st.booleans()) else None
    return TokenPlan(draw(st.integers(1, 3)), draw(st.integers(1, most)), VOCAB, row_end, begin)
