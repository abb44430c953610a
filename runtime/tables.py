"""The tables that rules look tokens up in: files of a bundle, never pickles, checked when the bundle is loaded."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from .arrays import outline
from .bundle import Manifest
from .errors import CascadeError
from .rules.states import StateTable


def open_neighbours(folder: Path, manifest: Manifest) -> np.ndarray | None:
    """LANTERN's table, integers [V, K], mapped from its file; None where the bundle has none. Raises CascadeError for a
    file that is no such table."""
    if manifest.neighbours is None:
        return None
    path, codes = folder / manifest.neighbours, manifest.model.vocab_size
    try:
        with open(path, "rb") as file:
            shape, dtype = outline(file, path.stat().st_size)
        if dtype.kind not in "iu" or len(shape) != 2 or shape[0] != codes:
            raise ValueError(f"it must hold whole numbers [{codes}, K], not {dtype} {list(shape)}")
        return np.load(path, mmap_mode="r", allow_pickle=False) if math.prod(shape) else np.zeros(shape, dtype)
    except (OSError, ValueError) as error:
        raise CascadeError(f"the neighbour table {path} cannot be read ({error}): build the bundle again.") from None


def open_states(folder: Path, manifest: Manifest) -> StateTable | None:
    """CASCADE's table of states; None where the bundle has none. Raises CascadeError for a file that is no such table,
    or that of another model."""
    if manifest.states is None:
        return None
    return StateTable.load(folder / manifest.states, (manifest.model.vocab_size, manifest.model.features))


def check_tables(folder: Path, manifest: Manifest) -> None:
    """Raises CascadeError for a table that does not fit the model, or names tokens that it does not have."""
    open_states(folder, manifest)
    table = open_neighbours(folder, manifest)
    if table is not None and table.size and not (table.min() >= 0 and table.max() < len(table)):
        raise CascadeError(
            f"the neighbour table {folder / str(manifest.neighbours)} names tokens beyond the {len(table)} of the "
            "model: build the bundle again."
        )
