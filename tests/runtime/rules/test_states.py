"""The table of states as a file, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cascade_trt.runtime.errors import CascadeError
from cascade_trt.runtime.rules.states import StateTable

ROWS = np.array([[1, 0], [0.6, 0.8], [0, 0]], np.float16)
USAGE = np.array([0.5, 0.3, 0.2], np.float32)


def test_it_comes_back_from_its_file(tmp_path: Path) -> None:
    StateTable(ROWS, USAGE).save(tmp_path / "states.npz")
    table = StateTable.load(tmp_path / "states.npz")
    np.testing.assert_array_equal(table.rows, ROWS)
    np.testing.assert_array_equal(table.usage, USAGE)
    np.testing.assert_allclose(table.cosines([0, 1, 2], 1), [0.6, 1.0, 0.0], atol=1e-3)


@pytest.mark.parametrize(
    ("rows", "usage"),
    [
        (ROWS.astype(np.float32), USAGE),
        (ROWS, USAGE[:2]),
        (ROWS, USAGE * 0),
        (np.where(ROWS == 1, np.nan, ROWS).astype(np.float16), USAGE),
    ],
)
def test_other_arrays_are_refused(rows: np.ndarray, usage: np.ndarray) -> None:
    with pytest.raises(CascadeError, match="calibrate states"):
        StateTable(rows, usage)


def test_a_damaged_file_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "states.npz"
    with pytest.raises(CascadeError, match="cannot be read"):
        StateTable.load(file)
    for content in (b"", b"no table"):
        file.write_bytes(content)
        with pytest.raises(CascadeError, match="cannot be read"):
            StateTable.load(file)
    np.savez(file, rows=ROWS)
    with pytest.raises(CascadeError, match="cannot be read"):
        StateTable.load(file)
    np.save(tmp_path / "plain.npy", ROWS)
    with pytest.raises(CascadeError, match="cannot be read"):
        StateTable.load(tmp_path / "plain.npy")
