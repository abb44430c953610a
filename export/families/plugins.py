"""Families of other installed packages: entry points of the group `cascade_trt.families`, imported when asked for."""

from __future__ import annotations

import sys
import warnings
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ...runtime.errors import CascadeError, CascadeWarning
from ..checkpoints.reading import spelt

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "cascade_trt.families"
_EXPORT = ("torch", "onnx", "onnx_ir", "safetensors")  # what our extra `export` brings: the command says how


def names() -> frozenset[str]:
    """Every name in the group. Nothing is imported."""
    return frozenset(_entries())


def package_of(name: str) -> str:
    """The package that brings the family `name`, or the packages."""
    return " and ".join(sorted({spelt(entry.dist.name) if entry.dist else "?" for entry in _entries()[name]}))


def load(name: str) -> Any:
    """The object that the entry point `name` means.

    Raises CascadeError, naming family and package, where two packages have the name or it cannot be imported;
    ImportError where only what this package's own extra `export` brings is missing.
    """
    entries, package = _entries()[name], package_of(name)
    if len(entries) > 1:
        raise CascadeError(f"two packages bring a model family {spelt(name)} ({package}): uninstall one.")
    try:
        return entries[0].load()
    except Exception as error:  # whatever the other package's modules raise
        if isinstance(error, ImportError) and (error.name or "").partition(".")[0] in _EXPORT:
            raise
        reason = spelt(f"{type(error).__name__}: {error}")
        raise CascadeError(
            f"the model family {spelt(name)} of the package {package} cannot be imported ({reason}): mend or uninstall "
            f"{package}."
        ) from None


def _entries() -> dict[str, list[EntryPoint]]:
    return _on(tuple(sys.path))


@lru_cache(maxsize=1)
def _on(path: tuple[str, ...]) -> dict[str, list[EntryPoint]]:  # noqa: ARG001 - a path is looked through once
    """The group's entries by name."""
    from importlib.metadata import entry_points

    found: dict[str, list[EntryPoint]] = {}
    try:
        for entry in entry_points(group=GROUP):
            found.setdefault(entry.name, []).append(entry)
    except Exception as error:  # of any installed package, ours or not
        warnings.warn(
            f"the entry points of installed packages cannot be read ({spelt(str(error))}): families of other packages "
            "are not known.",
            CascadeWarning,
            stacklevel=2,
        )
        return {}
    return found
