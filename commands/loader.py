"""Where a command's engines run: the options --backend, --threads and --device."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ..runtime.pipeline import Pipeline


@dataclass(frozen=True)
class Loader:
    """A backend by name ("auto": a GPU where one can be used), threads of an engine on the CPU, the number of a GPU."""

    backend: str
    threads: int | None
    device: int | None

    def load(self, bundle: Path) -> Pipeline:
        """The bundle, loaded there. Raises CascadeError as `Pipeline.load` does."""
        from ..runtime.pipeline import Pipeline

        return Pipeline.load(bundle, backend=self.backend, threads=self.threads, device=self.device)


def with_loader(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a click command the options, and its function a `loader`."""

    @click.option("--backend", default="auto", show_default=True,
                  help="ort-cpu, ort-cuda, tensorrt-rtx, tensorrt, or auto: a GPU where one can be used.")
    @click.option("--threads", type=int, help="Threads of each engine on the CPU. [default: one for each core]")
    @click.option("--device", type=int, help="Number of the GPU, among those that CUDA shows. [default: the first]")
    @functools.wraps(command)
    def loaded(*args: Any, backend: str, threads: int | None, device: int | None, **options: Any) -> Any:
        return command(*args, loader=Loader(backend, threads, device), **options)

    return loaded
