"""Target names, and what cannot be compiled for them."""

from __future__ import annotations

import re
import sys

import pytest

from cascade_trt.cli import cli
from cascade_trt.engines.tensorrt import loader
from cascade_trt.engines.tensorrt.build import refusal
from cascade_trt.engines.tensorrt.target import (
    NAMES,
    Target,
    check_head_dims,
    joint_name,
    parse_target,
    plan_folder,
    sharing,
)
from cascade_trt.runtime.errors import CascadeError


@pytest.mark.parametrize("name", NAMES)
def test_every_name_reads_back(name: str) -> None:
    assert parse_target(name).name == name


@pytest.mark.parametrize("name", ["rtx", "rtx:sm91", "rtx:89", "cuda", "tensorrt:sm89", ""])
def test_an_unknown_name_is_told_with_the_known_ones(name: str) -> None:
    with pytest.raises(CascadeError, match="choose one of tensorrt, rtx:sm86"):
        parse_target(name)


@pytest.mark.parametrize(
    ("name", "said"),
    [("rtx:sm90", "data-center GPUs such as H100"), ("rtx:sm80", "data-center GPUs such as A100"),
     ("rtx:sm75", "no fp32 matrix products for Turing .*ONNX Runtime with CUDA")],
)  # fmt: skip
def test_a_gpu_that_tensorrt_rtx_cannot_serve_is_told_what_can(name: str, said: str) -> None:
    with pytest.raises(CascadeError, match=f"{said}.*--target tensorrt on that GPU"):
        parse_target(name)


@pytest.mark.parametrize("command", ["build", "compile"])
def test_the_help_names_every_target_and_no_other(command: str) -> None:
    shown = next(option.help or "" for option in cli.commands[command].params if option.name == "targets")
    spelt = re.findall(r"\b(?:rtx:)?(sm\d+)", shown)
    assert [f"rtx:{sm}" for sm in spelt] == [name for name in NAMES if name != "tensorrt"] and "tensorrt" in shown


def test_compute_capability() -> None:
    assert parse_target("rtx:sm89").compute_capability == (8, 9)
    assert parse_target("rtx:sm120").compute_capability == (12, 0)
    assert parse_target("tensorrt").compute_capability is None


def test_targets_of_one_plan() -> None:
    sm86, sm120, local = (parse_target(name) for name in ("rtx:sm86", "rtx:sm120", "tensorrt"))
    assert sharing([sm120, local, sm86]) == [(local,), (sm86, sm120)]
    assert joint_name([sm86, sm120]) == "rtx:sm86+sm120" and joint_name([local]) == "tensorrt"
    assert plan_folder([sm86, sm120]) == "tensorrt-rtx/sm86-sm120" and plan_folder([local]) == "tensorrt/local"


def test_odd_heads_are_a_sentence() -> None:
    check_head_dims([64])
    with pytest.raises(CascadeError, match="no attention kernel for head_dim 100.*use ONNX Runtime"):
        check_head_dims([64, 100])


def test_tensorrts_refusals_become_one_sentence() -> None:
    target = [Target("tensorrt-rtx", "sm75")]
    trace = "Error Code 1: Myelin ([pass.cpp:337] for Turing (SM75): FP32 GEMM is not supported. In compileG)"
    assert "Turing" in refusal("target.onnx", target, "fp16", [trace])
    trace = "CHECK failed. Attention operation was not supported by a dedicated kernel.\n (See https://...)"
    assert "no attention kernel" in refusal("target.onnx", target, "fp16", [trace])
    assert "memory ran out" in refusal("target.onnx", target, "fp16", ["Error Code 2: OutOfMemory (...)"])
    other = refusal("target.onnx", target, "fp16", ["something new\nand long"])
    assert "something new" in other and "\n" not in other


def test_a_missing_package_is_a_sentence_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYGRAPHY_USE_TENSORRT_RTX", "0")
    monkeypatch.delitem(sys.modules, "polygraphy.config", raising=False)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(CascadeError, match="does not load|is not installed"):
        loader.import_tensorrt("tensorrt")


def test_an_old_version_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import types

    monkeypatch.setenv("POLYGRAPHY_USE_TENSORRT_RTX", "0")
    monkeypatch.delitem(sys.modules, "polygraphy.config", raising=False)
    old = types.SimpleNamespace(__version__="10.3.0", Builder=object)
    monkeypatch.setitem(sys.modules, "tensorrt", old)
    with pytest.raises(CascadeError, match=r"tensorrt 10.3.0 is too old.*10.15"):
        loader.import_tensorrt("tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt", types.SimpleNamespace(__version__="11.4.0"))
    with pytest.raises(CascadeError, match="without its libraries"):
        loader.import_tensorrt("tensorrt")
