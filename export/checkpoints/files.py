"""Files that hold tensors: PyTorch's zip archives and older pickles, safetensors, folders of either.

What a file is, its first bytes say, not its name. Nothing here loads a model: a tensor is mapped when it is asked for.
"""

from __future__ import annotations

import io
import itertools
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...runtime.errors import CascadeError
from .pickles import MOST_BYTES, Damaged, Described, RunsCode, Storage, dtype_of, read_pickle
from .reading import read_json, refuse_pointer, spelt

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_LONGEST_HEADER = 16 << 20  # of safetensors; that of GPT-3B has 40 kB
_CHUNK = 1 << 20
_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_OTHERS = {
    b"GGUF": "is a GGUF file of quantised weights: give fp32, fp16 or bf16 as .safetensors or .pt.",
    b"\x1f\x8b": "is packed with gzip: unpack it first.",
    b"\x89HDF": "is an HDF5 file: give .safetensors or .pt.",
}
_SAFETENSORS_KINDS = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool", "I8": "int8",
    "I16": "int16", "I32": "int32", "I64": "int64", "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "C64": "complex64",
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """A tensor of a file. `kind` is its dtype, or what it is instead of a plain tensor ("sparse", "meta")."""

    kind: str
    shape: tuple[int, ...]
    load: Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Content:
    """What a file holds: `tree` has `Stored` tensors in dicts (and other values), which may hold themselves."""

    path: Path
    tree: Any


def read_file(path: Path, what: str) -> Content:
    """Opens one file. Raises CascadeError for what is no such file, damaged, or would run code."""
    where = f"the {what} {path}"
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise CascadeError(f"{where} is not a file: check the path.")
        with open(path, "rb") as file:
            head = file.read(512)
        refuse_pointer(path, head)
        for magic, sentence in _OTHERS.items():
            if head.startswith(magic):
                raise CascadeError(f"{where} {sentence}")
        if head.startswith(_ZIP):
            return Content(path, _read_zip(path))
        if _is_safetensors(head):  # before pickles: the length of its header may begin like one
            return Content(path, _read_safetensors(path))
        if head.startswith(_PICKLE):
            return Content(path, _read_legacy(path))
        raise Damaged("it begins like no such file")
    except RunsCode as error:
        raise CascadeError(
            f"{where} wants to run code when it is opened ({spelt(str(error))}), which is refused: "
            "convert it to safetensors where you trust it."
        ) from None
    except PermissionError:
        raise CascadeError(f"{where} may not be read: change its permissions.") from None
    except FileNotFoundError:
        raise CascadeError(f"{where} does not exist: check the path.") from None
    except OSError as error:
        raise CascadeError(f"{where} cannot be read ({error.strerror or error}).") from None
    except Damaged as error:
        raise CascadeError(
            f"{where} is truncated, damaged or not a checkpoint ({error}): download it again."
        ) from None


def _is_safetensors(head: bytes) -> bool:
    length = int.from_bytes(head[:8], "little")
    return 2 <= length <= _LONGEST_HEADER and head[8:9] == b"{"


def _read_safetensors(path: Path) -> dict[str, Stored]:
    from safetensors import SafetensorError, safe_open

    def stored(name: str) -> Stored:
        part = handle.get_slice(name)
        kind = str(part.get_dtype())
        return Stored(
            _SAFETENSORS_KINDS.get(kind, kind.lower()), tuple(part.get_shape()), lambda: handle.get_tensor(name)
        )

    try:
        handle = safe_open(path, framework="pt", device="cpu")
        return {name: stored(name) for name in handle.keys()}  # noqa: SIM118 - a handle is not a mapping
    except SafetensorError as error:
        raise Damaged(spelt(str(error))) from None


@dataclass(frozen=True)
class _Place:
    """Where bytes lie in a file, and their CRC-32 where the file says it."""

    start: int
    bytes: int
    crc: int | None = None


@dataclass
class _Mapped:
    """The storages of a file by their keys, mapped when the first of them is read."""

    path: Path
    places: dict[str, _Place] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._map: np.ndarray | None = None
        self._sound: set[str] = set()

    def check(self, storages: Mapping[str, Storage]) -> None:
        """Raises Damaged unless the file holds every storage whole."""
        for key, storage in storages.items():
            held = self.places[key].bytes if key in self.places else 0
            if held != storage.bytes:
                raise Damaged(f"storage {spelt(key)} has {held} bytes in the file, not {storage.bytes}")

    def tree(self, value: Any) -> Any:
        """The value, with a `Stored` in place of each tensor that a dict of it holds."""
        left, seen = [value], set()
        while left:
            found = left.pop()
            if not isinstance(found, dict) or id(found) in seen:
                continue
            seen.add(id(found))
            for key, entry in list(found.items()):
                if isinstance(entry, Described):
                    found[key] = self._stored(entry)
                else:
                    left.append(entry)
        return value

    def _stored(self, tensor: Described) -> Stored:
        return Stored(tensor.kind, tensor.shape, lambda: self._load(tensor))

    def _load(self, tensor: Described) -> torch.Tensor:
        if tensor.storage is None:
            raise CascadeError(f"{self.path} holds {tensor.kind} tensors: give plain ones.")
        place, dtype = self.places[tensor.storage.key], dtype_of(tensor.kind)
        if not place.bytes:
            return torch.empty(tensor.shape, dtype=dtype)
        self._check_crc(tensor.storage.key, place)
        if self._map is None:
            self._map = np.asarray(np.memmap(self.path, np.uint8, "c"))
        data = self._map[place.start : place.start + place.bytes]
        if place.start % dtype.itemsize:
            data = data.copy()
        return torch.from_numpy(data).view(dtype).as_strided(tensor.shape, tensor.stride, tensor.offset)

    def _check_crc(self, key: str, place: _Place) -> None:
        """Raises CascadeError where the bytes are not those that were written. They are read, not mapped: so they
        take no memory."""
        if place.crc is None or key in self._sound:
            return
        found, left = 0, place.bytes
        with open(self.path, "rb") as file:
            file.seek(place.start)
            while left and (chunk := file.read(min(left, _CHUNK))):
                found, left = zlib.crc32(chunk, found), left - len(chunk)
        if left or found != place.crc:
            raise CascadeError(f"{self.path} is damaged (bytes of storage {spelt(key)} changed): download it again.")
        self._sound.add(key)


def _read_zip(path: Path) -> Any:
    """PyTorch's archive since 1.6: a pickle, and each storage as a record of its own, not compressed."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except Exception:  # damaged archives raise anything: BadZipFile, struct.error, UnicodeDecodeError, ...
        raise Damaged("its zip directory is damaged") from None
    places, size = {}, path.stat().st_size
    starts = [*sorted(record.header_offset for record in records), size]
    ends = dict(itertools.pairwise(starts))
    with open(path, "rb") as file:
        for record in records:
            name = record.orig_filename
            if name in places:
                raise Damaged(f"it has two records {spelt(name)}")
            places[name] = _record(file, record, ends[record.header_offset])
        roots = [name.removesuffix("data.pkl") for name in places if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise Damaged("it is a zip archive without a data.pkl")
        root = roots[0]
        if f"{root}constants.pkl" in places:
            raise RunsCode("a TorchScript program")
        if places[f"{root}data.pkl"].bytes > MOST_BYTES:
            raise Damaged("its pickle is longer than that of any checkpoint")
        order = _bytes(file, places[f"{root}byteorder"]) if f"{root}byteorder" in places else b"little"
        if order != b"little":
            raise Damaged(f"its byte order is {spelt(order.decode(errors='replace'))}")
        value, storages = read_pickle(io.BytesIO(_bytes(file, places[f"{root}data.pkl"])))
    folder = f"{root}data/"
    mapped = _Mapped(path, {name.removeprefix(folder): at for name, at in places.items() if name.startswith(folder)})
    mapped.check(storages)
    return mapped.tree(value)


def _record(file: io.BufferedReader, record: zipfile.ZipInfo, end: int) -> _Place:
    """Where the bytes of a record lie: before `end`, where the next one begins."""
    file.seek(record.header_offset)
    header = file.read(_LOCAL_HEADER.size)
    if len(header) < _LOCAL_HEADER.size or not header.startswith(_ZIP):
        raise Damaged("its zip directory is damaged")
    name_bytes, extra_bytes = _LOCAL_HEADER.unpack(header)[-2:]
    name = file.read(name_bytes)
    place = _Place(file.tell() + extra_bytes, record.file_size, record.CRC or None)  # PyTorch may write 0: no CRC
    if record.flag_bits & 1 or record.compress_type != zipfile.ZIP_STORED or record.compress_size != record.file_size:
        raise Damaged(f"its record {spelt(record.orig_filename)} is compressed or encrypted")
    if name != record.orig_filename.encode("utf-8" if record.flag_bits & 0x800 else "cp437") or (
        place.start + place.bytes > end
    ):
        raise Damaged(f"its record {spelt(record.orig_filename)} is not where the directory says")
    return place


def _bytes(file: io.BufferedReader, place: _Place) -> bytes:
    if place.bytes > MOST_BYTES:
        raise Damaged("it has a record of unusual size")
    file.seek(place.start)
    data = file.read(place.bytes)
    if place.crc is not None and zlib.crc32(data) != place.crc:
        raise Damaged("its bytes changed")
    return data


def _read_legacy(path: Path) -> Any:
    """PyTorch's form before 1.6: five pickles in turn, then each storage behind its number of elements."""
    with open(path, "rb") as file:
        head = io.BytesIO(file.read(MOST_BYTES))
        magic, protocol, system = (read_pickle(head)[0] for _ in range(3))
        if magic != _LEGACY_MAGIC or protocol != _LEGACY_PROTOCOL:
            raise Damaged("it is a pickle, but not one of PyTorch")
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise Damaged("its byte order is big")
        value, storages = read_pickle(head)
        keys, _ = read_pickle(head)
        if not isinstance(keys, list) or len(keys) != len(storages) or not all(isinstance(key, str) for key in keys):
            raise Damaged("its storages are not those of its tensors")
        mapped, at, size = _Mapped(path), head.tell(), path.stat().st_size
        for key in keys:
            storage = storages.get(key)
            file.seek(at)
            elements, at = int.from_bytes(file.read(8), "little"), at + 8
            if storage is None or elements != storage.elements or at + storage.bytes > size:
                raise Damaged(f"storage {spelt(key)} is not whole")
            mapped.places[key] = _Place(at, storage.bytes)
            at += storage.bytes
    mapped.check(storages)
    return mapped.tree(value)


def read_folder(folder: Path, what: str) -> list[Content]:
    """The files of a transformers folder, by its index where there is one. Raises CascadeError as `read_file` does."""
    for kind in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{kind}.index.json"
        if index.is_file():
            return [read_file(folder / part, what) for part in _parts(folder, index)]
    for kind in ("model.safetensors", "pytorch_model.bin"):
        if (folder / kind).is_file():
            return [read_file(folder / kind, what)]
    raise CascadeError(
        f"the {what} folder {folder} holds no model.safetensors or pytorch_model.bin: download it again."
    )


def _parts(folder: Path, index: Path) -> list[str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(part, str) for part in weight_map.values()):
        raise CascadeError(f"{index} has no weight_map that names files: download it again.")
    parts = sorted(set(weight_map.values()))
    for part in parts:
        try:
            found = Path(part).name == part and (folder / part).is_file()
        except OSError:  # a name that no file can have
            found = False
        if not found:
            raise CascadeError(f"{folder} lacks its part {spelt(part)}: download it again.")
    if not parts:
        raise CascadeError(f"{index} has no weight_map that names files: download it again.")
    return parts
