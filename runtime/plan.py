"""The sequence of tokens that makes an image: rows of codes, and the tokens that the sequence itself forces."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from .errors import CascadeError

LARGEST_SIDE = 128  # tokens; published models reach 48; the VQ decoder's attention grows with the fourth power


@dataclass(frozen=True)
class TokenPlan:
    """`rows` x `columns` codes of `codes` kinds, in raster order, and what stands between them.

    Token ids 0 .. codes - 1 are the image's codes; the syntax tokens follow them without a gap. `begin` are ids
    that the sequence forces before the first code, `row_end` is the id that it forces behind each row of codes.
    Position d of the sequence is the d-th token that is drawn or forced; the last is the last code.
    Raises CascadeError for numbers that make no sequence.
    """

    rows: int
    columns: int
    codes: int
    row_end: int | None = None
    begin: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("rows", "columns"):
            if not 1 <= getattr(self, name) <= LARGEST_SIDE:
                raise CascadeError(
                    f"the token plan's {name} must be a whole number from 1 to {LARGEST_SIDE}, not "
                    f"{getattr(self, name)}: it counts tokens, 16 for 256 px."
                )
        if self.codes < 1:
            raise CascadeError(f"a token plan needs at least one code, not {self.codes}.")
        syntax = self._syntax
        if syntax != set(range(self.codes, self.codes + len(syntax))):
            raise CascadeError(
                f"the syntax tokens {sorted(syntax)} of a token plan must follow its {self.codes} codes without a gap."
            )

    @property
    def _syntax(self) -> set[int]:
        return {*self.begin, *([] if self.row_end is None else [self.row_end])}

    @property
    def tokens(self) -> int:
        """Rows of the embedding table: the codes and the distinct syntax tokens."""
        return self.codes + len(self._syntax)

    @property
    def image_tokens(self) -> int:
        return self.rows * self.columns

    @property
    def length(self) -> int:
        """Positions of the sequence, up to the last code: what is forced behind it need not be computed."""
        return len(self.begin) + self.rows * self._stride - (self._stride - self.columns)

    @property
    def _stride(self) -> int:
        """Positions from the start of a row to the start of the next."""
        return self.columns + (self.row_end is not None)

    @property
    def codes_of_rounds(self) -> int:
        """Codes that decoding rounds draw: all, but for one that the prefill draws."""
        return self.image_tokens - int(self.forced[0] < 0)

    @cached_property
    def has_forced(self) -> bool:
        return bool(np.any(self.forced >= 0))

    @cached_property
    def forced(self) -> np.ndarray:
        """int64 [length]: the token that the sequence forces at each position, -1 where it is drawn."""
        forced = np.full(self.length, -1, np.int64)
        forced[: len(self.begin)] = self.begin
        if self.row_end is not None:
            forced[len(self.begin) + self.columns :: self._stride] = self.row_end
        forced.flags.writeable = False
        return forced

    @cached_property
    def row_starts(self) -> np.ndarray:
        """bool [length]: whether a position holds the first code of a row."""
        starts = np.zeros(self.length, bool)
        starts[self.code_positions[:: self.columns]] = True
        starts.flags.writeable = False
        return starts

    @cached_property
    def code_positions(self) -> np.ndarray:
        """int64 [rows * columns]: the position in the sequence of each code of the image, in raster order."""
        rows, columns = np.divmod(np.arange(self.image_tokens), self.columns)
        positions = (len(self.begin) + rows * self._stride + columns).astype(np.int64)
        positions.flags.writeable = False
        return positions

    @cached_property
    def left(self) -> np.ndarray:
        """int64 [length]: the position of the code before each position's own, in raster order; -1 where none is."""
        return self._neighbours(1)

    @cached_property
    def above(self) -> np.ndarray:
        """int64 [length]: the position of the code above each position's own; -1 in the first row."""
        return self._neighbours(self.columns)

    def _neighbours(self, back: int) -> np.ndarray:
        """The code `back` codes earlier; -1 at forced positions."""
        positions = np.full(self.length, -1, np.int64)
        positions[self.code_positions[back:]] = self.code_positions[: self.image_tokens - back]
        positions.flags.writeable = False
        return positions
