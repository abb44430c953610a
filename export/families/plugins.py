"""Families of other installed packages: entry points of the group `cascade_trt.families`, imported when asked for."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
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
    ImportError where only what this package's own extra `export` brings is missing. What it prints goes to stderr:
    stdout is for what a command answers.
    """
    entries, package = _entries()[name], package_of(name)
    if len(entries) > 1:
        raise CascadeError(f"two packages bring a model family {spelt(name)} ({package}): uninstall one.")
    try:
        with redirect_stdout(sys.stderr):
            return entries[0].load()
    except (Exception, SystemExit) as error:  # whatever the other package's modules raise
        if _lacks_export(error):
            raise
        raise _broken(name, "be imported", error) from error


@contextmanager
def asked(name: str) -> Iterator[None]:
    """Runs what the family `name` brings. What another package's code raises, CascadeError and a lack of what our extra
    `export` brings aside, becomes a CascadeError that names family and package; the traceback is its cause's. What it
    prints goes to stderr."""
    if name not in names():
        yield  # one of ours, or a program's own: its errors are the program's to see
        return
    try:
        with redirect_stdout(sys.stderr):
            yield
    except CascadeError:
        raise
    except (Exception, SystemExit) as error:
        if _lacks_export(error):
            raise
        raise _broken(name, "open this model", error) from error


def _lacks_export(error: BaseException) -> bool:
    """Whether it says that a package of our extra `export` is not installed."""
    return isinstance(error, ImportError) and (error.name or "").partition(".")[0] in _EXPORT


def _broken(name: str, what: str, error: BaseException) -> CascadeError:
    package, reason = package_of(name), spelt(f"{type(error).__name__}: {error}")
    return CascadeError(
        f"the model family {spelt(name)} of the package {package} cannot {what} ({reason}): mend or uninstall "
        f"{package}."
    )


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
