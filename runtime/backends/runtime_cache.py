"""Kernels that TensorRT-RTX compiled when calls first ran, kept on disk, so that the next process finds them.

Each plan has a file in the user's cache: `cascade-trt/tensorrt-rtx/` below `$XDG_CACHE_HOME` (~/.cache), named by the
plan's digest, the GPU, and the library's version. It holds a sha256 and then what TensorRT writes; TensorRT itself
compares driver and GPU when it reads it. Whatever is wrong with a file costs time only: it is told and written anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import warnings
import weakref
from pathlib import Path
from typing import Any

from ..engine_info import PlanInfo
from ..errors import CascadeError, CascadeWarning
from ..machine import cache_folder
from ..staging import write_file
from .device import CudaDevice

_FOLDER = "tensorrt-rtx"
_DIGEST = 32  # bytes of sha256 before the content
_LARGEST = 1 << 30  # bytes; what is larger was not written here


class RuntimeCaches:
    """Those of a backend's engines on `device`, for `version` of the library."""

    def __init__(self, device: CudaDevice, version: str) -> None:
        self.device, self._version = device, version
        self._open: weakref.WeakSet[RuntimeCache] = weakref.WeakSet()
        self._images = 0  # that were decoded
        self._told: set[bool] = set()  # whether of reading (False) and of writing

    def open(self, owner: object, cache: Any, plan: PlanInfo) -> None:
        """Fills TensorRT's new `cache` from the plan's file. What it holds is written after the first images,
        and when `owner` is gone or the process ends."""
        folder = cache_folder()
        if folder is None:  # nowhere to keep it
            return
        of = [plan.sha256, self.device.name, self.device.capability, self._version]
        name = hashlib.sha256(json.dumps(of).encode()).hexdigest()[:32]
        kept = RuntimeCache(self, cache, folder / _FOLDER / f"{name}.cache")
        self._open.add(kept)
        weakref.finalize(owner, kept.write)

    def image_done(self) -> None:
        """Writes them after the first images, the second, the fourth, ...: by then calls of every kind have run, and to
        look whether a cache has grown takes time."""
        self._images += 1
        if self._images & (self._images - 1) == 0:
            for kept in list(self._open):
                kept.write()

    def warn(self, sentence: str, writing: bool = False) -> None:
        """Once for all files: what is wrong with one is as a rule wrong with all, such as that the driver is newer."""
        if writing not in self._told:
            self._told.add(writing)
            warnings.warn(sentence, CascadeWarning, stacklevel=2)


class RuntimeCache:
    """TensorRT's `cache` of one engine, and its file."""

    def __init__(self, caches: RuntimeCaches, cache: Any, file: Path) -> None:
        self._caches, self._cache, self._file = caches, cache, file
        self._size = max(self._read(), len(self._content()))  # bytes that are no news

    def write(self) -> None:
        """Where it has grown. Raises nothing."""
        content = self._content()
        if len(content) <= self._size:
            return
        self._size = len(content)
        try:
            write_file(self._file, hashlib.sha256(content).digest() + content)
        except CascadeError as error:
            what, again = str(error).partition(": ")[0], "so each process compiles TensorRT-RTX's kernels again"
            self._caches.warn(f"{what}, {again}: set XDG_CACHE_HOME to a folder of yours.", writing=True)

    def _content(self) -> bytes:
        """What TensorRT would write now; nothing where it refuses to."""
        try:
            self._caches.device.make_current()
        except CascadeError:  # the device is lost, which was told
            return b""
        content = self._cache.serialize()
        return b"" if content is None else bytes(content)

    def _read(self) -> int:
        """Takes the file over; how many bytes of it TensorRT took."""
        what = f"{self._file}, with kernels of TensorRT-RTX,"
        again = "they are compiled again, and written in its place"
        try:
            content = _regular(self._file)
        except (FileNotFoundError, NotADirectoryError):
            return 0
        except OSError as error:
            self._caches.warn(f"{what} cannot be read ({error.strerror}): {again}.")
            return 0
        digest, content = content[:_DIGEST], content[_DIGEST:]
        self._caches.device.make_current()
        if digest == hashlib.sha256(content).digest() and self._cache.deserialize(content):
            return len(content)
        self._caches.warn(f"{what} is damaged or of another driver: {again}.")
        return 0


def _regular(file: Path) -> bytes:
    """The content of a file, never of a pipe or a device. Raises OSError."""
    found = os.stat(file)
    if not stat.S_ISREG(found.st_mode) or found.st_size > _LARGEST:
        raise OSError(0, "it is no file that was written here")
    return file.read_bytes()
