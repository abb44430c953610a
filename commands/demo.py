"""The bundle of a command that was given none: build/emoji, else the demo's in the user's cache, built on first use."""

from __future__ import annotations

import os
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

import click

from .. import __version__
from ..engines.lock import locked
from ..engines.request import already_built, request_digest
from ..export.request import BuildRequest
from ..runtime import machine
from ..runtime.bundle import SCHEMA_VERSION
from ..runtime.digests import whole_digest
from ..runtime.errors import CascadeError
from .build import DEMO, Bar, build_options, chosen_trees

HERE = Path("build/emoji")
# Modules by the extra that has them. A GPU's ONNX Runtime has the module of `cpu`, too.
NEEDED = {"export": ("torch", "onnx", "onnx_ir", "safetensors"), "cpu": ("onnxruntime",)}
_REQUEST = BuildRequest("emoji")
_PATIENCE = 600.0  # seconds that a first use waits for another process's


def bundle_or_demo(bundle: Path | None) -> Path:
    """`bundle`, or what stands in for one.

    Raises CascadeError when the demo's bundle has to be built, and what that needs is not installed or its place
    cannot be written to.
    """
    if bundle is not None:
        return bundle
    return HERE if os.path.lexists(HERE) else demo_bundle()


def demo_bundle() -> Path:
    """The demo's bundle in the user's cache. Another version, other weights or another exporter have another folder,
    so an upgrade draws with its own; a bundle that was damaged is built again."""
    digest = _digest()
    folder = cache_folder() / f"emoji-{__version__}-{digest[:12]}"
    if already_built(folder, digest):
        return folder
    _require_packages()
    click.echo(f"There is no bundle in {HERE}: the demo's is built now, once, in {folder}.", err=True)
    with ExitStack() as stack:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder.with_name(f"{folder.name}.first"), _PATIENCE))
        except OSError as error:
            raise CascadeError(
                f"the demo's bundle cannot be kept in {folder.parent} ({error.strerror}): give --bundle, or set "
                "XDG_CACHE_HOME to a folder of yours."
            ) from None
        if not already_built(folder, digest):  # by another process, while this one waited
            _build(folder, digest)
    return folder


def cache_folder() -> Path:
    """Where the demo's bundle is kept. Raises CascadeError without a home."""
    folder = machine.cache_folder()
    if folder is None:
        raise CascadeError("this user has no home folder: give --bundle, or set XDG_CACHE_HOME.")
    return folder


def _digest() -> str:
    """Of all that decides what the bundle holds, by content: an installation's paths and times say nothing."""
    weights = {path.relative_to(DEMO).as_posix(): whole_digest(path) for path in DEMO.rglob("*") if path.is_file()}
    trees = [repr(tree) for tree in chosen_trees(_REQUEST)]
    versions = {"version": __version__, "schema": SCHEMA_VERSION}
    return request_digest(versions | {"trees": trees, "weights": weights}, [])


def _require_packages() -> None:
    """Raises CascadeError, before anything is made, when a package is missing that the build needs."""
    missing = {module: extra for extra, modules in NEEDED.items() for module in modules if find_spec(module) is None}
    if missing:
        extras = ",".join(dict.fromkeys(missing.values()))
        raise CascadeError(
            f"there is no bundle in {HERE}, and the demo's cannot be built without {', '.join(missing)}: run "
            f"`pip install 'cascade-trt[{extras}]'`, or give --bundle."
        )


def _build(folder: Path, digest: str) -> None:
    from ..export.build import build_bundle
    from ..export.open import open_parts

    parts, sampling = open_parts(_REQUEST)
    options = build_options(_REQUEST, folder, chosen_trees(_REQUEST), sampling, digest)
    with Bar() as bar:
        build_bundle(parts, options, bar.update)
