"""The backends on plans, on a TensorRT and a CUDA driver that compute on the CPU (fake_trt.py, host_cuda.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fake_trt
import pytest
from contract import ROWS, SLOTS, Contract
from host_cuda import host_device

from cascade_trt.runtime.backends.tensorrt import TensorRtBackend
from cascade_trt.runtime.bundle import PlanInfo
from cascade_trt.runtime.plans import Here, Plans


class AnyPlans(Plans):
    """Plans of whatever graph is asked for in the bundle's folder, with a profile for every size of the contract."""

    def fitting(self, backend: str, here: Here, target: str | None = None) -> dict[str, PlanInfo]:
        assert (backend, here.gpu, target) == ("tensorrt-rtx", ("A card", (8, 9)), None)
        folder = self.folder

        class Compiled(dict[str, PlanInfo]):
            def get(self, name: str, default: Any = None) -> PlanInfo | None:  # noqa: ARG002
                file = folder / f"{name}.plan"
                profiles = [{"R": rows, "N": count} for rows in range(1, ROWS + 1) for count in range(1, SLOTS + 1)]
                fake_trt.write_plan(file, folder / name, profiles)
                if name == "odd.onnx":  # which is no graph
                    file.write_bytes(b"odd")
                return fake_trt.plan_info(name.removesuffix(".onnx"), file, profiles)

        slots = [{"P": count, "N": 1} for count in range(1, 9)]
        return Compiled({"embed.onnx": fake_trt.plan_info("embed", Path(__file__), slots)})


class TestTensorRt(Contract):
    host_is_device = False
    loads_merged = False
    graphs = True

    @pytest.fixture
    def backend(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TensorRtBackend:
        device, driver = host_device()
        plans = AnyPlans(tmp_path, {}, [], most_nodes=SLOTS)
        return fake_trt.backend(monkeypatch, plans, device, driver, graphs=self.graphs)


class TestWithoutGraphs(TestTensorRt):
    graphs = False
