"""What a PyTorch pickle says, read without running anything of it.

Opcodes are followed over plain values. A call that rebuilds a tensor becomes a description of that tensor, a call of a
type that training scripts save beside the weights becomes a value that nobody reads, and any other name is refused. No
object of the file is made, so time and memory are bounded by the pickle's length, whatever it says.
"""

from __future__ import annotations

import math
import pickletools
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch

MOST_BYTES = 32 << 20  # of a pickle; that of GPT-3B with its optimizer has 100 kB
_MOST_STEPS = 2_000_000  # opcodes: a second or two
_MOST_EXPANDED = 1 << 28  # values of all tensors that repeat the values of their storages
_MOST_DIMENSIONS = 16
_LARGEST = (1 << 63) - 1

_STORAGES = {
    "Float": "float32", "Double": "float64", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64", "Int": "int32",
    "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool", "ComplexFloat": "complex64",
    "ComplexDouble": "complex128", "QInt8": "qint8", "QUInt8": "quint8", "QInt32": "qint32", "QUInt4x2": "quint4x2",
    "QUInt2x4": "quint2x4", "Untyped": "uint8",
}  # fmt: skip
_WRAPPED = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state",
            "torch.nn.parameter.Parameter", "torch.Tensor")  # fmt: skip
_NOT_PLAIN = {
    "torch._utils._rebuild_sparse_tensor": "sparse", "torch._utils._rebuild_nested_tensor": "nested",
    "torch._utils._rebuild_meta_tensor_no_storage": "meta", "torch._utils._rebuild_wrapper_subclass": "wrapped",
    "torch._utils._rebuild_device_tensor_from_numpy": "numpy",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": "device",
}  # fmt: skip
# Types that training scripts save beside the weights. Their values play no part.
_NOTES = {
    "_codecs.encode", "argparse.Namespace", "collections.Counter", "collections.defaultdict", "numpy.dtype",
    "numpy.ndarray", "torch.device", "torch.serialization._get_layout",
    *(f"numpy.{core}.{name}" for core in ("core", "_core")
      for name in ("multiarray.scalar", "multiarray._reconstruct", "numeric._frombuffer")),
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in (
        "bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "object", "range", "set",
        "slice", "str", "tuple")),
    *(f"datetime.{name}" for name in ("date", "datetime", "timedelta", "timezone")),
    *(f"pathlib.{name}Path" for name in ("", "Posix", "Windows", "Pure", "PurePosix", "PureWindows")),
}  # fmt: skip
_CONSTANTS = (torch.dtype, torch.qscheme, torch.layout, torch.memory_format)  # torch.float32, torch.strided, ...
_QUANTISERS = {"bitsandbytes", "hqq", "optimum", "quanto", "torchao"}
_REBUILDS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
_UNTYPED_REBUILD, _QUANTISED_REBUILD = "torch._utils._rebuild_tensor_v3", "torch._utils._rebuild_qtensor"
_TYPED_REBUILD = "torch._tensor._rebuild_from_type_v2"
_SIZE, _ORDERED = "torch.Size", "collections.OrderedDict"
_KNOWN = {*_WRAPPED, *_NOT_PLAIN, *_NOTES, *_REBUILDS, _UNTYPED_REBUILD, _QUANTISED_REBUILD, _TYPED_REBUILD, _SIZE,
          _ORDERED}  # fmt: skip


class Damaged(Exception):
    """The file is not what PyTorch writes; the message says why in a few words."""


class RunsCode(Exception):
    """Opening the file the usual way would run the function that the message names."""


@dataclass(frozen=True)
class Storage:
    """So many elements of a dtype, which lie in the file under `key`."""

    key: str
    kind: str
    elements: int

    @property
    def bytes(self) -> int:
        return self.elements * dtype_of(self.kind).itemsize


@dataclass(frozen=True)
class Described:
    """A tensor: its place in a storage. `kind` is its dtype, or what it is instead of a plain tensor ("sparse")."""

    kind: str
    shape: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    offset: int = 0
    storage: Storage | None = None


@dataclass(frozen=True)
class _Name:
    """A function or type that the pickle names."""

    name: str


class _Unread:
    """A value that plays no part."""


_MARK = object()


def dtype_of(kind: str) -> torch.dtype:
    """PyTorch's dtype of that name. Raises Damaged when there is none."""
    dtype = getattr(torch, kind, None)
    if not isinstance(dtype, torch.dtype):
        raise Damaged(f"there is no dtype {kind}")
    return dtype


def read_pickle(stream: BinaryIO) -> tuple[Any, dict[str, Storage]]:
    """The value of the pickle at the stream's place, and the storages it names; the stream ends up behind it.

    Values are None, numbers, text, bytes, lists, tuples, dicts (which may hold themselves) and `Described` tensors.
    `stream` must be in memory. Raises Damaged, and RunsCode for a name that is not known to be harmless.
    """
    reader = _Reader()
    try:
        for steps, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if steps > _MOST_STEPS:
                raise Damaged("its pickle is longer than that of any checkpoint")
            reader.step(opcode.name, argument)
        return reader.result(), reader.storages
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise Damaged("its pickle is damaged") from None


class _Reader:
    """Pickle's stack machine over plain values."""

    def __init__(self) -> None:
        self.storages: dict[str, Storage] = {}
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._expanded = self._copied = 0

    def result(self) -> Any:
        (value,) = self._stack
        return value

    def step(self, code: str, argument: Any) -> None:
        stack = self._stack
        match code:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                self.result()
            case "MARK":
                stack.append(_MARK)
            case "POP":
                stack.pop()
            case "POP_MARK":
                self._above_mark()
            case "DUP":
                stack.append(stack[-1])
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[code])
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE" | "EMPTY_SET":
                stack.append({"D": dict, "L": list, "T": tuple, "S": _Unread}[code[6]]())
            case "DICT" | "LIST" | "TUPLE" | "FROZENSET":
                self._collect(code, self._above_mark())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self._collect("TUPLE", self._top(int(code[-1])))
            case "APPEND" | "APPENDS" | "ADDITEMS":
                self._extend(self._top(1) if code == "APPEND" else self._above_mark())
            case "SETITEM" | "SETITEMS":
                self._set_items(self._top(2) if code == "SETITEM" else self._above_mark())
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                self._memo[argument] = stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(self._memo[argument])
            case "GLOBAL":
                stack.append(self._named(".".join(argument.split(" ", 1))))
            case "STACK_GLOBAL":
                stack.append(self._named(".".join(self._top(2))))
            case "REDUCE" | "NEWOBJ":
                function, arguments = self._top(2)
                stack.append(self._called(function, arguments))
            case "NEWOBJ_EX":
                function, arguments, _ = self._top(3)
                stack.append(self._called(function, arguments))
            case "BUILD":
                self._top(1)  # attributes of a value; a state_dict has its modules' versions
            case "BINPERSID":
                stack.append(self._storage(*self._top(1)))
            case _ if argument is not None:  # numbers, text, bytes
                if code in ("PERSID", "INST", "EXT1", "EXT2", "EXT4"):
                    raise Damaged("its pickle is of an unknown kind")
                stack.append(argument)
            case _:
                raise Damaged("its pickle is of an unknown kind")

    def _top(self, count: int) -> list[Any]:
        """Takes the last `count` values."""
        taken = self._stack[-count:]
        if len(taken) < count or any(value is _MARK for value in taken):
            raise Damaged("its pickle is damaged")
        del self._stack[-count:]
        return taken

    def _above_mark(self) -> list[Any]:
        at = len(self._stack) - 1
        while self._stack[at] is not _MARK:  # IndexError where there is none
            at -= 1
        taken = self._stack[at + 1 :]
        del self._stack[at:]
        return taken

    def _collect(self, code: str, values: list[Any]) -> None:
        if code == "DICT":
            self._stack.append({})
            self._set_items(values)
        else:
            self._stack.append({"LIST": list, "TUPLE": tuple}[code](values) if code != "FROZENSET" else _Unread())

    def _extend(self, values: list[Any]) -> None:
        if isinstance(self._stack[-1], list):
            self._stack[-1].extend(values)

    def _set_items(self, values: list[Any]) -> None:
        """Entries whose key is no plain value are left out: they are no weights, and a hash may take for ever."""
        target = self._stack[-1]
        if len(values) % 2:
            raise Damaged("its pickle is damaged")
        if isinstance(target, dict):
            pairs = zip(values[::2], values[1::2], strict=True)
            target.update((key, value) for key, value in pairs if isinstance(key, str | int | float | bytes | None))

    @staticmethod
    def _named(name: str) -> _Name:
        module, _, last = name.rpartition(".")
        is_storage = last.endswith("Storage") and module in ("torch", "torch.storage", "torch.cuda")
        is_constant = module == "torch" and isinstance(getattr(torch, last, None), _CONSTANTS)
        is_type = module == "numpy.dtypes" or module.partition(".")[0] in _QUANTISERS
        if not (is_storage or is_constant or is_type or name in _KNOWN):
            raise RunsCode(name)
        return _Name(name)

    def _called(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise Damaged("its pickle is damaged")
        name = function.name
        if name in _REBUILDS:
            storage, offset, shape, stride, *rest = arguments
            turned = any(rest[2].get(bit) for bit in ("conj", "neg")) if len(rest) > 2 and rest[2] else False
            return self._tensor(storage, offset, shape, stride, "lazily negated" if turned else storage.kind)
        if name == _UNTYPED_REBUILD:
            storage, offset, shape, stride, _, _, dtype, *_ = arguments
            return self._tensor(storage, offset, shape, stride, dtype.name.removeprefix("torch."))
        if name == _QUANTISED_REBUILD:
            return Described(arguments[0].kind, _sizes(arguments[2]))
        if name.partition(".")[0] in _QUANTISERS:
            return Described(name.partition(".")[0])
        if name in _NOT_PLAIN:
            return Described(_NOT_PLAIN[name], _sizes(arguments[1]) if _NOT_PLAIN[name] == "meta" else ())
        if name == _TYPED_REBUILD:
            inner, kind, given, _ = arguments
            if kind.name.partition(".")[0] in _QUANTISERS:
                return self._called(kind, given)
            return self._called(inner, given) if kind.name in _WRAPPED else Described("wrapped")
        if name in _WRAPPED:
            if not isinstance(arguments[0], Described):
                raise Damaged("a parameter holds no tensor")
            return arguments[0]
        if name == _SIZE:
            return _sizes(arguments[0])
        if name == _ORDERED:
            return self._ordered(*arguments)
        return _Unread()

    def _ordered(self, pairs: Any = ()) -> dict[str, Any]:
        """A dict of pairs. One list may be copied many times, so what is copied counts as steps."""
        self._copied += len(pairs)
        if self._copied > _MOST_STEPS:
            raise Damaged("its pickle is longer than that of any checkpoint")
        return {key: value for key, value in pairs if isinstance(key, str)}

    def _storage(self, persistent: Any) -> Storage:
        """A storage by its id: ("storage", type, key, device, number of elements)."""
        if not isinstance(persistent, tuple) or persistent[0] != "storage":
            raise Damaged("its pickle is of an unknown kind")
        kind, key, _, elements, *view = persistent[1:]
        if not isinstance(key, str) or not _is_count(elements) or any(view):
            raise Damaged("its pickle is damaged")
        storage = Storage(key, _STORAGES[kind.name.rpartition(".")[2].removesuffix("Storage")], elements)
        if self.storages.setdefault(key, storage) != storage:
            raise Damaged(f"storage {key} has two sizes")
        return storage

    def _tensor(self, storage: Any, offset: Any, shape: Any, stride: Any, kind: str) -> Described:
        """A tensor that lies within its storage. Raises Damaged otherwise."""
        shape, stride = _sizes(shape), _sizes(stride)
        if not isinstance(storage, Storage) or not _is_count(offset) or len(shape) != len(stride):
            raise Damaged("its pickle is damaged")
        values, room = math.prod(shape), storage.elements
        if kind != storage.kind and kind != "lazily negated":  # an untyped storage counts bytes
            size = dtype_of(kind).itemsize
            room //= size
            if storage.bytes % size:
                raise Damaged(f"storage {storage.key} has a fraction of a value")
        if values and offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) >= room:
            raise Damaged(f"a tensor reaches beyond its storage {storage.key}")
        self._expanded += values if values > room else 0
        if self._expanded > _MOST_EXPANDED:
            raise Damaged("its tensors claim more values than the file holds")
        return Described(kind, shape, stride, offset, storage)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST


def _sizes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple | list) or len(value) > _MOST_DIMENSIONS or not all(map(_is_count, value)):
        raise Damaged("a tensor has no proper shape")
    return tuple(value)
