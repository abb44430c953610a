"""A thin layer over onnx_ir that makes graph code read like the architecture.

Nodes are named after their place ("/layers.0/attention/MatMul"), so names stay stable between exports. Only
standard ONNX of opset 24 is produced; dimensions that vary (P slots, R rows, N tree nodes) are symbolic and
travel through Reshape's 0 and -1, so that no Shape node is needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, overload

import numpy as np
import onnx_ir as ir
import torch

from .weights import WeightFile

OPSET = 24
IR_VERSION = 11
FLOAT = ir.DataType.FLOAT
INT64 = ir.DataType.INT64
BOOL = ir.DataType.BOOL


class GraphBuilder:
    """Collects one graph. `dtype` is the precision of its matrix products and activations.

    `others` holds tensors by name that another weight file of the bundle has already; `weight` takes them from there.
    """

    def __init__(self, name: str, weights: WeightFile, others: Mapping[str, ir.ExternalTensor] | None = None) -> None:
        self.name = name
        self.weights = weights
        self._others = dict(others or {})
        self.dtype = weights.dtype
        self._tape = ir.tape.Tape()
        self._inputs: list[ir.Value] = []
        self._outputs: list[ir.Value] = []
        self._scope: list[str] = []
        self._counts: Counter[str] = Counter()
        self._constants: dict[str, ir.Value] = {}

    # names ------------------------------------------------------------------------------------------------
    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        self._scope.append(name)
        yield
        self._scope.pop()

    def _unique(self, leaf: str) -> str:
        path = "/".join(["", *self._scope, leaf])
        self._counts[path] += 1
        return path if self._counts[path] == 1 else f"{path}_{self._counts[path] - 1}"

    # inputs, outputs, weights -----------------------------------------------------------------------------
    def input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
        value = ir.val(name, dtype, shape)
        self._inputs.append(value)
        return value

    def output(self, name: str, value: ir.Value, dtype: ir.DataType, shape: Sequence[int | str]) -> None:
        value.name = name
        value.shape = ir.Shape(shape)
        value.type = ir.TensorType(dtype)
        self._outputs.append(value)

    def constant(
        self, array: np.ndarray | np.generic | Sequence[int] | float, name: str = "const"
    ) -> ir.Value:
        """A small constant stored inside the graph; sequences become int64."""
        array = np.asarray(array, dtype=np.int64 if isinstance(array, (list, tuple)) else None)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        key = f"{array.dtype}{array.shape}{array.tobytes()!r}" if array.nbytes <= 64 else self._unique(name)
        if key not in self._constants:
            self._constants[key] = self._tape.initializer(ir.tensor(array), name=self._unique(name))
        return self._constants[key]

    def weight(
        self, name: str, produce: Callable[[], np.ndarray], dtype: ir.DataType | None = None
    ) -> ir.Value:
        """A tensor of the weight files; `produce` runs only when none of them holds `name` yet."""
        if name not in self._constants:
            tensor = self._others.get(name) or self.weights.add(name, produce, dtype)
            self._constants[name] = self._tape.initializer(tensor, name=name)
        return self._constants[name]

    # nodes ------------------------------------------------------------------------------------------------
    @overload
    def op(
        self, kind: str, *inputs: ir.Value | None, outputs: int, **attributes: Any
    ) -> tuple[ir.Value, ...]: ...
    @overload
    def op(self, kind: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value: ...
    def op(self, kind: str, *inputs: ir.Value | None, outputs: int = 1, **attributes: Any):
        """Appends a node; returns its value, or a tuple of values when it has several outputs."""
        name = self._unique(kind)
        if outputs == 1:
            value = self._tape.op(kind, inputs, attributes, name=name)
            value.name = f"{name}:0"
            return value
        values = self._tape.op_multi_out(kind, inputs, attributes, name=name, num_outputs=outputs)
        for index, value in enumerate(values):
            value.name = f"{name}:{index}"
        return tuple(values)

    def cast(self, x: ir.Value, dtype: ir.DataType) -> ir.Value:
        return self.op("Cast", x, to=int(dtype))

    def to_float(self, x: ir.Value) -> ir.Value:
        return x if self.dtype == FLOAT else self.cast(x, FLOAT)

    def from_float(self, x: ir.Value) -> ir.Value:
        return x if self.dtype == FLOAT else self.cast(x, self.dtype)

    def reshape(self, x: ir.Value, shape: Sequence[int]) -> ir.Value:
        return self.op("Reshape", x, self.constant(list(shape), "shape"))

    def split(self, x: ir.Value, sizes: Sequence[int], axis: int = -1) -> tuple[ir.Value, ...]:
        if len(sizes) == 1:
            return (x,)
        return self.op("Split", x, self.constant(list(sizes), "sizes"), outputs=len(sizes), axis=axis)

    def concat(self, parts: Sequence[ir.Value], axis: int) -> ir.Value:
        """The parts side by side; a single one as it is."""
        return self.op("Concat", *parts, axis=axis) if len(parts) > 1 else parts[0]

    def linear(self, x: ir.Value, name: str, produce: Callable[[], np.ndarray]) -> ir.Value:
        """x [..., in] @ W; `produce` gives W as PyTorch stores it, [out, in], and it is stored transposed."""

        def transposed() -> np.ndarray:
            return torch.from_numpy(produce()).T.contiguous().numpy()  # six times as fast as NumPy

        return self.op("MatMul", x, self.weight(f"{name}.T", transposed))

    # the model --------------------------------------------------------------------------------------------
    def save(self, path: Path) -> None:
        graph = ir.Graph(
            self._inputs,
            self._outputs,
            nodes=self._tape.nodes,
            initializers=list(self._tape.initializers),
            opset_imports={"": OPSET},
            name=self.name,
        )
        model = ir.Model(graph, ir_version=IR_VERSION, producer_name="cascade-trt")
        ir.save(model, path)


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A float32 numpy array of a checkpoint tensor of any float dtype (bfloat16 has no numpy twin)."""
    return tensor.float().numpy()
