"""layout.py and the C++ headers describe the same structs."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
from kernels.cpu import SOURCES

import cascade_trt
from cascade_trt.runtime.backends.kernels.layout import ARRAYS, SIZES, Cache, Round


def test_structs_are_the_same(library: ctypes.CDLL) -> None:
    names = [*SIZES, *(array.name for array in ARRAYS)]
    assert [library.offset_of_round(i) for i in range(len(names))] == [getattr(Round, name).offset for name in names]
    assert library.offset_of_round(len(names)) == -1
    assert library.size_of_round() == ctypes.sizeof(Round)
    assert library.size_of_cache() == ctypes.sizeof(Cache)


def test_dtypes_are_those_of_the_header() -> None:
    spelt = {"u64": "uint64", "i64": "int64", "i32": "int32", "i8": "int8", "u8": "uint8", "float": "float32"}
    fields = {}
    for line in (SOURCES / "round.h").read_text().split("struct Round {")[1].split("};")[0].splitlines():
        words = line.partition("//")[0].replace("const ", "").replace(";", "").split()
        if len(words) == 2 and words[0].endswith("*"):
            fields[words[1]] = spelt[words[0][:-1]]
    assert fields == {array.name: array.dtype for array in ARRAYS}
    assert all(np.dtype(array.dtype) for array in ARRAYS)


def test_a_head_of_odd_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="9 bytes"):
        Cache.of(0, 1, 1, 1, 1, 9)


def test_the_page_has_the_same_table() -> None:
    page = (Path(cascade_trt.__file__).parent / "docs" / "kernels.md").read_text()
    lines = page.split("| array | dtype |")[1].split("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")][:4] for line in lines]
    assert rows == [
        [f"*{array.name}*" if array.optional else array.name, array.dtype, array.shape, array.writer]
        for array in ARRAYS
    ]  # fmt: skip
