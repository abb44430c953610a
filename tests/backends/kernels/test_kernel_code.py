"""The kernels as machine code: compiled by NVRTC where it is installed, chosen and checked anywhere."""

from __future__ import annotations

import ctypes
import re
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import cascade_trt
from cascade_trt.engines import kernels
from cascade_trt.engines.kernels import compile_kernels
from cascade_trt.runtime.backends.kernels.info import (
    ARCHITECTURES,
    OPTIONS,
    KernelInfo,
    MachineCode,
    kernel_problem,
    kernel_source,
    kernels_for,
    read_code,
    serving,
    source_digest,
    sources,
)
from cascade_trt.runtime.backends.kernels.layout import THREADS, Cache, Round
from cascade_trt.runtime.backends.kernels.rules import SETTING, Rules
from cascade_trt.runtime.digests import whole_digest
from cascade_trt.runtime.errors import CascadeError


@pytest.fixture
def nvrtc() -> None:
    try:
        kernels._import_nvrtc()
    except CascadeError as error:
        pytest.skip(f"NVRTC is not here: {error}")


@pytest.mark.usefixtures("nvrtc")
def test_all_architectures(tmp_path: Path) -> None:
    seen: list[str] = []
    found = compile_kernels(tmp_path, progress=seen.append)
    assert seen == list(ARCHITECTURES) == [info.architecture for info in found]
    for info in found:
        assert kernel_problem(tmp_path, info, kernel_source()) is None
        code = read_code(tmp_path, info)
        assert code.startswith(b"\x7fELF") and all(f".text.{name}\0".encode() in code for name in THREADS)
    assert {path.name for path in (tmp_path / "kernels").iterdir()} == {Path(info.file).name for info in found}
    (again,) = compile_kernels(tmp_path / "again", ["sm90"])
    assert again == found[ARCHITECTURES.index("sm90")]


@pytest.mark.usefixtures("nvrtc")
def test_arguments_lie_as_the_gpu_s_compiler_lays_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes and offsets of all structs, by NVRTC, which has rules of its own."""
    wanted = {f"sizeof({struct.__name__})": ctypes.sizeof(struct) for struct in (Round, Cache, Rules)}
    for struct in (Round, Cache, Rules):
        wanted |= {f"__builtin_offsetof({struct.__name__}, {field[0]})": getattr(struct, field[0]).offset
                   for field in struct._fields_}  # fmt: skip
    wanted["sizeof(RuleSetting)"] = SETTING.itemsize
    assert SETTING.fields is not None
    wanted |= {f"__builtin_offsetof(RuleSetting, {name})": field[1] for name, field in SETTING.fields.items()}
    said = "\n".join(f"static_assert({what} == {size});" for what, size in wanted.items())
    monkeypatch.setattr(kernels, "sources", lambda: {**sources(), "zz.cu": said})
    compile_kernels(tmp_path, ["sm90"])
    monkeypatch.setattr(kernels, "sources", lambda: {**sources(), "zz.cu": "static_assert(sizeof(Round) == 8);"})
    with pytest.raises(CascadeError, match=r"refuses .* sm90 \(zz.cu\(1\): error: static assertion failed"):
        compile_kernels(tmp_path, ["sm90"])


def test_every_kernel_has_its_number_of_threads() -> None:
    text = "".join(sources().values())
    assert set(THREADS) == {part.split("(")[0] for part in text.split('extern "C" __global__ void ')[1:]}


@pytest.mark.usefixtures("nvrtc")
def test_what_nvrtc_does_not_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CascadeError, match=r"compiles nothing for 'sm61': choose among sm75, .*sm90"):
        compile_kernels(tmp_path, ["sm90", "sm61"])
    monkeypatch.setattr(kernels, "sources", lambda: {"walk.cu": "__device__ int x = y;"})
    with pytest.raises(CascadeError, match=r'refuses the kernels for sm90 \(walk.cu\(1\): error: .*"y" is undefined'):
        compile_kernels(tmp_path, ["sm90"])


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", None)
    with pytest.raises(CascadeError, match=r"cuda-bindings is not installed.*pip install .*cascade-trt\[cuda\]"):
        compile_kernels(tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise RuntimeError("Failure finding nvrtc*.so\nand more")

    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", SimpleNamespace(nvrtcVersion=missing))
    with pytest.raises(CascadeError, match=r"cannot be loaded \(Failure finding nvrtc\*.so\): run"):
        compile_kernels(tmp_path)


def info(architecture: str) -> KernelInfo:
    return KernelInfo(f"kernels/{architecture}.cubin", architecture, "nvrtc 13.5", "a", 1, "b")


@pytest.mark.parametrize(
    ("capability", "architecture"),
    [
        ((7, 5), "sm75"), ((8, 0), "sm80"), ((8, 6), "sm86"), ((8, 9), "sm89"), ((9, 0), "sm90"), ((10, 0), "sm100"),
        ((10, 3), "sm100"), ((12, 0), "sm120"), ((12, 1), "sm120"),
        ((7, 0), None), ((7, 2), None), ((8, 7), None), ((11, 0), None), ((13, 0), None),
    ],
)  # fmt: skip
def test_which_kernels_serve_a_gpu(capability: tuple[int, int], architecture: str | None) -> None:
    found = serving([info(name) for name in ARCHITECTURES], capability)
    assert (None if found is None else found.architecture) == architecture


def test_a_board_takes_its_own_and_newer_code_serves_no_older_gpu() -> None:
    assert serving([info("sm87"), info("sm86")], (8, 7)) == info("sm87")
    assert serving([info("sm87"), info("sm86")], (8, 9)) == info("sm86")
    assert serving([info("sm89")], (8, 6)) is None


def entry(folder: Path, architecture: str, source: str = "") -> KernelInfo:
    """Kernels whose machine code is a text."""
    (folder / f"{architecture}.cubin").write_bytes(code := f"code of {architecture}".encode())
    digest = whole_digest(folder / f"{architecture}.cubin")
    return KernelInfo(f"{architecture}.cubin", architecture, "nvrtc 13.5", source or kernel_source(), len(code), digest)


def none(folder: Path, kernels: list[KernelInfo], capability: tuple[int, int]) -> str:
    """Why there are none. It is one sentence, which can follow a colon."""
    found = kernels_for(folder, kernels, capability)
    assert found.code is None and found.why.endswith(".") and "\n" not in found.why and not found.why[0].isupper()
    return found.why.replace(str(folder), "BUNDLE")


def test_the_code_for_a_gpu(tmp_path: Path) -> None:
    held = [entry(tmp_path, name) for name in ("sm80", "sm86", "sm90")]
    assert kernels_for(tmp_path, held, (8, 9)) == MachineCode(b"code of sm86", "sm86")
    assert kernels_for(tmp_path, held, (9, 0)) == MachineCode(b"code of sm90", "sm90")
    fits_better = replace(held[1], source="0")  # but is of another version
    assert kernels_for(tmp_path, [held[0], fits_better], (8, 9)) == MachineCode(b"code of sm80", "sm80")


def test_why_a_gpu_gets_no_kernels(tmp_path: Path) -> None:
    sm90, sm87, old = entry(tmp_path, "sm90"), entry(tmp_path, "sm87"), entry(tmp_path, "sm80", "0")
    again = "run `cascade-trt compile BUNDLE --target cuda"
    assert none(tmp_path, [], (9, 0)) == f"BUNDLE holds no kernels: {again}`."
    assert none(tmp_path, [sm90, sm87], (10, 3)) == (
        "none of the kernels in BUNDLE fits this GPU (compute capability 10.3; they are for sm90, sm87): "
        f"{again}:sm103`."
    )
    assert none(tmp_path, [sm90, old], (8, 9)) == (
        f"the kernels in BUNDLE belong to another version of cascade-trt: {again}`."
    )
    for held in ([], [sm90], [old]):
        assert "need a GPU of compute capability 7.5 or newer, this one has 7.0" in none(tmp_path, held, (7, 0))
    (tmp_path / sm87.file).write_bytes(b"Code of sm87")
    assert none(tmp_path, [sm87], (8, 7)) == (
        f"the kernels BUNDLE/sm87.cubin have changed since they were compiled: {again}:sm87`."
    )
    (tmp_path / sm90.file).write_bytes(b"code of sm9")
    assert none(tmp_path, [sm90], (9, 0)) == (
        f"the kernels BUNDLE/sm90.cubin have changed since they were compiled: {again}`."
    )
    (tmp_path / sm90.file).unlink()
    assert "BUNDLE/sm90.cubin cannot be read (No such file or directory): " in none(tmp_path, [sm90], (9, 0))


def test_a_file_of_another_size_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be of any."""
    info = entry(tmp_path, "sm90")
    (tmp_path / info.file).write_bytes(b"code of sm90, and more")

    def fails(_: Path) -> bytes:
        raise AssertionError

    monkeypatch.setattr(Path, "read_bytes", fails)
    with pytest.raises(CascadeError, match="have changed since"):
        read_code(tmp_path, info)


def test_what_is_to_be_installed_is_what_the_extras_have() -> None:
    extras = tomllib.loads((Path(cascade_trt.__file__).parent / "pyproject.toml").read_text())
    extras = extras["project"]["optional-dependencies"]
    said = re.findall(r"'(\S+?)'", kernels._INSTALL)
    assert len(said) == 2 and set(said) <= set(extras["cuda"]) & set(extras["dev"])


def test_the_digest_is_that_of_source_and_options() -> None:
    assert kernel_source() == source_digest(OPTIONS) != source_digest()
    assert {"round.h", "noise.cu", "walk_by_rule.cu"} <= set(sources())
