"""The kernels, compiled once for all tests."""

from __future__ import annotations

import ctypes
import shutil

import pytest
from kernels.cpu import compile_library


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if shutil.which("g++") is None:
        pytest.skip("there is no g++ to compile the kernels for the CPU")
    return compile_library(tmp_path_factory.mktemp("kernels"))
