"""Anole (arXiv 2407.06135): a square of codes behind the prompt."""

from __future__ import annotations

from functools import partial

from ...checkpoints.settings import check_grid
from .. import Family
from .opening import Images, Kind, open_dummy, open_repository
from .presets import ANOLE_7B
from .sequence import Sequence, anole_sequence
from .vocabulary import Vocabulary


def sequence(vocabulary: Vocabulary, images: Images) -> Sequence:
    """The codes of the one size."""
    return anole_sequence(vocabulary, check_grid(ANOLE_7B.grid if images.grid is None else images.grid))


KIND = Kind("anole", "Anole", ANOLE_7B, False, sequence, ("text", "n_head"))
FAMILY = Family(
    KIND.name, partial(open_repository, kind=KIND), frozenset({ANOLE_7B.name}),
    lambda _, grid, length: open_dummy(KIND, grid, length), published={ANOLE_7B.name: ANOLE_7B.published},
    default=ANOLE_7B.name,
)  # fmt: skip
