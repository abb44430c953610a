"""The contract on `ort-cuda`. On the stand-in only those tests can pass that need no numbers (-m "not computes"); on a
GPU all of them should."""

from __future__ import annotations

import pytest
from contract import Contract

from cascade_trt.runtime.backends import Backend, open_backend
from cascade_trt.runtime.backends.ort_cuda import OrtCudaBackend


class TestOrtCuda(Contract):
    host_is_device = False
    loads_merged = False

    @pytest.fixture
    def backend(self) -> Backend:
        return open_backend("ort-cuda")


class TestWithoutGraphs(TestOrtCuda):
    """Where only the class above fails, a CUDA graph is at fault."""

    @pytest.fixture
    def backend(self) -> Backend:
        return OrtCudaBackend(graphs=False)
