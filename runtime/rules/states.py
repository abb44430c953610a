"""The table of states: what each token mostly does to the target's state, for CASCADE's tau_draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from ..errors import CascadeError


@dataclass(frozen=True)
class StateTable:
    """`rows` float16 [V, D]: the mean of the target's guided, final states right behind each token, less the mean of
    all states, with length 1 (0: a token seen too rarely). `usage` float32 [V]: each token's share of all, above 0.

    Tokens with similar rows are followed by much the same, whatever else an image shows.
    """

    rows: np.ndarray
    usage: np.ndarray

    def __post_init__(self) -> None:
        fits = self.rows.ndim == 2 and self.usage.shape == self.rows.shape[:1] and self.rows.dtype == np.float16
        if not (fits and np.isfinite(self.rows).all() and np.isfinite(self.usage).all() and (self.usage > 0).all()):
            raise CascadeError(
                "a table of states must hold finite float16 rows [V, D] and a usage above 0 of each token: run "
                "`cascade-trt calibrate states` again."
            )

    def cosines(self, tokens: Sequence[int], other: int) -> np.ndarray:
        """float32 [k]: of the rows of `tokens` with the row of `other`."""
        return self.rows[list(tokens)].astype(np.float32) @ self.rows[other].astype(np.float32)

    def save(self, file: Path) -> None:
        """Writes the table as .npz."""
        np.savez(file, rows=self.rows, usage=self.usage)

    @classmethod
    def load(cls, file: Path) -> StateTable:
        """Reads what `save` wrote. Raises CascadeError for a missing or damaged file."""
        try:
            with np.load(file) as arrays:
                return cls(arrays["rows"], arrays["usage"])
        except (OSError, EOFError, BadZipFile, ValueError, KeyError, AttributeError, TypeError) as error:
            raise CascadeError(f"the table of states {file} cannot be read ({error}): make it again.") from None
