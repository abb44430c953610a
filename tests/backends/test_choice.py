"""Which backend `auto` takes, and what it says; the GPU's is a stand-in, for there is none here."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from cascade_trt.runtime.backends import Backend, Identity, choice
from cascade_trt.runtime.backends.choice import choose_backend
from cascade_trt.runtime.backends.ort import OrtBackend
from cascade_trt.runtime.errors import CascadeError, CascadeWarning
from cascade_trt.runtime.pipeline import Pipeline

YES = {"ort-cpu": "yes", "ort-cuda": "yes"}


class Card:
    """As much of a GPU's backend as the choice looks at."""

    def __init__(self, device: int | None) -> None:
        self.device = device
        self.identity = Identity("ort-cuda", "1.31.1", "a card", 0)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An ONNX Runtime with a CUDA provider; what is in the list is why its GPU cannot be used."""
    problems: list[str] = []

    def opened(name: str, threads: int | None = None, device: int | None = None) -> Backend | Card:
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


@pytest.mark.parametrize("support", [{}, YES])
def test_what_keeps_the_gpu_from_being_used_is_said(gpu: list[str], support: dict[str, str]) -> None:
    gpu.append("no driver was found: install one.")
    with pytest.warns(CascadeWarning, match="no driver was found: install one: images are drawn on the CPU"):
        chosen = choose_backend("auto", support)
    assert (chosen.name, chosen.why) == ("ort-cpu", "ort-cuda cannot be used here: no driver was found: install one")
    with pytest.raises(CascadeError, match="^device 0 was asked for, but ort-cuda cannot be used here: no driver"):
        choose_backend("auto", support, device=0)
    with pytest.raises(CascadeError, match="^no driver was found"):
        choose_backend("ort-cuda", support)


@pytest.mark.usefixtures("gpu")
def test_a_bundle_that_the_gpu_cannot_take_is_drawn_on_the_cpu() -> None:
    chosen = choose_backend("auto", YES | {"ort-cuda": "no kernel for it."})
    assert (chosen.name, chosen.why) == ("ort-cpu", "ort-cuda cannot take this bundle: no kernel for it.")


@pytest.mark.parametrize("name", ["auto", "ort-cpu"])
def test_a_bundle_that_the_cpu_cannot_take_is_refused_in_its_own_words(name: str) -> None:
    with pytest.raises(CascadeError, match=r"^ort-cpu cannot draw this bundle.*: no kernels\.$"):
        choose_backend(name, YES | {"ort-cpu": "no kernels."})


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
