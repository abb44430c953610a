"""TensorRT's layer report as data.

TensorRT prints the report in the verbose build log, which needs no GPU; `IEngineInspector` returns the same as
JSON on a machine that has one. TensorRT 11 calls the list of inputs and outputs `I/O Tensors`, 10.x `Bindings`;
both are read here.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_TENSOR = re.compile(r"\{ Name: (.*?), Dimensions: \[([-\d,]*)\].*?Datatype: (\w+)")
_LAYER = re.compile(r"^Name: (.*?), LayerType: (\w+)")
_IO = re.compile(r"^\s*Name: (.*?), IOMode: (\w+), DataType: (\w+), Dimensions: \[([-\d,]*)\]")
_ONNX = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_DTYPES = {
    "half": "fp16", "fp16": "fp16", "bfloat16": "bf16", "bf16": "bf16", "float": "fp32", "fp32": "fp32",
    "int64": "int64", "int32": "int32", "bool": "bool", "int8": "int8", "fp8": "fp8", "uint8": "uint8",
}  # fmt: skip
_ATTENTION = re.compile(r"_mha_|fmha|/Attention")
_PROFILE = re.compile(r" \[profile (\d+)\]")
_MYELIN = re.compile(r"_myl(\d+)_\d+$")  # Myelin compiles each profile by itself and numbers them


@dataclass(frozen=True)
class Tensor:
    name: str
    dtype: str  # fp32, fp16, bf16, int64, int32, bool, ...
    shape: tuple[int, ...]


@dataclass(frozen=True)
class IOTensor:
    """An input or output of the engine; `mode` is "input" or "output"."""

    name: str
    mode: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """A kernel of one profile: `kind` is TensorRT's layer type, `onnx` the graph nodes fused into it."""

    name: str
    kind: str
    profile: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    onnx: tuple[str, ...]

    @property
    def reads(self) -> set[str]:
        return {tensor.name for tensor in self.inputs}

    @property
    def writes(self) -> set[str]:
        return {tensor.name for tensor in self.outputs}


@dataclass(frozen=True)
class LayerReport:
    """Every layer of an engine (of all its profiles) and its I/O tensors."""

    layers: tuple[Layer, ...]
    io: tuple[IOTensor, ...]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> LayerReport:
        value = json.loads(text)

        def tensors(items: list[dict[str, Any]]) -> tuple[Tensor, ...]:
            return tuple(Tensor(t["name"], t["dtype"], tuple(t["shape"])) for t in items)

        layers = tuple(
            Layer(x["name"], x["kind"], x["profile"], tensors(x["inputs"]), tensors(x["outputs"]), tuple(x["onnx"]))
            for x in value["layers"]
        )
        io = tuple(IOTensor(t["name"], t["mode"], t["dtype"], tuple(t["shape"])) for t in value["io"])
        return cls(layers, io)

    # questions --------------------------------------------------------------------------------------------
    @property
    def caches(self) -> list[str]:
        """Outputs that are KV caches."""
        return [t.name for t in self.io if t.mode == "output" and t.name.startswith("present_")]

    def cache_updates(self) -> list[tuple[Layer, str]]:
        """Layers that write a cache which they also read: the KV update, in place."""
        return [
            (layer, name) for layer in self.layers for name in self.caches
            if name in layer.writes and name in layer.reads
        ]  # fmt: skip

    def cache_rewrites(self) -> list[tuple[Layer, str]]:
        """Layers that write a cache without having it as input: a copy of the whole cache into its output."""
        return [
            (layer, name) for layer in self.layers for name in self.caches
            if name in layer.writes and name not in layer.reads
        ]  # fmt: skip

    def cache_reformats(self) -> list[tuple[Layer, str]]:
        """Layers that read a cache and write it elsewhere: reshaped, reordered, padded, repeated, or half of it.

        Products and attention read it for their own ends; their results are none of these.
        """
        fused = self.attention()
        return [
            (layer, tensor.name)
            for layer in self.layers
            if layer.kind != "gemm" and layer not in fused
            for tensor in layer.inputs
            if tensor.name in self.caches
            and any(_holds(other.shape, tensor.shape) for other in layer.outputs if other.name not in self.caches)
        ]

    def attention(self) -> list[Layer]:
        """Layers that are fused attention kernels."""
        return [layer for layer in self.layers if _ATTENTION.search(layer.name)]

    def reformats(self) -> list[Layer]:
        """Layers that only change a tensor's memory format."""
        return [layer for layer in self.layers if "reformat" in f"{layer.kind} {layer.name}".lower()]

    def precision_mix(self) -> dict[str, int]:
        """How many layers write each dtype (by the first output)."""
        return dict(Counter(layer.outputs[0].dtype for layer in self.layers if layer.outputs).most_common())


def _count(shape: tuple[int, ...]) -> int:
    return math.prod(abs(size) for size in shape)


def _holds(shape: tuple[int, ...], cache: tuple[int, ...]) -> bool:
    """Whether a tensor can hold at least half of a cache [R, H, S, D]: large enough, with its slots in one dimension
    (a little more where rows are padded, a multiple where dimensions are merged) and its channels in another."""
    slots, channels = cache[2:]
    slotted = [axis for axis, size in enumerate(shape) if slots <= size <= 1.1 * slots or size % slots == 0]
    channelled = [axis for axis, size in enumerate(shape) if size % channels == 0]
    apart = any(one != two for one in slotted for two in channelled)
    return apart and _count(shape) >= _count(cache) / 2


def _dtype(name: str) -> str:
    return _DTYPES.get(name.lower(), name.lower())


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(",") if size.strip())


def parse_log(messages: list[str]) -> LayerReport:
    """The report from TensorRT's log messages; empty when the log has none."""
    layers, io = [], []
    for message in messages:
        for line in message.splitlines():
            if match := _LAYER.match(line):
                layers.append(_parse_layer(match, line))
            elif match := _IO.match(line):
                name, mode, dtype, shape = match.groups()
                io.append(IOTensor(name, mode.lower(), _dtype(dtype), _shape(shape)))
    return LayerReport(tuple(layers), tuple(io))


def _parse_layer(match: re.Match[str], line: str) -> Layer:
    before, _, after = line.partition("Outputs: [")
    outputs, _, rest = after.partition("], TacticName")

    def tensors(text: str) -> tuple[Tensor, ...]:
        found = _TENSOR.findall(text)
        return tuple(Tensor(_bare(name), _dtype(dtype), _shape(shape)) for name, shape, dtype in found)

    inputs = before.partition("Constants: [")[0]
    profile = _profile_of(match[1], inputs + outputs)
    return Layer(
        _bare(match[1]), match[2], profile, tensors(inputs), tensors(outputs), tuple(_ONNX.findall(rest))
    )  # fmt: skip


def _bare(name: str) -> str:
    """A name without TensorRT's mark of the profile."""
    return _PROFILE.sub("", name)


def _profile_of(name: str, tensors: str) -> int:
    match = _MYELIN.search(name) or _PROFILE.search(name) or _PROFILE.search(tensors)
    return int(match[1]) if match else 0


def parse_inspector(value: Mapping[str, Any]) -> LayerReport:
    """The report from `IEngineInspector`'s JSON, in TensorRT 11's form or 10.x's."""
    layers = []
    for item in value.get("Layers", []):
        if isinstance(item, str):  # the engine was built without detailed verbosity
            layers.append(Layer(_bare(item), "unknown", _profile_of(item, ""), (), (), ()))
            continue
        name, metadata = item.get("Name", ""), item.get("Metadata", "")
        inputs, outputs = _inspected(item.get("Inputs", [])), _inspected(item.get("Outputs", []))
        layers.append(
            Layer(
                _bare(name), item.get("LayerType", ""), _profile_of(name, ""), inputs, outputs,
                tuple(_ONNX.findall(metadata)),
            )
        )  # fmt: skip
    io = []
    for item in value.get("I/O Tensors", value.get("Bindings", [])):
        if isinstance(item, str):
            io.append(IOTensor(item, "unknown", "unknown", ()))
            continue
        mode = str(item.get("IOMode", item.get("Mode", "unknown"))).lower()
        shape = tuple(item.get("Dimensions", item.get("Shape", ())))
        io.append(IOTensor(item["Name"], mode, _inspected_dtype(item), shape))
    return LayerReport(tuple(layers), tuple(io))


def _inspected(items: list[Mapping[str, Any]]) -> tuple[Tensor, ...]:
    return tuple(Tensor(_bare(t["Name"]), _inspected_dtype(t), tuple(t.get("Dimensions", ()))) for t in items)


def _inspected_dtype(item: Mapping[str, Any]) -> str:
    """TensorRT 11 gives the dtype by itself; 10.x hides it in "Format/Datatype"."""
    for key in ("Datatype", "DataType"):
        if key in item:
            return _dtype(str(item[key]))
    words = str(item.get("Format/Datatype", "")).replace("(", " ").split()
    return next((_DTYPES[word.lower()] for word in words if word.lower() in _DTYPES), "unknown")
