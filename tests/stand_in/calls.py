"""What the stand-in for CUDA noted down in this process. The stand-in shows placement, the order of calls, addresses
and copies. It shows nothing about numbers: its kernels do nothing."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

# In the order of `enum kind` in stand_in.h.
KINDS = (
    "allocate", "free", "pin", "unpin", "upload", "download", "copy", "zero", "launch", "product", "synchronize",
    "record", "wait", "capture", "graph", "host function",
)  # fmt: skip


class _Call(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_int), ("captured", ctypes.c_int), ("to", ctypes.c_void_p), ("source", ctypes.c_void_p),
        ("stream", ctypes.c_void_p), ("size", ctypes.c_size_t), ("name", ctypes.c_char * 48),
    )  # fmt: skip


@dataclass(frozen=True)
class Call:
    """`captured`: it became a part of a graph and did not run. `name` is a kernel's where the stand-in knows it."""

    kind: str
    captured: bool
    to: int
    source: int
    stream: int
    size: int
    name: str


def forget() -> None:
    """Calls from now on are what `calls` returns."""
    _library().stand_in_forget()


def calls(*kinds: str) -> list[Call]:
    """All calls since `forget`, or those of some kinds."""
    library = _library()
    notes = ctypes.cast(library.stand_in_notes(), ctypes.POINTER(_Call))
    taken = [notes[index] for index in range(library.stand_in_noted())]
    made = [
        Call(KINDS[c.kind], bool(c.captured), c.to or 0, c.source or 0, c.stream or 0, c.size, c.name.decode())
        for c in taken
    ]
    return [call for call in made if not kinds or call.kind in kinds]


def _library() -> ctypes.CDLL:
    library = ctypes.CDLL("libcuda.so.1")
    library.stand_in_notes.restype, library.stand_in_noted.restype = ctypes.c_void_p, ctypes.c_size_t
    return library
