"""What an ONNX file says of itself, read without ONNX: its inputs and outputs, and where its weights lie.

Only the outline of the file is walked through (protocol buffers: a message is a row of numbered fields). Nodes and
tensors are looked into where they may name another file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import CascadeError

_DTYPES = {1: "float32", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 16: "bfloat16"}
_LOCATION = b"location"  # the key under which a tensor names the file that holds it
_DEEPEST = 32  # messages inside each other
# onnx.proto3: the fields of each message that lead to tensors.
_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_GRAPH, _INPUT, _OUTPUT = 7, 11, 12


@dataclass(frozen=True)
class TensorInfo:
    """dtype ("": one that no engine has) and shape of an input or output; None where a size is open."""

    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class OnnxFile:
    """`locations` are the files of its weights, as seen from the folder of the graph."""

    inputs: dict[str, TensorInfo]
    outputs: dict[str, TensorInfo]
    locations: frozenset[str]


def read_onnx(path: Path) -> OnnxFile:
    """Raises CascadeError for what is no ONNX file."""
    try:
        data = path.read_bytes()
        graphs = [(start, end) for number, start, end in _fields(data, 0, len(data)) if number == _GRAPH]
        if len(graphs) != 1:
            raise ValueError("it holds no graph")
        values = {
            kind: dict(_value(data, *place) for number, *place in _fields(data, *graphs[0]) if number == kind)
            for kind in (_INPUT, _OUTPUT)
        }
        return OnnxFile(values[_INPUT], values[_OUTPUT], frozenset(_locations(data, "model", 0, len(data))))
    except (OSError, ValueError, IndexError) as error:
        raise CascadeError(f"{path} is no ONNX graph ({error}): build the bundle again.") from None


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The fields of the message data[at:end]: number, and the place of the content; a number is itself and -1."""
    while at < end:
        key, at = _number(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _number(data, at)
            yield key >> 3, value, -1
        elif kind == 2:
            size, at = _number(data, at)
            if at + size > end:
                raise ValueError("it is cut off")
            yield key >> 3, at, at + size
            at += size
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of kind {kind}")


def _number(data: bytes, at: int) -> tuple[int, int]:
    """The number at data[at:], seven bits a byte, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number without an end")


def _inner(data: bytes, place: tuple[int, int], *path: int) -> tuple[int, int] | None:
    """The content of the last field that `path` leads to from the message at `place`; None where there is none."""
    found: tuple[int, int] | None = place
    for wanted in path:
        if found is None or found[1] < 0:
            return None
        found = {number: (start, end) for number, start, end in _fields(data, *found)}.get(wanted)
    return found


def _value(data: bytes, start: int, end: int) -> tuple[str, TensorInfo]:
    """Name, dtype and shape of an input or output."""
    name, kind = _inner(data, (start, end), 1), _inner(data, (start, end), 2, 1, 1)
    shape = _inner(data, (start, end), 2, 1, 2)
    dims = [] if shape is None else [place for number, *place in _fields(data, *shape) if number == 1]
    sizes = (_inner(data, (dim[0], dim[1]), 1) for dim in dims)
    info = TensorInfo(_DTYPES.get(kind[0], "") if kind else "", tuple(size[0] if size else None for size in sizes))
    return data[slice(*name)].decode() if name else "", info


def _locations(data: bytes, message: str, start: int, end: int, depth: int = 0) -> Iterator[str]:
    """The files that tensors anywhere in a message name."""
    if data.find(_LOCATION, start, end) < 0:
        return
    if depth > _DEEPEST:
        raise ValueError("it is too deep")
    if message == "entry":
        key, value = _inner(data, (start, end), 1), _inner(data, (start, end), 2)
        if key and value and data[slice(*key)] == _LOCATION:
            yield data[slice(*value)].decode()
        return
    for number, first, last in _fields(data, start, end):
        if last >= 0 and number in _INSIDE[message]:
            yield from _locations(data, _INSIDE[message][number], first, last, depth + 1)
