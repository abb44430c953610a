"""Tables: within the terminal's width, words whole, every cell shown."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from cascade_trt.commands.tables import Rows

WORD = st.text("abc_=.%図", min_size=1, max_size=14)
CELL = st.lists(WORD, max_size=4).map(" ".join)


def lines(table: Rows, width: int = 80) -> list[str]:
    shown = io.StringIO()
    table.print(Console(file=shown, width=width, highlight=False))
    return shown.getvalue().splitlines()


def words(texts: list[str]) -> list[str]:
    return sorted({word for text in texts for word in re.split(r"[\s│┃]+", text) if re.search("[a-z%図]", word)})


@given(st.integers(2, 14).flatmap(lambda n: st.lists(st.lists(CELL, min_size=n, max_size=n), min_size=1, max_size=4)),
       st.integers(1, 2))  # fmt: skip
def test_words_stay_whole_within_80_columns(rows: list[list[str]], keys: int) -> None:
    table = Rows([f"c{'o' * (i % 9)}" for i in range(len(rows[0]))], keys=keys)
    for row in rows:
        table.add(*row)
    shown = lines(table)
    assert max(map(cell_len, shown)) <= 80
    assert words(shown) == words([*table.columns, *(cell for row in rows for cell in row)])


def test_a_wide_table_goes_on_below() -> None:
    table = Rows(("rule", "tree", *(f"column_{i}" for i in range(12))), "[a title]", keys=2)
    table.add("cascade:tau_pos=0.9,tau_seq=off,children=coupled", "mixed_24", *(f"[{i}]" for i in range(12)))
    shown = lines(table)
    assert shown[0].strip() == "[a title]"
    assert sum("rule" in line and "tree" in line for line in shown) > 1
    assert all(any(f"[{i}]" in line for line in shown) for i in range(12))
    assert any("tau_pos=0.9," in line for line in shown)  # long words are parted behind commas
    assert len([line for line in lines(table, 250) if "rule" in line]) == 1


@pytest.mark.parametrize("width", [20, 40])
def test_nothing_is_left_out_on_a_narrow_terminal(width: int) -> None:
    table = Rows(("a", "b"))
    table.add("x" * 30, "y" * 30)
    shown = "".join(lines(table, width))
    assert (shown.count("x"), shown.count("y")) == (30, 30)
