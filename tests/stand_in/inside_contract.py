"""The contract on `ort-cuda`. On the stand-in only those tests can pass that need no numbers (-m "not computes"); on a
GPU all of them should."""

from __future__ import annotations

import pytest
from contract import Contract

from cascade_trt.runtime.backends import Backend, open_backend


class TestOrtCuda(Contract):
    host_is_device = False
    loads_merged = False

    @pytest.fixture
    def backend(self) -> Backend:
        return open_backend("ort-cuda")
