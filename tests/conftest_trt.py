"""Helpers of the tests of TensorRT engines."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

TARGET = "rtx:sm89"
TARGETS = ("rtx:sm86", TARGET, "rtx:sm120")


def quiet(*_: object) -> None:
    """A progress callback that says nothing."""


def require_rtx() -> None:
    for package in ("tensorrt_rtx", "polygraphy"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install 'cascade-trt[rtx]'")
