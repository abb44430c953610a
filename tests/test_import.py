"""The base install stays lean."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "onnx", "onnx_ir", "onnxruntime", "transformers", "safetensors", "scipy", "click")


@pytest.mark.parametrize("module", ["cascade_trt", "cascade_trt.runtime", "cascade_trt.runtime.pipeline"])
def test_import_is_quick_and_lean(module: str) -> None:
    """Under half a second (the best of five, as machines are noisy), and no heavy library along."""
    code = (
        "import sys, time; start = time.perf_counter(); "
        f"import {module}; print(time.perf_counter() - start, *(m for m in {HEAVY} if m in sys.modules))"
    )
    seconds = []
    for _ in range(5):
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        elapsed, *loaded = result.stdout.split()
        assert loaded == []
        seconds.append(float(elapsed))
    assert min(seconds) < 0.5


def test_drawing_needs_no_torch(tiny_bundle) -> None:
    code = (
        "import sys; from cascade_trt import Pipeline; import numpy as np; "
        f"pipe = Pipeline.load({str(tiny_bundle)!r}); "
        "pipe.generate(features=np.ones((1, 120, 32)), rule='exact'); "
        "print([m for m in ('torch', 'onnx', 'onnx_ir', 'scipy') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
