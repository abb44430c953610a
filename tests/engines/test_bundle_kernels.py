"""Kernels in a bundle, through the command line: compiled, kept, compiled again, carried over, told when they go."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest_trt import TARGET
from support import save_checkpoints

from cascade_trt.cli import cli
from cascade_trt.engines import bundle_kernels, compile, kernels
from cascade_trt.engines.bundle_kernels import split_targets
from cascade_trt.engines.publish import amend_bundle
from cascade_trt.engines.tensorrt.target import parse_target
from cascade_trt.runtime.backends.kernels.info import ARCHITECTURES, kernel_source, kernels_for
from cascade_trt.runtime.bundle import MANIFEST, KernelInfo, Manifest, read_manifest
from cascade_trt.runtime.errors import CascadeError
from cascade_trt.runtime.files import check_files

SM90, SM80 = ("--target", "cuda:sm90"), ("--target", "cuda:sm80")
ONE_VERSION, ANOTHER = "nvrtc 13.5", "nvrtc 13.6"


@pytest.fixture
def nvrtc() -> None:
    try:
        kernels.compiler()
    except CascadeError as error:
        pytest.skip(f"NVRTC is not here: {error}")


@pytest.fixture
def fake_nvrtc(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Machine code in a blink; the list names what was compiled, each with its compiler."""
    compiled: list[str] = []

    def compile_one(_: object, architecture: str) -> bytes:
        compiled.append(architecture)
        return f"{architecture} by {kernels.compiler()}".encode()

    monkeypatch.setattr(kernels, "_compile", compile_one)
    monkeypatch.setattr(kernels, "_import_nvrtc", lambda: None)
    install(monkeypatch, ONE_VERSION)
    return compiled


def install(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    for module in (kernels, bundle_kernels):
        monkeypatch.setattr(module, "compiler", lambda _=(): version)


@pytest.fixture
def bundle(plain_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain_bundle, tmp_path / "bundle"))


def run(*command: object) -> str:
    """What a command prints on one line, without the bar."""
    result = CliRunner().invoke(cli, [*map(str, command)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return " ".join(result.stdout.split())


def refused(*command: object) -> str:
    result = CliRunner().invoke(cli, [*map(str, command)], catch_exceptions=False)
    lines = result.stderr.strip().splitlines()
    assert result.exit_code == 2 and len(lines) == 1, result.output
    return lines[0]


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def held(folder: Path) -> list[str]:
    """Architectures, after the check that there are their files and no others, all whole."""
    manifest = read_manifest(folder)
    check_files(folder, manifest, thorough=True)
    assert {str(path.relative_to(folder)) for path in folder.rglob("*.cubin")} == {i.file for i in manifest.kernels}
    for info in manifest.kernels:
        assert kernels_for(folder, manifest.kernels, info.capability).architecture == info.architecture
    return [info.architecture for info in manifest.kernels]


@pytest.mark.usefixtures("nvrtc")
def test_kernels_of_one_architecture(bundle: Path) -> None:
    """Really compiled: the file is machine code, and the bundle says what it is."""
    said = run("compile", bundle, *SM90, *SM90)
    assert f"{bundle}: kernels compiled for sm90, " in said and f"{kernels.compiler()}, " in said
    (info,) = read_manifest(bundle).kernels
    assert held(bundle) == ["sm90"] and info.source == kernel_source() and info.compiler == kernels.compiler()
    assert (bundle / info.file).read_bytes().startswith(b"\x7fELF")
    before = everything(bundle)
    assert run("compile", bundle, *SM90) == f"{bundle}: the kernels for sm90 are up to date"
    assert everything(bundle) == before
    shown = run("info", bundle)
    assert f"kernels sm90: {info.bytes / 1000:.1f} kB, {info.compiler}" in shown


@pytest.fixture
def no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong must be told before the work."""

    def fails(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("cascade_trt.export.build.build_bundle", fails)


@pytest.mark.usefixtures("nvrtc", "no_export")
def test_what_nvrtc_does_not_know(bundle: Path, tmp_path: Path) -> None:
    before = everything(bundle)
    said = refused("compile", bundle, *SM90, "--target", "cuda:sm61")
    assert "compiles nothing for 'sm61': choose among sm75, " in said
    assert everything(bundle) == before
    out = tmp_path / "new"
    assert "compiles nothing for 'sm61'" in refused("build", "emoji", "--target", "cuda:sm61", "--out", out)
    assert not out.exists()


def test_all_architectures(bundle: Path, fake_nvrtc: list[str]) -> None:
    run("compile", bundle, *SM80)
    said = run("compile", bundle, "--target", "cuda")
    assert fake_nvrtc == ["sm80", "sm75", "sm86", "sm89", "sm90", "sm100", "sm120"] and "; up to date: sm80" in said
    assert held(bundle) == list(ARCHITECTURES)
    assert f"the kernels for {', '.join(ARCHITECTURES)} are up to date" in run("compile", bundle, "--target", "cuda")
    assert len(fake_nvrtc) == 7


def test_names_of_targets() -> None:
    texts = ["cuda:sm90", "rtx:sm89", "cuda:sm90", "cuda:sm87", "rtx:sm89"]
    assert split_targets(texts) == ([parse_target("rtx:sm89")], ["sm90", "sm87"])
    assert split_targets(["cuda:sm90", "cuda"])[1] == ["sm90", *(name for name in ARCHITECTURES if name != "sm90")]
    for text in ("cud", "cuda:", "cuda:90", "cuda:sm", "cuda:sm9", "cuda:sm_90", "cuda:SM90", "cuda:sm90,sm80", "CUDA",
                 "cuda-sm90", "", " cuda"):  # fmt: skip
        with pytest.raises(CascadeError, match=f"unknown target '{text}': choose one of cuda, cuda:sm75, .* rtx:sm86"):
            split_targets([text])
    with pytest.raises(CascadeError, match="data-center GPUs such as H100"):
        split_targets(["rtx:sm90"])


@pytest.mark.usefixtures("no_export")
def test_without_the_package(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", None)
    before = everything(bundle)
    for command in (["compile", bundle], ["build", "emoji", "--out", bundle]):
        said = refused(*command, *SM90)
        assert "pip install 'cuda-bindings>=13,<14' 'nvidia-cuda-nvrtc>=13,<14'" in said and "cascade-trt[cuda]" in said
    assert everything(bundle) == before


def test_another_compiler_and_damage(
    bundle: Path, fake_nvrtc: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run("compile", bundle, *SM80, *SM90)
    files = {info.architecture: bundle / info.file for info in read_manifest(bundle).kernels}
    files["sm80"].write_bytes(files["sm80"].read_bytes()[:-1] + b"?")
    assert "have changed since they were compiled: run " in run("info", bundle)
    assert "kernels compiled for sm80, " in run("compile", bundle, *SM80, *SM90)
    files["sm90"].unlink()
    assert "cannot be read (No such file or directory): run " in run("info", bundle)
    assert "kernels compiled for sm90, " in run("compile", bundle, *SM80, *SM90)
    assert fake_nvrtc == ["sm80", "sm90", "sm80", "sm90"] and held(bundle) == ["sm80", "sm90"]
    install(monkeypatch, ANOTHER)
    run("compile", bundle, *SM90)
    assert [info.compiler for info in read_manifest(bundle).kernels] == [ONE_VERSION, ANOTHER]
    assert held(bundle) == ["sm80", "sm90"] and not files["sm90"].exists()


def of_another_version(folder: Path) -> None:
    def change(_: Path, manifest: Manifest) -> Manifest:
        return replace(manifest, kernels=[replace(info, source="0") for info in manifest.kernels])

    amend_bundle(folder, change)


def test_kernels_of_another_version(bundle: Path, fake_nvrtc: list[str]) -> None:
    """They serve nobody: what is asked for is compiled again, the others go and are named."""
    run("compile", bundle, "--target", "cuda:sm75", *SM80, *SM90)
    of_another_version(bundle)
    said = run("info", bundle)
    assert said.count("belong to another version of cascade-trt: run ") == 1
    said = run("compile", bundle, *SM90)
    assert "the kernels for sm75, sm80 (they belong to another version of cascade-trt: run " in said
    assert held(bundle) == ["sm90"] and fake_nvrtc[3:] == ["sm90"]


@pytest.mark.usefixtures("fake_nvrtc")
def test_the_published_bundle_s_files_are_not_written_through(bundle: Path, tmp_path: Path) -> None:
    run("compile", bundle, *SM90)
    (info,) = read_manifest(bundle).kernels
    outside = tmp_path / "outside"
    outside.write_bytes(b"mine")
    (bundle / info.file).unlink()
    (bundle / info.file).symlink_to(outside)
    run("compile", bundle, *SM90)
    assert outside.read_bytes() == b"mine" and held(bundle) == ["sm90"] and not (bundle / info.file).is_symlink()
    shutil.rmtree(bundle / "kernels")
    (tmp_path / "folder").mkdir()
    (bundle / "kernels").symlink_to(tmp_path / "folder")
    assert "is a link, and kernels lie in the bundle itself" in refused("compile", bundle, *SM90)
    assert list((tmp_path / "folder").iterdir()) == []


@pytest.mark.usefixtures("fake_nvrtc")
def test_a_link_that_leaves_the_bundle(bundle: Path, tmp_path: Path) -> None:
    run("compile", bundle, *SM90)
    (info,) = read_manifest(bundle).kernels
    (bundle / info.file).rename(tmp_path / "elsewhere")
    (bundle / info.file).symlink_to(tmp_path / "elsewhere")
    assert f"{info.file} of bundle {bundle} is a link that leaves it" in refused("info", bundle)


@pytest.mark.usefixtures("fake_nvrtc")
@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(28, "No space left on device"), CascadeError("no.")])
def test_a_failure_leaves_the_bundle(bundle: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException) -> None:
    run("compile", bundle, *SM90)
    before = everything(bundle)

    def fails(_: object, architecture: str) -> bytes:
        if architecture == "sm80":
            raise failure
        return b"code"

    monkeypatch.setattr(kernels, "_compile", fails)
    result = CliRunner().invoke(cli, ["compile", str(bundle), "--target", "cuda"])
    assert result.exit_code == (1 if isinstance(failure, KeyboardInterrupt) else 2)
    assert everything(bundle) == before and [path.name for path in bundle.parent.iterdir()] == ["bundle"]


@pytest.mark.usefixtures("nvrtc")
def test_a_kill_leaves_the_bundle(bundle: Path) -> None:
    before = everything(bundle)
    command = [sys.executable, "-m", "cascade_trt", "compile", bundle, "--target", "cuda"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not any(bundle.parent.glob(".bundle.*.part/kernels/*.cubin")) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None  # it is at work
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert any(bundle.parent.glob(".bundle.*.part")) and everything(bundle) == before
    amend_bundle(bundle, lambda _, manifest: manifest)
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_engines_and_kernels_at_once(bundle: Path, fake_nvrtc: list[str], fake_worker: list[str]) -> None:
    said = run("compile", bundle, *SM90, "--target", TARGET)
    assert "kernels compiled for sm90" in said and "5 TensorRT engines compiled" in said and said.count("next: ") == 1
    assert held(bundle) == ["sm90"] and len(read_manifest(bundle).plans) == len(fake_worker) == 5
    said = run("compile", bundle, *SM90, "--target", TARGET)
    assert "the kernels for sm90 are up to date" in said and "all 5 TensorRT engines are up to date" in said
    assert len(fake_nvrtc) == 1 and "next" not in said


@pytest.mark.usefixtures("fake_nvrtc")
def test_a_missing_tensorrt_is_told_before_kernels_are_compiled(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile, "installed_version", lambda _: None)
    before = everything(bundle)
    assert "tensorrt-rtx is not installed" in refused("compile", bundle, *SM90, "--target", TARGET)
    assert everything(bundle) == before


def test_a_bundle_that_is_built_again(
    tmp_path: Path, fake_nvrtc: list[str], fake_worker: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels know nothing of weights: all that are whole and of this version stay."""
    checkpoints, out = save_checkpoints(tmp_path / "c"), tmp_path / "b"
    other = save_checkpoints(tmp_path / "other", seed=1)

    def build(arguments: list[object], *options: str) -> str:
        return run("build", *arguments, "--tree", "small_9", "--out", out, *options)

    said = build(checkpoints, *SM80, *SM90)
    assert "kernels compiled for sm80, sm90, " in said and f"info {out}" in said
    assert "the kernels for sm80, sm90 are up to date" in build(checkpoints, *SM80, *SM90)
    for arguments in (checkpoints, other):
        assert "dropped" not in (said := build(arguments)) and "kept" not in said
        assert held(out) == ["sm80", "sm90"] and fake_nvrtc == ["sm80", "sm90"]
    said = build(other, "--batch", "2", *SM90, "--target", "cuda:sm75", "--target", TARGET)
    assert "kernels compiled for sm75, " in said and "up to date: sm90" in said and len(fake_worker) == 5
    assert held(out) == ["sm75", "sm80", "sm90"]
    install(monkeypatch, ANOTHER)
    build(other, "--batch", "3", *SM90)
    compilers = {info.architecture: info.compiler for info in read_manifest(out).kernels}
    assert compilers == {"sm75": ONE_VERSION, "sm80": ONE_VERSION, "sm90": ANOTHER} and len(held(out)) == 3
    path = out / next(info.file for info in read_manifest(out).kernels if info.architecture == "sm80")
    path.write_bytes(b"damaged")
    said = build(other, "--batch", "2")
    assert "dropped of the bundle before: the kernels for sm80 (their file is missing or has changed: run " in said
    of_another_version(out)
    said = build(other, *SM90)
    assert "the kernels for sm75 (they belong to another version of cascade-trt: run " in said
    assert "kernels compiled for sm90, " in said and held(out) == ["sm90"]


@pytest.mark.usefixtures("fake_nvrtc")
def test_files_of_kernels_are_no_files_of_the_user_s(tmp_path: Path) -> None:
    """Where the manifest names them, and where it cannot be read."""
    checkpoints, out = save_checkpoints(tmp_path / "c"), tmp_path / "b"
    command = ["build", *checkpoints, "--tree", "small_9", "--out", out]
    run(*command, *SM90)
    of_another_version(out)
    run(*command)
    assert held(out) == []
    run(*command, *SM90)
    content = json.loads((out / MANIFEST).read_text())
    (out / MANIFEST).write_text(json.dumps(content | {"schema": 1}))
    assert "cubin" not in run(*command) and held(out) == []


def test_a_bundle_has_one_entry_for_each_file(bundle: Path) -> None:
    """What a rebuild would write over."""
    info = KernelInfo("target.onnx", "sm90", ONE_VERSION, kernel_source(), 1, "0")
    content = json.loads((bundle / MANIFEST).read_text())
    (bundle / MANIFEST).write_text(json.dumps(content | {"kernels": [info.__dict__]}))
    assert "target.onnx of bundle" in refused("compile", bundle, *SM90) and (bundle / "target.onnx").is_file()
