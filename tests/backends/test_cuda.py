"""What users of `ort-cuda` are told where something is missing or fails, with a driver that is made up."""

from __future__ import annotations

import ctypes
import gc
import sys
import types
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest
from host_cuda import host_device

from cascade_trt.runtime.backends import BACKEND_NAMES, open_backend, ort_cuda
from cascade_trt.runtime.backends.device import CudaDevice, pieces
from cascade_trt.runtime.backends.kernels import on_cuda
from cascade_trt.runtime.backends.kernels.info import MachineCode
from cascade_trt.runtime.errors import CascadeError, CascadeWarning

NAMES = ("SUCCESS", "INVALID_VALUE", "OUT_OF_MEMORY", "NO_DEVICE", "ILLEGAL_ADDRESS", "SYSTEM_DRIVER_MISMATCH",
         "INSUFFICIENT_DRIVER", "ECC_UNCORRECTABLE")  # fmt: skip
CUresult = IntEnum("CUresult", {f"CUDA_ERROR_{name}": number for number, name in enumerate(NAMES)})
OK = CUresult(0)


class Driver:
    """cuda.bindings.driver as far as a device asks: `answers` are results of functions by name; others succeed."""

    CUresult = CUresult
    CUdevice_attribute = types.SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=75, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=76,
        CU_DEVICE_ATTRIBUTE_MAX_PITCH=11,
    )  # fmt: skip
    CUstreamCaptureMode = types.SimpleNamespace(CU_STREAM_CAPTURE_MODE_RELAXED=2)
    CUstream_flags = types.SimpleNamespace(CU_STREAM_NON_BLOCKING=1)

    def __init__(self, **answers: tuple | Exception) -> None:
        self.answers: dict[str, tuple | Exception] = {
            "cuDriverGetVersion": (OK, 13010), "cuDeviceGetCount": (OK, 2), "cuDeviceGet": (OK, 0),
            "cuDeviceGetName": (OK, b"A card\0\0"), "cuDeviceGetAttribute": (OK, 9),
            "cuDevicePrimaryCtxRetain": (OK, 1), "cuCtxGetStreamPriorityRange": (OK, 0, -5),
            "cuStreamCreateWithPriority": (OK, 7), "cuMemGetInfo": (OK, 3 << 29, 8 << 30),
            "cuMemAlloc": (OK, 4096), **answers,
        }  # fmt: skip

    def __getattr__(self, name: str) -> Callable[..., tuple]:
        def function(*_: Any) -> tuple:
            answer = self.answers.get(name, (OK,))
            if isinstance(answer, Exception):
                raise answer
            return answer

        return function


def test_an_old_card_is_refused() -> None:
    with pytest.raises(CascadeError, match="^A card has compute capability 6.6, 7.5 is needed"):
        CudaDevice(0, Driver(cuDeviceGetAttribute=(OK, 6)))


def failing(name: str) -> tuple:
    return (CUresult[f"CUDA_ERROR_{name}"], None)


def test_a_device_knows_its_name_and_capability() -> None:
    device = CudaDevice(1, Driver())
    assert (device.name, device.capability, device.stream, device.index) == ("A card", (9, 9), 7, 1)
    assert device.memory() == (3 << 29, 8 << 30)


@pytest.mark.parametrize(
    ("answers", "sentence"),
    [
        ({"cuInit": RuntimeError("libcuda.so.1 not found")},
         r"^no NVIDIA driver was found on this machine: install NVIDIA's driver 580 or newer, or draw with the"),
        ({"cuDriverGetVersion": (OK, 12040)},
         r"^the NVIDIA driver is too old \(it knows CUDA 12\.4, 13\.0 is needed\): install NVIDIA's driver 580"),
        ({"cuInit": failing("INSUFFICIENT_DRIVER")}, r"^the NVIDIA driver is too old for this CUDA: install NVIDIA's"),
        ({"cuInit": failing("SYSTEM_DRIVER_MISMATCH")}, r"^the NVIDIA driver's parts are of .* versions: restart this"),
        ({"cuInit": failing("NO_DEVICE")}, r"^CUDA shows no GPU \(CUDA_VISIBLE_DEVICES is '3'\): give it one, or draw"),
        ({"cuDeviceGetCount": (OK, 1)},
         r"^there is no GPU 1: CUDA shows 1 GPU \(CUDA_VISIBLE_DEVICES is '3'\), counted from 0: choose another\.$"),
        ({"cuStreamCreateWithPriority": failing("OUT_OF_MEMORY")},
         r"^the GPU has no memory left: draw fewer images at a time"),
    ],
)  # fmt: skip
def test_what_keeps_a_device_from_being_used(monkeypatch: pytest.MonkeyPatch, answers: dict, sentence: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(CascadeError, match=sentence):
        CudaDevice(1, Driver(**answers))


def test_negative_numbers_are_no_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(CascadeError, match="^there is no GPU -1: CUDA shows 2 GPUs, counted from 0"):
        CudaDevice(-1, Driver())


def test_memory_that_is_not_there() -> None:
    driver = Driver()
    device = CudaDevice(0, driver)
    driver.answers["cuMemAlloc"] = failing("OUT_OF_MEMORY")
    sentence = "^the cache needs 2.0 GiB of the GPU's memory, and 1.5 GiB are free: draw fewer images at a time"
    with pytest.raises(CascadeError, match=sentence):
        device.allocate(2 << 30, "the cache")


@pytest.mark.parametrize("name", ["ILLEGAL_ADDRESS", "ECC_UNCORRECTABLE"])
def test_a_device_that_is_lost(name: str) -> None:
    driver = Driver()
    device = CudaDevice(0, driver)
    driver.answers["cuEventSynchronize"] = failing(name)
    with pytest.raises(CascadeError, match=rf"^the GPU has stopped working for this process \({name}\): start again"):
        device.synchronize()
    assert device.synchronized == 0


def test_any_other_refusal() -> None:
    driver = Driver(cuMemcpyHtoDAsync=failing("INVALID_VALUE"))
    with pytest.raises(CascadeError, match=r"^CUDA refuses a call \(INVALID_VALUE\): start again, and see `cascade"):
        CudaDevice(0, driver).upload(1, 2, 3)


@pytest.mark.parametrize("size", [1, 7, 8])
@pytest.mark.parametrize("shift", [-9, -3, -1, 1, 2, 7, 9])
def test_pieces_move_what_overlaps_itself(size: int, shift: int) -> None:
    memory = list(range(32))
    wanted = memory.copy()
    wanted[12 + shift : 12 + shift + size] = memory[12 : 12 + size]
    for start, length in pieces(size, shift):
        assert length <= abs(shift)
        memory[12 + shift + start : 12 + shift + start + length] = memory[12 + start : 12 + start + length]
    assert memory == wanted
    assert list(pieces(size, 0)) == []


# the backend ----------------------------------------------------------------------------------------------------
def test_nothing_is_freed_during_a_capture() -> None:
    """Python may look for garbage at any time, and CUDA lets nobody free memory while the stream is captured."""
    device, driver = host_device()
    cycle: list[Any] = [device.allocate(8)]
    cycle.append(cycle)
    held, thresholds = len(driver.blocks), gc.get_threshold()
    try:
        with device.capture():
            gc.set_threshold(1)
            del cycle
            assert [[number] for number in range(1000)] and len(driver.blocks) == held
        assert gc.isenabled() and [[number] for number in range(1000)]
    finally:
        gc.set_threshold(*thresholds)
    gc.collect()
    assert len(driver.blocks) == held - 1


def test_it_has_a_name() -> None:
    assert "ort-cuda" in BACKEND_NAMES


def test_onnx_runtime_for_cpus_is_not_enough() -> None:
    with pytest.raises(CascadeError, match="^the installed ONNX Runtime has no CUDA provider: on a machine with an"):
        open_backend("ort-cuda")


def installed(monkeypatch: pytest.MonkeyPatch, version: str) -> types.SimpleNamespace:
    """An ONNX Runtime with the CUDA provider."""
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    ort = types.SimpleNamespace(
        __version__=version, InferenceSession=None, get_available_providers=lambda: providers,
        preload_dlls=lambda: None, set_default_logger_severity=lambda _: None,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "onnxruntime", ort)
    return ort


def test_an_old_onnx_runtime_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "1.30.2")
    wanted = r"^ONNX Runtime 1.30.2 is too old, 1.31 is needed: run `pip install 'cascade-trt\[cuda\]'`\.$"
    with pytest.raises(CascadeError, match=wanted):
        open_backend("ort-cuda")


def test_cuda_bindings_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "1.31.1")
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    wanted = r"^cuda-bindings cannot be loaded \(.*\): run `pip install 'cascade-trt\[cuda\]'`, or draw with the"
    with pytest.raises(CascadeError, match=wanted):
        open_backend("ort-cuda")


def test_libraries_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless pip has them."""
    found = {"libcudart.so.13"}

    def load(name: str) -> None:
        if name not in found:
            raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", load)
    ort = types.SimpleNamespace(preload_dlls=lambda: print("Failed to load"))
    wanted = "^ONNX Runtime needs libcublas.so.13, .*, libcudnn.so.9: run `pip install 'onnxruntime-gpu.cuda,cudnn.'`"
    with pytest.raises(CascadeError, match=wanted):
        ort_cuda._load_libraries(ort)
    ort_cuda._load_libraries(types.SimpleNamespace(preload_dlls=lambda: found.update(ort_cuda._LIBRARIES)))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer of size 9",
         "^the GPU has not enough memory to run target.onnx: draw fewer images at a time"),
        ("Non-zero status. CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=x ; expr=y",
         r"^the GPU failed when it had to run target.onnx \(an illegal memory access was encountered\): start again"),
        ("[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Could not find an implementation for Resize(19) node 'a'",
         "^ONNX Runtime cannot run target.onnx, for it has no kernel for Resize in this precision: build the bundle"),
        ("bad\nlines", r"^ONNX Runtime on this GPU cannot run target.onnx \(bad\): build the bundle again\.$"),
    ],
)  # fmt: skip
def test_what_onnx_runtime_says_is_a_sentence(text: str, sentence: str) -> None:
    session = types.SimpleNamespace(
        get_inputs=list, get_outputs=list, get_input_memory_infos=list, run_with_iobinding=None
    )
    engine = ort_cuda.OrtCudaEngine(None, session, CudaDevice(0, Driver()), "target.onnx", graphs=True)

    def fail(*_: object) -> None:
        raise RuntimeError(text)

    session.run_with_iobinding = fail
    with pytest.raises(CascadeError, match=sentence):
        engine.run(None, None)


def test_bfloat16_needs_a_card_that_has_it() -> None:
    session = types.SimpleNamespace(
        get_inputs=lambda: [types.SimpleNamespace(name="embeds", type="tensor(bfloat16)")], get_outputs=list,
        get_input_memory_infos=lambda: [types.SimpleNamespace(name="Cuda")],
    )  # fmt: skip
    device = CudaDevice(0, Driver(cuDeviceGetAttribute=(OK, 7)))
    with pytest.raises(CascadeError, match=r"^target.onnx computes in bfloat16, which this GPU \(A card\) does not:"):
        ort_cuda.OrtCudaEngine(None, session, device, "target.onnx", graphs=True)


def test_without_kernels_rounds_are_the_hosts_and_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = CudaDevice(0, Driver(cuLibraryLoadData=(OK, 5)))
    with pytest.warns(CascadeWarning, match="^rounds run on the host, which is slower: .* holds no kernels: run `casc"):
        assert on_cuda.open_kernels(device, tmp_path, []) is None
    monkeypatch.setattr(on_cuda, "kernels_for", lambda *_: MachineCode(b"code", "sm90"))
    assert isinstance(on_cuda.open_kernels(device, tmp_path, []), on_cuda.CudaKernels)
    refusing = CudaDevice(0, Driver(cuLibraryLoadData=failing("INVALID_VALUE")))
    with pytest.raises(CascadeError, match="CUDA refuses a call"):
        on_cuda.open_kernels(refusing, tmp_path, [])
