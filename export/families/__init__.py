"""Model families by name. Another installed package adds its own by an entry point (`plugins.py`), a program by
`register`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING

from ...runtime.errors import CascadeError
from ...runtime.nearest import meant
from . import plugins

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
    one; `dummy` gives those of a preset's name, with another grid and so many slots for a prompt where they are given.
    Both raise CascadeError. `published` says where the files of presets lie on the hub; `default` is the preset that
    the family's own name means there. `has_sizes`: a checkpoint draws images of several sizes, and a build is for one.
    """

    name: str
    open: Callable[[BuildRequest], tuple[Parts, SamplingDefaults]]
    presets: frozenset[str] = frozenset()
    dummy: Callable[[str, int | None, int | None], tuple[Parts, SamplingDefaults]] | None = None
    published: Mapping[str, Published] = field(default_factory=dict)
    default: str | None = None
    has_sizes: bool = False


_REGISTERED: dict[str, Family] = {}


def register(family: Family) -> None:
    """Makes `family` known under its name. Raises CascadeError when another one has it."""
    if family.name in names() and (family.name in _BUILT_IN or get_family(family.name) is not family):
        raise CascadeError(f"there is a family {family.name!r} already: give yours another name.")
    _REGISTERED[family.name] = family


def names() -> list[str]:
    """Every family's name."""
    return sorted({*_BUILT_IN, *_REGISTERED, *plugins.names()})


def get_family(name: str) -> Family:
    """The family called `name`. Raises CascadeError when there is none, and where another package's is not one."""
    if name in _BUILT_IN:
        if name in plugins.names():
            raise CascadeError(
                f"the package {plugins.package_of(name)} brings a model family {name!r}, which is the name of one of "
                f"ours: uninstall {plugins.package_of(name)}."
            )
        return import_module(_BUILT_IN[name], __name__).FAMILY
    if name in _REGISTERED:
        return _REGISTERED[name]
    if name in plugins.names():
        family = plugins.load(name)
        if not isinstance(family, Family) or family.name != name:
            what = f"a Family called {family.name!r}" if isinstance(family, Family) else type(family).__name__
            raise CascadeError(
                f"the package {plugins.package_of(name)} promises a Family called {name!r}, and brings {what}: mend or "
                f"uninstall {plugins.package_of(name)}."
            )
        return family
    near = meant(name, names())
    raise CascadeError(f"there is no model family {name!r}{near}: choose one of {', '.join(names())}.")


def family_of_preset(preset: str) -> Family:
    """The family that has a published model `preset`; ours are asked first. Raises CascadeError when none has."""
    asked = sorted(names(), key=lambda name: name not in _BUILT_IN)
    families = []
    for family in map(get_family, asked):
        if preset in family.presets:
            return family
        families.append(family)
    from ..request import DEMO_MODEL

    known = [DEMO_MODEL, *asked, *(name for family in families for name in family.presets)]
    raise CascadeError(f"unknown model {preset!r}{meant(preset, known)}: `cascade-trt models` lists the known ones.")


def of_other_packages() -> dict[str, str]:
    """The names of families that other packages bring, with the packages. Nothing is imported."""
    return {name: plugins.package_of(name) for name in sorted(plugins.names())}


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
