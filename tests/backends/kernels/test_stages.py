"""`benchmarks/gpu_stages.py` on rounds of the device: nothing of a round is left out, nothing of an image counts."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest
from host_cuda import host_device
from kernels.backend import KernelsBackend

from cascade_trt.benchmarks.gpu_results import HostRounds
from cascade_trt.benchmarks.gpu_stages import Timed, steady
from cascade_trt.runtime.pipeline import Pipeline

HOST, OF_EXACT = {"embed", "target"}, {f"kernel {name}" for name in ("noise", "place", "walk", "commit", "advance")}


@pytest.mark.parametrize(
    ("tree", "more"), [("none", set()), ("jacobi_8", set()), ("mixed_6x6", {"draft", "kernel pairs"})]
)
@pytest.mark.parametrize("slots", [1, 3])
def test_stages_of_a_round(
    library: ctypes.CDLL, small_vocabulary: Pipeline, tree: str, more: set[str], slots: int
) -> None:
    timed = Timed(KernelsBackend(library))
    with Pipeline.load(small_vocabulary.folder, timed) as pipe:  # type: ignore[arg-type] - as a backend
        row = steady(pipe, timed, slots, tree)
    assert set(row["ms_by_stage"]) == HOST | OF_EXACT | more
    assert row["rounds"] > 1 and 0 < row["gap"] < 1
    assert sum(row["ms_by_stage"].values()) == pytest.approx(row["ms_a_round"] * (1 - row["gap"]))


@pytest.mark.parametrize("wrap", [lambda backend: backend, HostRounds])
def test_marks_on_a_device_tell_the_time(wrap: Any) -> None:
    device, _ = host_device()
    timed = Timed(wrap(SimpleNamespace(device=device)))
    assert timed.clock == "CUDA events"
    one, two = timed.mark(), timed.mark()
    timed.wait()
    assert two.since(one) >= 0


def test_rounds_of_the_host_have_no_kernels(library: ctypes.CDLL, small_vocabulary: Pipeline) -> None:
    timed = Timed(HostRounds(KernelsBackend(library)))  # type: ignore[arg-type] - as a backend
    with Pipeline.load(small_vocabulary.folder, timed) as pipe:  # type: ignore[arg-type] - as a backend
        assert set(steady(pipe, timed, 1, "jacobi_8")["ms_by_stage"]) == HOST
