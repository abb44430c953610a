"""The contract on `tensorrt-rtx` itself: `pytest tests/backends/inside_tensorrt.py` on a machine with an RTX card.

Each graph is compiled for the card when it is loaded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from any_plans import any_plans
from contract import Contract

from cascade_trt.engines.tensorrt.attention import AttentionForm
from cascade_trt.engines.tensorrt.build import builder_options
from cascade_trt.runtime.backends.device import CudaDevice
from cascade_trt.runtime.backends.tensorrt import TensorRtBackend
from cascade_trt.runtime.errors import CascadeError
from cascade_trt.runtime.plans import RTX, target_for

_known: dict[bytes, bytes] = {}  # plans by graphs


def compile_for(target: str, graph: Path, file: Path, profiles: list[dict[str, int]]) -> None:
    """In a process of its own, as always: Polygraphy decides for one TensorRT when it is imported."""
    content = graph.read_bytes()
    if content not in _known:
        job = {"engine": graph.stem, "onnx": str(graph), "precision": "fp32", "profiles": profiles, "plan": str(file),
               "report": f"{file}.json", "options": builder_options(AttentionForm.PLAIN, "fixed_nodes", 1)}  # fmt: skip
        request = json.dumps({"targets": [target], "jobs": [job]})
        command = [sys.executable, "-m", "cascade_trt.engines.tensorrt.worker", request, str(os.getpid())]
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert "error" not in answer, answer
        _known[content] = file.read_bytes()
    file.write_bytes(_known[content])


@pytest.fixture(scope="module")
def device() -> CudaDevice:
    try:
        return CudaDevice(0)
    except CascadeError as error:
        pytest.skip(str(error))


class TestTensorRtRtx(Contract):
    host_is_device = False
    loads_merged = False
    graphs = True

    @pytest.fixture
    def backend(self, tmp_path: Path, device: CudaDevice) -> TensorRtBackend:
        target = target_for(device.capability)
        plans = any_plans(tmp_path, lambda graph, file, profiles: compile_for(target, graph, file, profiles))
        return TensorRtBackend(RTX, plans, device, graphs=self.graphs)


class TestWithoutGraphs(TestTensorRtRtx):
    """Where only the class above fails, a CUDA graph is at fault."""

    graphs = False
