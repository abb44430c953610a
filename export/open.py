"""Opens the parts of a model for a build: from checkpoints, from the bundled demo, or with random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..runtime.bundle import SamplingDefaults
from ..runtime.errors import CascadeError
from .families import family_of_preset, get_family, names
from .families.plugins import asked
from .parts import Parts
from .request import DEMO_MODEL, BuildRequest

DEMO = Path(__file__).resolve().parent.parent / "examples" / "emoji" / "weights"


def open_parts(request: BuildRequest) -> tuple[Parts, SamplingDefaults]:
    """What a request names, opened and checked. Raises CascadeError."""
    if request.dummy_weights:
        return open_dummy(request.model, request.grid, request.prompt_length)
    if request.model == DEMO_MODEL:
        return open_demo()
    if request.model not in names():
        owner = family_of_preset(request.model)  # a name that nothing has is told
        raise CascadeError(
            f"{request.model!r} has no checkpoint here: build `{owner.name}` with --checkpoint, or add --dummy-weights."
        )
    family = get_family(request.model)
    if request.size is not None and not family.has_sizes:
        raise CascadeError(f"the images of {request.model} have one size: leave --size away.")
    with asked(family.name):
        parts, sampling = family.open(request)
    _check_prompt_length(request.model, request.prompt_length, parts)
    return parts, sampling


def _check_prompt_length(model: str, length: int | None, parts: Parts) -> None:
    """Raises CascadeError where slots for a prompt were asked for, and the model has no use for them."""
    if length is not None and parts.prompt is None:
        raise CascadeError(f"{model} does not read prompts as token ids: leave --prompt-length away.")


def open_demo() -> tuple[Parts, SamplingDefaults]:
    """The bundled demo model."""
    if not (DEMO / "target.safetensors").is_file():
        raise CascadeError(f"the demo weights are not in {DEMO}: install the whole repository.")
    drafter = DEMO / "drafter.safetensors"
    files = BuildRequest(
        "llamagen", checkpoint=DEMO / "target.safetensors", vq=DEMO / "vq.safetensors", text=DEMO / "text",
        config=DEMO / "config.json",
    )  # fmt: skip
    family = get_family(files.model)
    return family.open(replace(files, drafter=drafter) if drafter.is_file() else files)


def open_dummy(name: str, grid: int | None, prompt_length: int | None = None) -> tuple[Parts, SamplingDefaults]:
    """Random weights of a published model's size. Raises CascadeError for another name."""
    family = family_of_preset(name)
    if family.dummy is None:
        raise CascadeError(f"{name!r} cannot be built with random weights: give its checkpoint.")
    with asked(family.name):
        parts, sampling = family.dummy(name, grid, prompt_length)
    _check_prompt_length(name, prompt_length, parts)
    return parts, sampling
