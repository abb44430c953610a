"""Rounds on a device whose engines are TensorRT's: kernels and engines take turns on one stream (host_cuda.py)."""

from __future__ import annotations

import ctypes
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import fake_trt
import numpy as np
import pytest
from host_cuda import HostDriver, host_device
from kernels.backend import HostKernels
from playing import Alone, play

from cascade_trt.engines.tensorrt.profiles import steady_pairs
from cascade_trt.runtime.backends.device import CudaDevice
from cascade_trt.runtime.backends.kernels.on_cuda import CudaKernels
from cascade_trt.runtime.backends.tensorrt import TensorRtBackend
from cascade_trt.runtime.device_rounds import DeviceRounds
from cascade_trt.runtime.pipeline import Pipeline


class StreamKernels(CudaKernels):
    """The kernels' source compiled for the CPU; each runs when the stream gets there."""

    def __init__(self, device: CudaDevice, driver: HostDriver, library: ctypes.CDLL) -> None:
        self._device, self._driver, self._host = device, driver, HostKernels(library)
        self._free = defaultdict(list)

    def launch(self, name: str, grid: tuple[int, int, int], threads: int, *arguments: ctypes.Structure) -> None:
        given = [type(argument).from_buffer_copy(argument) for argument in arguments]  # CUDA takes them by value
        self._driver.enqueue(partial(self._host.launch, name, grid, threads, *given))


def on_plans(
    monkeypatch: pytest.MonkeyPatch, library: ctypes.CDLL, bundle: Path, folder: Path, options: dict[str, Any]
) -> Pipeline:
    device, driver = host_device()
    backend = fake_trt.backend(monkeypatch, fake_trt.compiled(bundle, folder, None, options), device, driver)
    monkeypatch.setattr(TensorRtBackend, "kernels", lambda *_: StreamKernels(device, driver, library))
    return Pipeline.load(bundle, backend, warm=False)


@pytest.mark.parametrize("ampere", [False, True])
@pytest.mark.parametrize("tree", ["small_9", "mixed_4", "jacobi_6x3", "mixed_6x6"])
def test_images_are_those_of_the_cpu(
    small_vocabulary: Pipeline, library: ctypes.CDLL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tree: str,
    ampere: bool,
) -> None:  # fmt: skip
    """Trees that the plans have profiles for, and others, which are filled up."""
    manifest = small_vocabulary.manifest
    options: dict[str, Any] = {}
    if ampere:
        options = {"target": {"fixed_nodes": manifest.most_nodes}}
        for engine in manifest.engines:
            if pairs := steady_pairs(manifest, engine):
                options[engine] = {"fixed_pairs": max(count for count, _ in pairs)}
    pipe = on_plans(monkeypatch, library, small_vocabulary.folder, tmp_path, options)
    batch = pipe.batch(2, tree=tree)
    jobs = play(pipe, batch, [(0, 1, 0), (1, 2, 0), (2, 3, 0)], Alone(small_vocabulary, tree))
    assert len(jobs) == 3 and isinstance(batch._rounds, DeviceRounds)
    assert all(np.isfinite(job.result().codes).all() for job in jobs)
