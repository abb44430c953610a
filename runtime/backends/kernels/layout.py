"""The arrays that the kernels of a round share: names, shapes, dtypes, and the structs that carry their addresses.

`round.h`, `commit.cu` and `rules.h` hold the same structs in C++; a test compares offsets. Shapes are in letters:
P slots at the front, G rows of a slot, R = P G rows, N nodes, L = depth + 1 levels, V codes, S positions of the plan,
D drafted nodes, M slots of the drafter's cache, C columns of the tree mask, W the record's numbers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass

RECORD_HEAD = 3  # numbers of a record before its tokens: tokens decided before the round, accepted ones, flags
NOT_FINITE = 1  # a flag


@dataclass(frozen=True)
class Array:
    """`writer` is who fills it: `fill` when an image comes into the slot, `tree` when a lane is made, a graph or a
    kernel in each round. With `optional` the address may be 0 where a bundle or a tree has no use for it."""

    name: str
    dtype: str
    shape: str
    writer: str
    optional: bool = False

    def sizes(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape in numbers; `sizes` has one for each letter of `letters`."""
        return tuple(int(part) if part.isdigit() else sizes[part] for part in self.shape.split())


SIZES = ("slots", "rows", "nodes", "levels", "vocab", "length", "prefix", "pair_slots", "drafted", "tree_stride",
         "mask_columns")  # fmt: skip
ARRAYS = (
    Array("seed", "uint64", "P", "fill"),
    Array("stream", "int32", "P", "fill"),
    Array("rule", "int32", "P", "fill"),
    Array("end", "int32", "P", "fill, advance"),
    Array("first", "int64", "R", "fill"),
    Array("plan_forced", "int32", "S", "tree"),
    Array("plan_above", "int32", "S", "tree"),
    Array("plan_left", "int32", "S", "tree"),
    Array("parents", "int64", "N", "tree; P N: draft"),
    Array("depths", "int64", "P N", "tree; draft"),
    Array("guessed", "int32", "N", "tree", optional=True),
    Array("continuations", "int32", "N L-1", "tree", optional=True),
    Array("drafted_nodes", "int32", "D", "tree", optional=True),
    Array("done", "int64", "P", "fill, advance"),
    Array("tokens", "int32", "P S", "fill, advance"),
    Array("guesses", "int32", "P 2 S", "fill, advance"),
    Array("read", "int64", "P", "fill, pairs"),
    Array("noise", "float32", "P L V", "noise"),
    Array("forced", "int64", "P L", "noise", optional=True),
    Array("drafted_tokens", "int64", "P D", "draft", optional=True),
    Array("tree_tokens", "int64", "P N", "draft, place"),
    Array("origins", "int8", "P N", "tree, place"),
    Array("embed_ids", "int64", "R N", "place", optional=True),
    Array("positions", "int64", "R N", "place"),
    Array("write_index", "int64", "R", "place"),
    Array("ancestors", "uint8", "P N N", "draft", optional=True),
    Array("tree_mask", "uint8", "R N C", "place", optional=True),
    Array("drawn", "int64", "P N", "target"),
    Array("runner_up", "int64", "P N", "target", optional=True),
    Array("path", "int64", "P L", "walk"),
    Array("path_tokens", "int64", "P L", "walk"),
    Array("count", "int64", "P", "walk"),
    Array("record", "int32", "P W", "walk"),
    Array("pair_positions", "int64", "R L", "pairs"),
    Array("pair_write_index", "int64", "R", "pairs"),
    Array("pair_mask", "uint8", "R M", "fill, pairs"),
)


def letters(sizes: Mapping[str, int]) -> dict[str, int]:
    """The letters of shapes, from the numbers that SIZES names."""
    levels = sizes["levels"]
    return {
        "P": sizes["slots"], "G": sizes["rows"], "R": sizes["slots"] * sizes["rows"], "N": sizes["nodes"], "L": levels,
        "L-1": levels - 1, "V": sizes["vocab"], "S": sizes["length"], "D": sizes["drafted"], "M": sizes["pair_slots"],
        "C": sizes["mask_columns"], "W": RECORD_HEAD + 3 * levels,
    }  # fmt: skip


class Round(ctypes.Structure):
    """The argument of every kernel, by value: sizes and device addresses."""

    _fields_ = [(name, ctypes.c_int32) for name in SIZES] + [(array.name, ctypes.c_void_p) for array in ARRAYS]


class Cache(ctypes.Structure):
    """The second argument of `commit`: a cache block [layers, 2, rows, heads, slots, head_dim], 16 bytes aligned."""

    _fields_ = [("block", ctypes.c_void_p)] + [
        (name, ctypes.c_int32) for name in ("planes", "rows", "heads", "slots", "units", "unit")
    ]

    @classmethod
    def of(cls, address: int, layers: int, rows: int, heads: int, slots: int, vector: int) -> Cache:
        """`vector` is the bytes of one head's numbers at one slot. Raises ValueError for an odd number of them."""
        unit = next((size for size in (16, 8, 4, 2) if vector % size == 0), 0)
        if not unit:
            raise ValueError(f"a head of {vector} bytes has no whole numbers of 2 bytes")
        return cls(address, 2 * layers, rows, heads, slots, vector // unit, unit)


THREADS = {
    "noise": 128, "place": 64, "walk": 1, "walk_by_rule": 256, "commit": 256, "advance": 1, "pairs": 1,
}  # fmt: skip
"""The kernels, and how many threads a block has; `walk_by_rule` takes at most 256, the others any number."""


def grid(kernel: str, sizes: Mapping[str, int], threads: int, cache: Cache | None = None) -> tuple[int, int, int]:
    """The blocks of a launch with `threads` threads each. `cache` is that of `commit`."""
    slots = sizes["slots"]
    if kernel == "noise":
        return -(-sizes["vocab"] // (8 * threads)), sizes["levels"], slots
    if kernel in ("place", "walk_by_rule"):
        return slots, 1, 1
    count = slots
    if kernel == "commit":
        assert cache is not None  # the caller's cache
        count *= cache.planes * sizes["rows"] * cache.heads * cache.units
    return -(-count // threads), 1, 1
