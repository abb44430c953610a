"""What the parts of `gpu.py` share: a bundle on a GPU's backend, and the file of results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ..runtime.backends import Backend
from ..runtime.pipeline import Pipeline
from . import RESULTS
from .machine import describe_machine

FILE = RESULTS / "gpu.json"
BUNDLE = click.argument("bundle", type=click.Path(path_type=Path))
BACKEND = click.option("--backend", default="ort-cuda", show_default=True)
DEVICE, HOST = "device", "host"
ROUNDS = click.option("--rounds", type=click.Choice([DEVICE, HOST]), default=DEVICE, show_default=True)


class HostRounds:
    """A backend without its kernels."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def kernels(self, *_: object) -> None:
        return None


def load(bundle: Path, name: str, rounds: str) -> Pipeline:
    """The bundle on a backend, with rounds as asked for."""
    if rounds == DEVICE:
        return Pipeline.load(bundle, name)
    with Pipeline.load(bundle, name, warm=False) as pipe:
        backend = HostRounds(pipe.backend.backend)
    return Pipeline.load(bundle, backend)  # type: ignore[arg-type] - it has what a backend has


def show(row: dict[str, Any]) -> None:
    """One line of a measurement."""
    click.echo(", ".join(f"{name} {_short(value)}" for name, value in row.items()))


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name} {_short(one)}" for name, one in value.items())
    if isinstance(value, list):
        return "/".join(map(_short, value))
    return f"{value:.3g}" if isinstance(value, float) else f"{value}"


def store(part: str, subject: str, backend: str, found: dict[str, Any]) -> None:
    """Puts an entry in the place of the one of the same part, subject, backend, rounds and GPU."""
    entry = {"part": part, "subject": subject, "backend": backend, "gpu": _gpu(), "machine": describe_machine(None)}
    entries = json.loads(FILE.read_text())["entries"] if FILE.is_file() else []
    entry |= found
    key = ("part", "subject", "backend", "rounds", "gpu")
    kept = [one for one in entries if any(one.get(name) != entry.get(name) for name in key)]
    FILE.write_text(json.dumps({"entries": [*kept, entry]}, indent=1) + "\n")
    click.echo(f"{part} of {subject} on {backend}: {_short(found) if part == 'parity' else FILE}")


def _gpu() -> str | None:
    from ..engines.gpu import find_gpu

    gpu = find_gpu()
    return None if gpu is None else f"{gpu.name}, driver {gpu.driver}"
