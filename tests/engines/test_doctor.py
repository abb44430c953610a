"""The doctor's sentences, for machines that are not here."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

from cascade_trt.cli import cli
from cascade_trt.engines import doctor
from cascade_trt.engines.doctor import (
    DAMAGED,
    ELSEWHERE,
    NONE,
    REBUILD,
    UNKNOWN,
    USABLE,
    Machine,
    _too_old,
    judge_bundle,
    judge_plan,
    machine_sentences,
    onnx_runtimes,
)
from cascade_trt.engines.gpu import Gpu, parse_cuda, parse_gpu
from cascade_trt.engines.publish import amend_bundle
from cascade_trt.engines.tensorrt.header import plan_problem, rtx_version
from cascade_trt.runtime.backends.kernels.info import KernelInfo, kernel_source, kernels_for
from cascade_trt.runtime.bundle import PlanInfo, read_manifest
from cascade_trt.runtime.digests import whole_digest

ADA = Gpu("NVIDIA GeForce RTX 4090", (8, 9), "580.65.06", 24 << 30, 20 << 30)
MACHINE = Machine("linux-x86_64", ADA, {"tensorrt-rtx": "1.7.1.116", "tensorrt": None}, ["CPUExecutionProvider"],
                  8 << 30, 9 << 30, bindings=True)  # fmt: skip
PLAN = PlanInfo(
    "target", "rtx:sm89", "f.plan", "f.layers.json", "key", "tensorrt-rtx", "1.7.1.116", "8.9", "linux-x86_64", "fp16",
    {}, [{"P": 1}], {}, 1, "", 1.0, 1,
)  # fmt: skip
PROVIDERS = ["CUDAExecutionProvider", "CPUExecutionProvider"]
CUDA = replace(MACHINE, providers=PROVIDERS, onnxruntime="1.31.1", bindings=True)
AGAIN = "run `cascade-trt compile b --target rtx:sm89`."


@pytest.mark.parametrize(("gpu", "words"), [
    (Gpu("V100", (7, 0), "580.1", 16 << 30, 15 << 30, "13.0"), "compute capability 7.0, 7.5 is needed"),
    (Gpu("Ada", (8, 9), "535.1", 24 << 30, 20 << 30, "12.2"), "knows CUDA 12.2, CUDA 13.0 is needed"),
])  # fmt: skip
def test_what_no_backend_draws_on(gpu: Gpu, words: str) -> None:
    """As `CudaDevice` says when it draws."""
    assert words in (_too_old(gpu) or "")
    assert _too_old(replace(gpu, compute_capability=(7, 5), cuda="13.1")) is None
    assert judge_plan(PLAN, replace(MACHINE, gpu=gpu), AGAIN).verdict != USABLE


def test_a_plan_that_fits_needs_the_bindings_to_draw() -> None:
    found = judge_plan(PLAN, replace(MACHINE, bindings=False), AGAIN)
    assert found.verdict == REBUILD
    assert found.sentence == "drawing with it needs cuda-bindings: run `pip install 'cascade-trt[rtx]'`"


@pytest.mark.parametrize(
    ("machine", "verdict", "words"),
    [(MACHINE, USABLE, ["for this GPU"]),
     (replace(MACHINE, gpu=None), UNKNOWN, ["no GPU here"]),
     (replace(MACHINE, versions={"tensorrt-rtx": None}), REBUILD, ["not installed", "cascade-trt[rtx]"]),
     (replace(MACHINE, versions={"tensorrt-rtx": "1.8.0.10"}), REBUILD,
      ["built with tensorrt-rtx 1.7.1.116, this machine has 1.8.0.10", AGAIN]),
     (replace(MACHINE, gpu=replace(ADA, compute_capability=(12, 0))), REBUILD,
      ["built for compute capability 8.9", "has 12.0", "--target rtx:sm120"]),
     (replace(MACHINE, platform="linux-aarch64"), REBUILD, ["built for linux-x86_64", "linux-aarch64", AGAIN]),
     (replace(MACHINE, platform="win32-x86_64"), USABLE, [])],
)  # fmt: skip
def test_a_plan_on_a_machine(machine: Machine, verdict: str, words: list[str]) -> None:
    found = judge_plan(PLAN, machine, AGAIN)
    assert found.verdict == verdict
    assert all(word in found.sentence for word in words), found.sentence


def test_tensorrt_plans_stay_on_their_system() -> None:
    plan = replace(PLAN, backend="tensorrt", target="tensorrt", backend_version="11.4.0.106")
    machine = replace(MACHINE, versions={"tensorrt": "11.4.0.106"})
    assert judge_plan(plan, machine, AGAIN).verdict == USABLE
    assert judge_plan(plan, replace(machine, platform="win32-x86_64"), AGAIN).verdict == REBUILD
    older = replace(machine, versions={"tensorrt": "11.3.0.99"})
    assert "built with tensorrt 11.4.0.106, this machine has 11.3.0.99" in judge_plan(plan, older, AGAIN).sentence


def test_targets_for_other_gpus_are_no_fault_where_one_fits(
    plain_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = read_manifest(plain_bundle)
    plans = [replace(PLAN, engine=engine, target=f"rtx:{sm}", compute_capability=capability,
                     file=f"{sm}/{engine}.plan", report=f"{sm}/{engine}.layers.json")
             for sm, capability in (("sm89", "8.9"), ("sm86", "8.6")) for engine in manifest.engines]  # fmt: skip
    # What a manifest does not speak of may try.
    monkeypatch.setattr(doctor, "read_manifest", lambda _: replace(manifest, plans=plans, backends={}))
    monkeypatch.setattr(doctor, "plan_damage", lambda *_, **__: None)

    def found(machine: Machine) -> dict[str, str]:
        return {verdict.what: verdict.verdict for verdict in judge_bundle(plain_bundle, machine)}

    assert found(MACHINE) == {"ort-cpu": USABLE, "kernels": NONE, "rtx:sm89": USABLE, "rtx:sm86": ELSEWHERE}
    blackwell = replace(MACHINE, gpu=replace(ADA, compute_capability=(12, 0)))
    assert found(blackwell) == {"ort-cpu": USABLE, "kernels": NONE, "rtx:sm89": REBUILD, "rtx:sm86": REBUILD}
    assert found(CUDA)["ort-cuda"] == USABLE and found(replace(CUDA, gpu=None))["ort-cuda"] == UNKNOWN


def test_what_the_gpu_s_onnx_runtime_lacks(plain_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def verdict(machine: Machine) -> tuple[str, str]:
        found = next(one for one in judge_bundle(plain_bundle, machine) if one.what == "ort-cuda")
        return found.verdict, found.sentence

    assert verdict(replace(CUDA, onnxruntime="1.30.0"))[0] == REBUILD
    assert "1.31 is needed: run `pip install 'cascade-trt[cuda]'`" in verdict(
        replace(CUDA, onnxruntime="1.30.0")
    )[1]
    assert verdict(replace(CUDA, bindings=False)) == (
        REBUILD, "cuda-bindings is not installed: run `pip install 'cascade-trt[cuda]'`."
    )  # fmt: skip
    turing, manifest = replace(CUDA, gpu=replace(ADA, compute_capability=(7, 5))), read_manifest(plain_bundle)
    assert verdict(turing)[0] == USABLE
    engines = {name: replace(engine, precision="bf16") for name, engine in manifest.engines.items()}
    monkeypatch.setattr(doctor, "read_manifest", lambda _: replace(manifest, engines=engines))
    monkeypatch.setattr(doctor, "check_files", lambda *_: None)  # which would see that the graphs are fp16
    assert verdict(turing)[0] == ELSEWHERE and verdict(CUDA)[0] == USABLE


def test_kernels_as_a_backend_will_find_them(plain_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(plain_bundle, tmp_path / "b"))

    def verdict(*kernels: KernelInfo, gpu: tuple[int, int] | None = (8, 9)) -> tuple[str, str] | None:
        """What the doctor says, which is what a backend would be given."""
        amend_bundle(bundle, lambda _, manifest: replace(manifest, kernels=list(kernels)))
        machine = replace(MACHINE, gpu=None if gpu is None else replace(ADA, compute_capability=gpu))
        judged = [one for one in judge_bundle(bundle, machine) if one.what == "kernels"]
        if gpu is not None:
            found = kernels_for(bundle, kernels, gpu)
            assert (judged[0].verdict == USABLE) == (found.code is not None)
            assert judged[0].sentence == found.why or found.why == ""
        return (judged[0].verdict, judged[0].sentence) if judged else None

    def compiled(architecture: str, source: str = "") -> KernelInfo:
        path = bundle / f"kernels/{architecture}.cubin"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"code")
        file = f"kernels/{architecture}.cubin"
        return KernelInfo(file, architecture, "nvrtc 13.5", source or kernel_source(), 4, whole_digest(path))

    again = f"run `cascade-trt compile {bundle} --target cuda"
    assert verdict() == (NONE, f"{bundle} holds no kernels: {again}`.")
    assert verdict(gpu=None) is None
    sm86, sm90, old = compiled("sm86"), compiled("sm90"), compiled("sm80", "0")
    assert verdict(sm86, sm90) == (USABLE, f"those for sm86 run on {ADA.name}.")
    kind, sentence = verdict(sm86, sm90, gpu=(12, 0)) or ("", "")
    assert kind == REBUILD and "compute capability 12.0; they are for sm86, sm90" in sentence
    assert sentence.endswith(f"{again}:sm120`.")
    assert verdict(old) == (REBUILD, f"the kernels in {bundle} belong to another version of cascade-trt: {again}`.")
    kind, sentence = verdict(sm86, gpu=(7, 0)) or ("", "")
    assert kind == ELSEWHERE and "7.5 or newer, this one has 7.0" in sentence
    kind, sentence = verdict(sm86, sm90, gpu=None) or ("", "")
    assert kind == UNKNOWN and "those for sm86, sm90 are whole" in sentence
    assert verdict(sm86, old, gpu=None) == verdict(old)
    (bundle / sm86.file).write_bytes(b"Code")
    for gpu in (None, (8, 9)):
        kind, sentence = verdict(sm86, sm90, gpu=gpu) or ("", "")
        assert kind == REBUILD and "sm86.cubin have changed since they were compiled" in sentence


def test_what_onnx_runtime_cannot_do_here(plain_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bf16 bundle is no fault on a CPU, and a machine with little memory is told."""
    manifest = read_manifest(plain_bundle)
    no_kernels = replace(manifest, backends={**manifest.backends, "ort-cpu": "no bfloat16 kernels."})
    small = judge_bundle(plain_bundle, replace(MACHINE, free_memory=1000))[0]
    assert small.verdict == UNKNOWN and "for the weights" in small.sentence
    monkeypatch.setattr(doctor, "read_manifest", lambda _: no_kernels)
    assert judge_bundle(plain_bundle, MACHINE)[0].verdict == ELSEWHERE
    none = judge_bundle(plain_bundle, replace(MACHINE, providers=[]))[0]
    assert none.verdict == REBUILD and "cascade-trt[cpu]" in none.sentence


def test_nvidia_smi_is_read() -> None:
    gpu = parse_gpu("NVIDIA GeForce RTX 4090, 8.9, 580.65.06, 24564, 20000\nanother, 8.6, 1, 1, 1\n")
    assert gpu == Gpu("NVIDIA GeForce RTX 4090", (8, 9), "580.65.06", 24564 << 20, 20000 << 20)
    jetson = parse_gpu("Orin (nvgpu), 8.7, 540.4.0, [N/A], [N/A]")
    assert jetson is not None and jetson.memory == 0
    assert parse_cuda("| NVIDIA-SMI 580.65.06   Driver Version: 580.65.06   CUDA Version: 13.0  |") == "13.0"
    assert parse_cuda("CUDA UMD Version : 13.2") == "13.2" and parse_cuda("nothing") == ""
    for text in ("", "No devices were found", "a, b, c, d, e"):
        assert parse_gpu(text) is None


def test_the_machine_in_sentences() -> None:
    here = machine_sentences(MACHINE)
    assert any("RTX 4090, compute capability 8.9, driver 580.65.06, 20 of 24 GiB free" in s for s in here)
    assert any("tensorrt is not installed" in s for s in here)
    assert any("No NVIDIA GPU" in s for s in machine_sentences(replace(MACHINE, gpu=None)))
    for_cpus = "The installed ONNX Runtime is the one for CPUs"
    assert any(for_cpus in s for s in here)
    for machine in (CUDA, replace(MACHINE, gpu=None)):
        assert not any(for_cpus in s for s in machine_sentences(machine))
    both = replace(MACHINE, versions={"tensorrt-rtx": "1.7.1.116", "tensorrt": "11.4.0.106"})
    assert any("Both TensorRTs" in s for s in machine_sentences(both))


def test_headers(tmp_path: Path) -> None:
    path = tmp_path / "a.plan"
    for data, problem in ((b"", "is empty"), (b"x" * 100, "does not start"), (b"vtrt", "does not start")):
        path.write_bytes(data)
        assert problem in (plan_problem(path) or "")
    path.write_bytes((b"vtrt".ljust(24, b"\0") + bytes([1, 7, 1, 116])).ljust(64, b"\0"))
    assert plan_problem(path) is None and rtx_version(path) == "1.7.1.116"


def test_damage_is_found_in_real_plans(own_bundle: Path) -> None:
    machine = replace(MACHINE, gpu=None)
    verdicts = {v.what: v for v in judge_bundle(own_bundle, machine)}
    assert verdicts["rtx:sm89"].verdict == UNKNOWN
    plan = next(plan for plan in read_manifest(own_bundle).plans if plan.target == "rtx:sm89")
    path = own_bundle / plan.file
    assert rtx_version(path) == plan.backend_version
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    for damaged in (bytes(data), data[:1000], b""):
        path.write_bytes(damaged)
        verdicts = {v.what: v for v in judge_bundle(own_bundle, machine)}
        assert verdicts["rtx:sm89"].verdict == DAMAGED
        assert f"cascade-trt compile {own_bundle} --target rtx:sm89" in verdicts["rtx:sm89"].sentence
        assert verdicts["ort-cpu"].verdict == USABLE
    result = CliRunner().invoke(cli, ["doctor", str(own_bundle)])
    assert result.exit_code == 1 and "rtx:sm89: damaged" in result.output


def test_the_command(plain_bundle: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["doctor", str(plain_bundle)])
    assert result.exit_code == 0 and "ort-cpu: usable" in result.output
    listed = json.loads(CliRunner().invoke(cli, ["doctor", "--json", str(plain_bundle)]).output)
    assert listed["bundles"][str(plain_bundle)][0]["verdict"] == "usable"
    result = CliRunner().invoke(cli, ["doctor", str(tmp_path)])
    assert result.exit_code == 1 and "there is no bundle" in result.output


def test_two_onnx_runtimes_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert onnx_runtimes() == ("onnxruntime",)
    for name in ("onnxruntime", "onnxruntime-gpu"):
        folder = tmp_path / f"{name.replace('-', '_')}-1.32.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.32.0\n")
        (folder / "top_level.txt").write_text("onnxruntime\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    output = CliRunner().invoke(cli, ["doctor"]).output
    assert "onnxruntime and onnxruntime-gpu are installed together" in output
    assert "pip uninstall onnxruntime onnxruntime-gpu" in output.replace("-m pip", "pip")


def test_an_onnx_runtime_that_was_half_removed(
    plain_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty module is what is left of two when one is removed."""
    monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
    result = CliRunner().invoke(cli, ["doctor", str(plain_bundle)])
    assert result.exit_code == 1 and "ONNX Runtime is not installed" in result.output
    command = ["generate", "a red apple", "--bundle", str(plain_bundle), "--out", str(tmp_path)]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 2 and "uninstall both" in result.output
