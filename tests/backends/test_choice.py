"""Which backend `auto` takes, and what it says; the GPU's is a stand-in, for there is none here."""

from __future__ import annotations

import re
import shutil
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_trt
import pytest
from click.testing import CliRunner
from host_cuda import HostDriver, host_device

from cascade_trt.cli import cli
from cascade_trt.runtime.backends import BACKEND_NAMES, Backend, Identity, choice, open_backend, tensorrt
from cascade_trt.runtime.backends.choice import Offer, choose_backend
from cascade_trt.runtime.backends.device import CudaDevice
from cascade_trt.runtime.backends.ort import OrtBackend
from cascade_trt.runtime.bundle import MANIFEST, read_manifest
from cascade_trt.runtime.errors import CascadeError, CascadeWarning
from cascade_trt.runtime.pipeline import Pipeline
from cascade_trt.runtime.plans import Plans

YES = Offer({"ort-cpu": "yes", "ort-cuda": "yes"})


def no(**why: str) -> Offer:
    """A bundle that a backend cannot take."""
    return Offer({**YES.support, **{name.replace("_", "-"): sentence for name, sentence in why.items()}})


class Card:
    """As much of a GPU's backend as the choice looks at."""

    def __init__(self, device: int | None) -> None:
        self.device = device
        self.identity = Identity("ort-cuda", "1.31.1", "a card", 0)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An ONNX Runtime with a CUDA provider; what is in the list is why its GPU cannot be used."""
    problems: list[str] = []

    def opened(name: str, threads: int | None, device: int | None, plans: Plans | None) -> Backend | Card:
        assert plans is None
        if name == "ort-cpu":
            return OrtBackend(threads)
        if problems:
            raise CascadeError(problems[0])
        return Card(device)

    providers = types.SimpleNamespace(get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setitem(sys.modules, "onnxruntime", __import__("onnxruntime"))
    monkeypatch.setattr(sys.modules["onnxruntime"], "get_available_providers", providers.get_available_providers)
    monkeypatch.setattr(choice, "open_backend", opened)
    return problems


def test_without_a_provider_the_cpu_draws_and_the_reason_is_said() -> None:
    chosen = choose_backend("auto", YES)
    assert chosen.name == chosen.backend.identity.backend == "ort-cpu"
    assert chosen.why == "the installed ONNX Runtime is the one for CPUs"


@pytest.mark.usefixtures("gpu")
def test_a_gpu_is_taken() -> None:
    chosen = choose_backend("auto", YES, device=1)
    assert (chosen.name, chosen.why, chosen.backend.device) == ("ort-cuda", "a GPU can be used: a card", 1)  # type: ignore[attr-defined]


@pytest.mark.parametrize("support", [Offer({}), YES])
def test_what_keeps_the_gpu_from_being_used_is_said(gpu: list[str], support: Offer) -> None:
    gpu.append("no driver was found: install one.")
    with pytest.warns(CascadeWarning, match="no driver was found: install one: images are drawn on the CPU"):
        chosen = choose_backend("auto", support)
    assert (chosen.name, chosen.why) == ("ort-cpu", "ort-cuda cannot be used here: no driver was found: install one")
    with pytest.raises(CascadeError, match="^device 0 was asked for, but ort-cuda cannot be used here: no driver was "
                       "found: install one, or leave device away to draw on the CPU.$"):
        choose_backend("auto", support, device=0)
    with pytest.raises(CascadeError, match="^no driver was found"):
        choose_backend("ort-cuda", support)


@pytest.mark.usefixtures("gpu")
def test_a_bundle_that_the_gpu_cannot_take_is_drawn_on_the_cpu() -> None:
    chosen = choose_backend("auto", no(ort_cuda="no kernel for it."))
    assert (chosen.name, chosen.why) == ("ort-cpu", "ort-cuda cannot take this bundle: no kernel for it.")


@pytest.mark.parametrize("name", ["auto", "ort-cpu"])
def test_a_bundle_that_the_cpu_cannot_take_is_refused_in_its_own_words(name: str) -> None:
    with pytest.raises(CascadeError, match=r"^ort-cpu cannot draw this bundle.*: no kernels\.$"):
        choose_backend(name, no(ort_cpu="no kernels."))


@pytest.mark.usefixtures("gpu")
def test_threads_ask_for_the_cpu() -> None:
    chosen = choose_backend("auto", YES, threads=1)
    assert chosen.name == "ort-cpu" and chosen.backend.identity.threads == 1


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("ort-gpu", {}, "unknown backend 'ort-gpu': choose one of auto, ort-cpu"),
        ("ort-cpu", {"device": 0}, "ort-cpu runs on no GPU"),
        ("ort-cuda", {"threads": 2}, "threads belong to ort-cpu"),
        ("auto", {"device": -1}, "device must be the number of a GPU"),
        ("auto", {"device": True}, "device must be the number of a GPU"),
        ("auto", {"device": "0"}, "device must be the number of a GPU"),
    ],
)
def test_what_cannot_be(name: str, options: dict, said: str) -> None:
    with pytest.raises(CascadeError, match=f"^{said}"):
        choose_backend(name, YES, **options)


def test_the_choice_stands_in_the_pipeline_and_its_stats(tiny_bundle: Path) -> None:
    with Pipeline.load(tiny_bundle, warm=False) as pipe:
        assert pipe.backend.name == "ort-cpu"
        stats = pipe.batch(1).stats
        assert (stats.backend, stats.backend_why) == ("ort-cpu", pipe.backend.why)
    with Pipeline.load(tiny_bundle, OrtBackend(1), warm=False) as pipe:
        assert (pipe.backend.name, pipe.backend.why) == ("ort-cpu", "given by the caller")


# TensorRT ---------------------------------------------------------------------------------------------------
@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> HostDriver:
    """A machine with NVIDIA's driver, a GPU of compute capability 8.9, and TensorRT-RTX."""
    device, driver = host_device()
    fake_trt.install(monkeypatch, driver)
    monkeypatch.setattr(tensorrt, "CudaDevice", lambda index: device if index == 0 else CudaDevice(index, driver))
    monkeypatch.setattr(choice, "_has_driver", lambda: True)
    return driver


def with_plans(bundle: Path, folder: Path, **more: Any) -> Offer:
    return Offer(YES.support, fake_trt.compiled(bundle, folder, **more))


@pytest.mark.usefixtures("driver")
def test_engines_that_fit_are_taken(tiny_bundle: Path, tmp_path: Path) -> None:
    offer = with_plans(tiny_bundle, tmp_path)
    chosen = choose_backend("auto", offer)
    assert (chosen.name, chosen.why) == ("tensorrt-rtx", "the bundle has engines for this GPU: A card")
    identity = chosen.backend.identity
    assert (identity.backend, identity.version, identity.machine) == ("tensorrt-rtx", fake_trt.VERSION, "A card")
    assert choose_backend("tensorrt-rtx", offer, device=0).why == "asked for"
    assert choose_backend("auto", offer, threads=1).name == "ort-cpu"
    with pytest.raises(CascadeError, match="^there is no GPU 1"):
        choose_backend("tensorrt-rtx", offer, device=1)
    with pytest.raises(CascadeError, match="^tensorrt cannot draw this bundle: not it"):
        choose_backend("tensorrt", Offer({"tensorrt": "not it."}, offer.plans))


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"target": "rtx:sm86", "capability": "8.6"},
         r"rtx:sm86 cannot be used here: built for compute capability 8.6, this GPU \(A card\) has 8.9: run "
         r"`cascade-trt compile .* --target rtx:sm89`"),
        ({"version": "1.8.0.1"},
         r"rtx:sm89 cannot be used here: built with tensorrt-rtx 1.8.0.1, this machine has 1.7.1.116: run "
         r"`cascade-trt compile .* --target rtx:sm89`"),
    ],
)  # fmt: skip
def test_engines_that_do_not_fit_are_announced(tiny_bundle: Path, tmp_path: Path, more: dict, said: str) -> None:
    offer = with_plans(tiny_bundle, tmp_path, **more)
    problem = f"^{said}"
    with pytest.warns(CascadeWarning, match=f"{problem}: images are drawn with ort-cpu"):
        chosen = choose_backend("auto", offer)
    assert chosen.name == "ort-cpu" and re.match(f"{problem}; the installed", chosen.why)
    with pytest.raises(CascadeError, match=f"^{said}"):
        choose_backend("tensorrt-rtx", offer)


def test_a_reason_is_told_once(
    gpu: list[str], monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path, tmp_path: Path
) -> None:
    """Where both TensorRTs and ONNX Runtime stumble over the same."""

    def opened(name: str, threads: int | None, **_: object) -> Backend:
        if name != "ort-cpu":
            raise CascadeError(gpu[0])
        return OrtBackend(threads)

    monkeypatch.setattr(choice, "open_backend", opened)
    monkeypatch.setattr(choice, "_has_driver", lambda: True)
    monkeypatch.setattr(Plans, "has", lambda *_: True)
    gpu.append("the driver is too old: install another.")
    offer = with_plans(tiny_bundle, tmp_path)
    with pytest.warns(CascadeWarning) as warned:
        assert choose_backend("auto", offer).why.count("too old") == 1
    assert [str(warning.message).count("too old") for warning in warned] == [1]
    with pytest.raises(CascadeError, match="^device 0 was asked for, but .* leave device away to draw") as refused:
        choose_backend("auto", offer, device=0)
    assert str(refused.value).count("too old") == 1


@pytest.mark.usefixtures("driver")
def test_a_bundle_without_engines(tiny_bundle: Path) -> None:
    plans = Plans.of(tiny_bundle, read_manifest(tiny_bundle))
    assert choose_backend("auto", Offer(YES.support, plans)).why == "the installed ONNX Runtime is the one for CPUs"
    for name, target in (("tensorrt-rtx", "rtx:sm89"), ("tensorrt", "tensorrt")):
        with pytest.raises(CascadeError, match=f"holds no engines for {name}: run .*compile .* --target {target}`"):
            choose_backend(name, Offer(YES.support, plans))


def test_engines_for_other_machines_are_no_reason_to_warn(tiny_bundle: Path, tmp_path: Path) -> None:
    """Where there is no driver; warnings are errors in tests."""
    chosen = choose_backend("auto", with_plans(tiny_bundle, tmp_path))
    assert chosen.name == "ort-cpu" and "wait for a machine with NVIDIA's driver; the installed" in chosen.why


@pytest.mark.usefixtures("driver")
def test_a_pipeline_takes_them(tiny_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "b")
    plans = fake_trt.compiled(tmp_path / "b", tmp_path / "b")
    manifest = read_manifest(tmp_path / "b")
    entries = [replace(plan, file=f"{plan.engine}.plan", report=f"{plan.engine}.layers.json",
                       precision=manifest.engines[plan.engine].precision) for plan in plans.entries]  # fmt: skip
    manifest = replace(manifest, plans=entries)
    (tmp_path / "b" / MANIFEST).write_text(manifest.to_json())
    with Pipeline.load(tmp_path / "b", warm=False) as pipe:
        assert pipe.backend.name == "tensorrt-rtx"


def test_the_command_line_names_every_backend() -> None:
    shown = " ".join(CliRunner().invoke(cli, ["generate", "--help"]).output.split())
    assert f"--backend TEXT {', '.join(BACKEND_NAMES)}, or auto: a GPU" in shown
    with pytest.raises(CascadeError, match="^tensorrt runs the engines of a bundle: name it to `Pipeline.load`"):
        open_backend("tensorrt")
