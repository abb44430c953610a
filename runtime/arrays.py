"""numpy's files by their headers: nothing gets memory on its own word, and no pickle runs."""

from __future__ import annotations

import math
import tokenize
from typing import IO

import numpy as np

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, SyntaxError, RecursionError, MemoryError)


def outline(file: IO[bytes], size: int) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of the array in a .npy file of `size` bytes, which is open at its start.

    Raises ValueError for what is none, for objects, and for data of another size than the header says.
    """
    try:
        shape, _, dtype = _HEADERS[np.lib.format.read_magic(file)](file)
        expected = math.prod(shape) * dtype.itemsize
    except (*_UNREADABLE, tokenize.TokenError):  # numpy has a header read as Python
        raise ValueError("it does not begin as an array") from None
    if dtype.hasobject or min(shape, default=0) < 0:
        raise ValueError("it is no array of numbers")
    if expected != size - file.tell():
        raise ValueError(f"it is not of the size that {dtype} {list(shape)} has")
    return shape, dtype
