"""The base install: importing the package is quick, and needs neither torch nor onnx."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import cascade_trt

HEAVY = ("torch", "onnx", "onnx_ir", "onnxruntime", "transformers", "safetensors", "cascade_trt.export")
SCRIPT = """
import sys, time
started = time.process_time()
import {module}
seconds = time.process_time() - started
heavy = [name for name in {heavy} if name in sys.modules]
print(seconds, *heavy)
"""


def import_fresh(module: str) -> tuple[float, list[str]]:
    """Processor seconds of the import in a new interpreter, and the heavy modules that it brought along."""
    script = SCRIPT.format(module=module, heavy=HEAVY)
    seconds, *heavy = subprocess.check_output([sys.executable, "-c", script], text=True).split()
    return float(seconds), heavy


@pytest.mark.parametrize("module", ["cascade_trt", "cascade_trt.runtime.pipeline", "cascade_trt.cli"])
def test_light(module: str) -> None:
    runs = [import_fresh(module) for _ in range(3)]
    assert runs[0][1] == []
    assert min(seconds for seconds, _ in runs) < 0.5


def test_drawing_needs_no_torch(tiny_bundle: Path) -> None:
    code = (
        "import sys; from cascade_trt import Pipeline; import numpy as np; "
        f"pipe = Pipeline.load({str(tiny_bundle)!r}); "
        "pipe.generate(features=np.ones((1, 120, 32)), rule='exact'); "
        "print([m for m in ('torch', 'onnx', 'onnx_ir', 'scipy') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_package_shows_its_public_names_and_loads_them_late() -> None:
    code = (
        "import sys, cascade_trt; early = 'numpy' in sys.modules; "
        "assert dir(cascade_trt) == sorted(cascade_trt.__all__); "
        "print(early, *(getattr(cascade_trt, name) is not None for name in dir(cascade_trt)))"
    )
    shown = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert shown == ["False", *["True"] * len(cascade_trt.__all__)]


def test_an_unknown_name_is_none_of_it() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Pipelines'"):
        cascade_trt.Pipelines  # noqa: B018
