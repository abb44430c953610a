"""Model families by name. A family from outside the package registers itself with `register`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING

from ...runtime.errors import CascadeError
from ...runtime.nearest import meant

if TYPE_CHECKING:
    from ...runtime.bundle import SamplingDefaults
    from ..parts import Parts
    from ..published import Published
    from ..request import BuildRequest

_BUILT_IN = {  # modules that hold a FAMILY, imported when they are asked for
    "anole": ".chameleon.anole",
    "janus-pro": ".janus.family",
    "llamagen": ".llamagen.family",
    "lumina-mgpt": ".chameleon.lumina",
}


@dataclass(frozen=True)
class Family:
    """One family: how its checkpoints are opened, and which published sizes can be built with random weights.

    `open` gives the parts of a `BuildRequest` and their sampling defaults, and checks every tensor before it reads
    one; `dummy` gives those of a preset's name, with another grid where one is given. Both raise CascadeError.
    `published` says where the files of presets lie on the hub; `default` is the preset that the family's own name means
    there. `has_sizes`: a checkpoint draws images of several sizes, and a build is for one.
    """

    name: str
    open: Callable[[BuildRequest], tuple[Parts, SamplingDefaults]]
    presets: frozenset[str] = frozenset()
    dummy: Callable[[str, int | None], tuple[Parts, SamplingDefaults]] | None = None
    published: Mapping[str, Published] = field(default_factory=dict)
    default: str | None = None
    has_sizes: bool = False


_REGISTERED: dict[str, Family] = {}


def register(family: Family) -> None:
    """Makes `family` known under its name. Raises CascadeError when another one has it."""
    if family.name in names() and _REGISTERED.get(family.name) is not family:
        raise CascadeError(f"there is a family {family.name!r} already: give yours another name.")
    _REGISTERED[family.name] = family


def names() -> list[str]:
    """Every family's name."""
    return sorted({*_BUILT_IN, *_REGISTERED})


def get_family(name: str) -> Family:
    """The family called `name`. Raises CascadeError when there is none."""
    if name in _REGISTERED:
        return _REGISTERED[name]
    if name not in _BUILT_IN:
        near = meant(name, names())
        raise CascadeError(f"there is no model family {name!r}{near}: choose one of {', '.join(names())}.")
    return import_module(_BUILT_IN[name], __name__).FAMILY


def family_of_preset(preset: str) -> Family:
    """The family that has a published model `preset`. Raises CascadeError when none has."""
    for family in map(get_family, names()):
        if preset in family.presets:
            return family
    from ..request import DEMO_MODEL

    known = [DEMO_MODEL, *names(), *(name for family in map(get_family, names()) for name in family.presets)]
    raise CascadeError(f"unknown model {preset!r}{meant(preset, known)}: `cascade-trt models` lists the known ones.")


def published_of(model: str) -> tuple[str, Family, Published]:
    """The preset that `model` (a family or a preset) means, its family, and where its files lie. Raises CascadeError
    where nobody has published it."""
    family = get_family(model) if model in names() else family_of_preset(model)
    preset = (family.default or model) if model == family.name else model
    if preset not in family.published:
        raise CascadeError(
            f"no published files of {preset!r} are known: build {family.name!r} with --checkpoint, or a preset with "
            "--dummy-weights."
        )
    return preset, family, family.published[preset]
