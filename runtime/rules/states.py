"""The table of states: what each token mostly does to the target's state, for `swap`."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import numpy as np

from ..arrays import outline
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
    def load(cls, file: Path, shape: tuple[int, int] | None = None) -> StateTable:
        """Reads what `save` wrote. Raises CascadeError for a missing or damaged file, and for a table of another
        `shape` (V, D), before there is memory for it."""
        try:
            with ZipFile(file) as archive:
                found, dtype = _outline(archive, "rows")
                shares, kind = _outline(archive, "usage")
            if shape is not None and found != shape:
                raise CascadeError(
                    f"the table of states {file} belongs to another model: its rows must have the shape {shape}, not "
                    f"{found}."
                )
            if (dtype, kind, shares) != (np.float16, np.float32, found[:1]):
                raise ValueError(f"{dtype} rows {found} and {kind} usage {shares} are no such table")
            with np.load(file, allow_pickle=False) as arrays:
                return cls(arrays["rows"], arrays["usage"])
        except _UNREADABLE as error:
            raise CascadeError(f"the table of states {file} cannot be read ({error}): make it again.") from None


# What zipfile and numpy raise; an encrypted archive's is a RuntimeError.
_UNREADABLE = (OSError, EOFError, BadZipFile, zlib.error, ValueError, KeyError, RuntimeError)


def _outline(archive: ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of an array in the archive."""
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as member:
        return outline(member, info.file_size)
