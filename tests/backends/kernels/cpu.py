"""The kernels' own source, compiled for the CPU (shim.h), and arrays for them between guards."""

from __future__ import annotations

import ctypes
import math
import subprocess
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cascade_trt.runtime.backends import kernels
from cascade_trt.runtime.backends.kernels.layout import ARRAYS, THREADS, Cache, Round, grid, letters

SOURCES = Path(kernels.__file__).parent
HERE = Path(__file__).parent
FLAGS = (
    "-O2", "-g", "-std=c++17", "-fPIC", "-shared", "-ffp-contract=off", "-fno-strict-aliasing",
    "-Wl,-Bsymbolic",  # the C library has an `advance`, too
    "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas",
)  # fmt: skip
UNDEFINED = "-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"
_GUARD = 256  # bytes on either side of an array


def compile_library(folder: Path) -> ctypes.CDLL:
    """Compiles shim.cpp with the kernels in it."""
    out = folder / "kernels.so"
    files = HERE / "shim.cpp", HERE / "watch.cpp"
    subprocess.run(["g++", *FLAGS, *UNDEFINED, f"-I{SOURCES}", *files, "-o", out], check=True)
    return ctypes.CDLL(str(out))


class WatchedLibrary:
    """The kernels of `sources`, compiled so that every access is looked at (watch.cpp). Launches (`run_place`, ...)
    fail where two threads race, or one reads or writes beside what is known."""

    def __init__(self, folder: Path, sources: Path = SOURCES) -> None:
        compiled, self._file = folder / "shim.o", folder / "watched.so"
        watching = "-fsanitize=thread", "-c", f"-I{sources}", HERE / "shim.cpp", "-o", compiled
        for command in (watching, (compiled, HERE / "watch.cpp", "-o", self._file)):
            subprocess.run(["g++", *FLAGS, *command], check=True)
        self._library = ctypes.CDLL(str(self._file))

    def know(self, *arrays: np.ndarray) -> None:
        """Kernels may read and write these alone from now on; without any, everything."""
        self._library.forget_arrays()
        for array in arrays:
            self._library.know_array(ctypes.c_void_p(array.ctypes.data), ctypes.c_long(array.nbytes))

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._library, name)
        return partial(self._launch, name, function) if name.startswith("run_") else function

    def _launch(self, name: str, function: Any, *arguments: Any) -> None:
        function(*arguments)
        text = ctypes.create_string_buffer(200)
        count = self._library.take_found(text)
        assert not count, f"{name}: {self._line(text.value.decode())} ({count} in all)"

    def _line(self, found: str) -> str:
        """What was found, with its place in the source."""
        said, _, code = found.rpartition(", code ")
        line = subprocess.run(["addr2line", "-e", self._file, "-s", code], capture_output=True, text=True, check=True)
        return f"{said}, {line.stdout.strip()}"


class Guarded:
    """An array, zeros at first, between guards that say whether anybody wrote beside it."""

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        self._size, self._bytes = size, np.full(size + 2 * _GUARD, 0xA5, np.uint8)
        self._bytes[_GUARD : _GUARD + size] = 0
        self.array = self._bytes[_GUARD : _GUARD + size].view(dtype).reshape(shape)

    def check(self) -> bool:
        return bool((self._bytes[:_GUARD] == 0xA5).all() and (self._bytes[_GUARD + self._size :] == 0xA5).all())


class Device:
    """Arrays of one round (`device.done`, ...) and the kernels on them. `without` names arrays that are not there,
    `given` holds those that are somebody else's; all others are made."""

    def __init__(
        self, library: ctypes.CDLL, without: tuple[str, ...] = (), given: Mapping[str, np.ndarray] | None = None,
        **sizes: int,
    ) -> None:  # fmt: skip
        self._library, self.sizes, self.struct = library, sizes, Round(**sizes)
        known = letters(sizes)
        self._arrays: dict[str, Guarded] = {}
        self._given = dict(given or {})
        for array in ARRAYS:
            if array.name in without:
                continue
            shape = array.sizes(known)
            if array.name == "parents" and sizes["tree_stride"]:
                shape = known["P"], known["N"]
            if array.name in self._given:
                found = self._given[array.name]
                assert (found.shape, found.dtype, found.flags.c_contiguous) == (shape, array.dtype, True), array.name
            else:
                guarded = self._arrays[array.name] = Guarded(shape, array.dtype)
                found = guarded.array
            setattr(self.struct, array.name, found.ctypes.data)

    def __getattr__(self, name: str) -> np.ndarray:
        if name.startswith("_") or not (name in self._given or name in self._arrays):
            raise AttributeError(name)
        return self._given[name] if name in self._given else self._arrays[name].array

    def run(self, kernel: str, threads: int | None = None, *more: ctypes.Structure) -> None:
        """Runs a kernel as a GPU would, or with another number of threads; fails if it wrote beside an array."""
        threads = threads or THREADS[kernel]
        blocks = grid(kernel, self.sizes, threads, *(struct for struct in more if isinstance(struct, Cache)))
        arguments = [ctypes.byref(self.struct), *map(ctypes.byref, more)]
        getattr(self._library, f"run_{kernel}")(*arguments, (ctypes.c_int * 3)(*blocks), threads)
        broken = [name for name, array in self._arrays.items() if not array.check()]
        assert not broken, f"{kernel} wrote beside {broken}"

    @property
    def whole(self) -> list[np.ndarray]:
        """All arrays."""
        return [*self._given.values(), *(guarded.array for guarded in self._arrays.values())]

    def commit(self, block: np.ndarray, threads: int | None = None) -> None:
        """On a cache [layers, 2, rows, heads, slots, head_dim]."""
        layers, _, rows, heads, slots, dim = block.shape
        cache = Cache.of(block.ctypes.data, layers, rows, heads, slots, dim * block.itemsize)
        self.run("commit", threads, cache)
