"""Lumina-mGPT (arXiv 2408.02657): rows of codes with a token behind each, in a size that the prompt says."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from .. import Family
from .opening import Images, Kind, open_dummy, open_repository
from .presets import LUMINA_7B_768
from .sequence import Sequence, known_sides, lumina_sequence, lumina_size
from .vocabulary import Vocabulary


def sequence(vocabulary: Vocabulary, images: Images) -> Sequence:
    """The codes of the size that is given, or that the folder's name says."""
    sides = known_sides(vocabulary, images.pixels)
    width, height = lumina_size(images.size, images.folder or Path(LUMINA_7B_768.name), sides)
    return lumina_sequence(vocabulary, width, height, images.pixels)


KIND = Kind("lumina-mgpt", "Lumina-mGPT", LUMINA_7B_768, True, sequence, ("text", "n_head", "grid"))
FAMILY = Family(
    KIND.name, partial(open_repository, kind=KIND), frozenset({LUMINA_7B_768.name}),
    lambda _, grid, length: open_dummy(KIND, grid, length), published={LUMINA_7B_768.name: LUMINA_7B_768.published},
    default=LUMINA_7B_768.name, has_sizes=True,
)  # fmt: skip
