"""Every backend against the contract."""

from __future__ import annotations

import pytest
from apart import ApartBackend
from contract import Contract

from cascade_trt.runtime.backends import Backend
from cascade_trt.runtime.backends.ort import OrtBackend


class TestOrtCpu(Contract):
    @pytest.fixture
    def backend(self) -> Backend:
        return OrtBackend(1)


class TestApart(Contract):
    """The tests' own backend with device memory apart: what it passes, code that uses it may rely on."""

    host_is_device = False

    @pytest.fixture
    def backend(self) -> Backend:
        return ApartBackend()
