"""Weight files: the external data of one or more ONNX graphs, written one tensor at a time.

Graphs of one bundle share a file (the drafter's graph reads the target's head from the target's file), so no
weight is stored twice, and the exporter never holds more than one tensor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import ml_dtypes
import numpy as np
import onnx_ir as ir

PRECISIONS: dict[str, ir.DataType] = {
    "fp32": ir.DataType.FLOAT,
    "fp16": ir.DataType.FLOAT16,
    "bf16": ir.DataType.BFLOAT16,
}
_NUMPY = {
    ir.DataType.FLOAT: np.dtype(np.float32),
    ir.DataType.FLOAT16: np.dtype(np.float16),
    ir.DataType.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
}
_PAGE = 4096  # large tensors start on a page so that they can be mapped; small ones only need alignment
_LINE = 64


@dataclass
class WeightFile:
    """One file of raw tensors. Use as a context manager; `digest` is the sha256 once it is closed."""

    path: Path
    dtype: ir.DataType
    digest: str = ""
    overflowed: list[str] = field(default_factory=list)  # tensors with values that the dtype cannot hold

    def __post_init__(self) -> None:
        self._file = open(self.path, "wb")  # noqa: SIM115 - closed by __exit__
        self._hash = hashlib.sha256()
        self._tensors: dict[str, ir.ExternalTensor] = {}

    def __enter__(self) -> WeightFile:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        self.digest = self._hash.hexdigest()

    @property
    def tensors(self) -> dict[str, ir.ExternalTensor]:
        return self._tensors

    def add(
        self, name: str, produce: Callable[[], np.ndarray], dtype: ir.DataType | None = None
    ) -> ir.ExternalTensor:
        """Writes the array that `produce` returns, cast to the file's dtype, unless `name` is there already."""
        if name in self._tensors:
            return self._tensors[name]
        dtype = dtype or self.dtype
        array = self._cast(name, np.asarray(produce()), dtype)
        start = self._file.tell()
        align = _PAGE if array.nbytes >= 1 << 20 else _LINE
        self._write(b"\0" * (-start % align))
        offset = self._file.tell()
        self._write(array.reshape(-1).view(np.uint8).data)
        tensor = ir.ExternalTensor(
            self.path.name, offset, array.nbytes, dtype, shape=ir.Shape(array.shape), name=name,
            base_dir=str(self.path.parent),
        )  # fmt: skip
        self._tensors[name] = tensor
        return tensor

    def _cast(self, name: str, array: np.ndarray, dtype: ir.DataType) -> np.ndarray:
        with np.errstate(over="ignore"):
            cast = np.ascontiguousarray(array.astype(_NUMPY[dtype], copy=False))
        if dtype == ir.DataType.FLOAT16 and not np.isfinite(cast).all():
            self.overflowed.append(name)
        return cast

    def _write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)
