"""The kernels, compiled once for all tests, and bundles that are drawn with them."""

from __future__ import annotations

import ctypes
import shutil

import pytest
from kernels.backend import Pair
from kernels.cpu import compile_library

from cascade_trt.runtime.pipeline import Pipeline


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if shutil.which("g++") is None:
        pytest.skip("there is no g++ to compile the kernels for the CPU")
    return compile_library(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="session")
def small(library: ctypes.CDLL, small_vocabulary: Pipeline) -> Pair:
    return Pair(library, small_vocabulary)
