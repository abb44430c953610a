"""The kernels as machine code: compiled by NVRTC where it is installed, chosen and checked anywhere."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from cascade_trt.engines import kernels
from cascade_trt.engines.kernels import ARCHITECTURES, compile_kernels, kernel_source
from cascade_trt.runtime.backends.kernels.info import KernelInfo, check_kernels, serving, source_digest, sources
from cascade_trt.runtime.backends.kernels.layout import THREADS
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
    check_kernels(tmp_path, found, kernel_source())
    for info in found:
        code = (tmp_path / info.file).read_bytes()
        assert code.startswith(b"\x7fELF") and all(f".text.{name}\0".encode() in code for name in THREADS)
    assert {path.name for path in (tmp_path / "kernels").iterdir()} == {Path(info.file).name for info in found}
    (again,) = compile_kernels(tmp_path / "again", ["sm90"])
    assert again == found[ARCHITECTURES.index("sm90")]


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
    with pytest.raises(CascadeError, match=r"cuda-bindings is not installed.*pip install 'cascade-trt\[cuda\]'"):
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


def test_kernels_that_are_not_whole(tmp_path: Path) -> None:
    file = tmp_path / "a.cubin"
    file.write_bytes(b"code")
    whole = KernelInfo("a.cubin", "sm90", "nvrtc 13.5", kernel_source(), 4, whole_digest(file))
    check_kernels(tmp_path, [whole], kernel_source())
    with pytest.raises(CascadeError, match="belong to another version"):
        check_kernels(tmp_path, [replace(whole, source="0")], kernel_source())
    file.write_bytes(b"Code")
    with pytest.raises(CascadeError, match="have changed"):
        check_kernels(tmp_path, [whole], kernel_source())
    file.unlink()
    with pytest.raises(CascadeError, match="cannot be read"):
        check_kernels(tmp_path, [whole], kernel_source())


def test_the_digest_is_that_of_source_and_options() -> None:
    assert kernel_source() == source_digest(kernels.OPTIONS) != source_digest()
    assert {"round.h", "noise.cu", "walk_by_rule.cu"} <= set(sources())
