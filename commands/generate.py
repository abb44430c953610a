"""`cascade-trt generate`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .. import __version__
from ..runtime.errors import CascadeError
from ..runtime.images import grid as contact_sheet
from ..runtime.images import save_png
from ..runtime.pipeline import Output, Pipeline
from .files import check_writable

_CONSOLE = Console(stderr=True)


def run(
    *, prompts: tuple[str, ...], bundle: Path, class_ids: tuple[int, ...], rule: str | None, tree: str | None,
    seed: int, guidance_scale: float | None, temperature: float | None, top_k: int | None, top_p: float | None,
    num_images: int, grid: bool, out: Path, threads: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Draws, and writes every finished picture even when it is interrupted."""
    if num_images < 1:
        raise CascadeError("--num-images must be at least 1.")
    if not prompts and not class_ids:
        raise CascadeError('say what to draw: cascade-trt generate "a red apple".')
    if prompts and class_ids:
        raise CascadeError("give prompts or --class-id, not both.")
    subjects: list[Any] = [subject for subject in prompts or class_ids for _ in range(num_images)]
    _check_output(out)
    pipe = Pipeline.load(bundle, threads=threads)
    settings: dict[str, Any] = {
        "guidance_scale": guidance_scale, "temperature": temperature, "top_k": top_k, "top_p": top_p,
        "rule": rule, "tree": tree,
    }  # fmt: skip
    written = _Writer(out, subjects, pipe, settings)
    output = _draw(pipe, subjects, bool(prompts), seed, settings, written)
    if grid and len(written.images) > 1:
        written.sheet()
    _report(output, written, as_json)
    if output.interrupted:
        raise KeyboardInterrupt


class _Writer:
    """Writes pictures as batches finish."""

    def __init__(self, out: Path, subjects: list[Any], pipe: Pipeline, settings: dict[str, Any]) -> None:
        self._out, self._subjects = out, subjects
        self._pipe, self._settings = pipe, settings
        self.files: list[Path] = []
        self.images: list[Any] = []

    def write(self, output: Output) -> None:
        """Writes the pictures of one batch under their own names."""
        sampling = self._pipe.manifest.sampling
        used = {name: getattr(sampling, name) if value is None else value
                for name, value in self._settings.items() if hasattr(sampling, name)}  # fmt: skip
        for image, seed in zip(output.images, output.seeds, strict=True):
            subject = self._subjects[len(self.files)]
            text = {
                "prompt": subject, "seed": seed, **used, "rule": output.stats.rule, "tree": output.stats.tree or "",
                "model": self._pipe.manifest.name, "Software": f"cascade-trt {__version__}",
            }  # fmt: skip
            path = self._path(str(subject), seed)
            save_png(image, path, text)
            self.files.append(path)
            self.images.append(image)

    def sheet(self) -> None:
        path = self._out.with_stem(f"{self._out.stem}-grid") if self._single else self._out / "grid.png"
        save_png(contact_sheet(self.images), path, {"prompt": "; ".join(map(str, dict.fromkeys(self._subjects)))})
        self.files.append(path)

    @property
    def _single(self) -> bool:
        return self._out.suffix.lower() == ".png"

    def _path(self, subject: str, seed: int) -> Path:
        if self._single:
            return self._out if len(self._subjects) == 1 else self._out.with_stem(f"{self._out.stem}-{seed}")
        slug = re.sub(r"[^a-z0-9]+", "-", subject.lower()).strip("-")[:60] or "picture"
        return self._out / f"{slug}-{seed}.png"


def _check_output(out: Path) -> None:
    """Refuses an output that cannot be written before anything is drawn."""
    single = out.suffix.lower() == ".png"
    if single and out.is_dir():
        raise CascadeError(f"{out} is a folder: choose another --out.")
    check_writable(out.parent if single else out)


def _draw(
    pipe: Pipeline, subjects: list[Any], from_text: bool, seed: int, settings: dict[str, Any], writer: _Writer
) -> Output:
    """Draws batch by batch, so that finished pictures are on disk before the next ones start."""
    what = {"prompts": subjects} if from_text else {"class_ids": subjects}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_CONSOLE, transient=True, disable=not _CONSOLE.is_terminal) as bar:
        task = bar.add_task("tokens", total=len(subjects) * pipe.manifest.model.image_tokens)

        def advance(done: int, _total: int) -> None:
            bar.update(task, completed=done)

        batches = pipe.stream(**what, seed=seed, callback=advance, **settings)
        merged = next(batches)
        writer.write(merged)
        for output in batches:
            writer.write(output)
            merged.add(output)
    return merged


def _report(output: Output, writer: _Writer, as_json: bool) -> None:
    for warning in output.warnings:
        click.echo(f"Warning: {warning}", err=True)
    if as_json:
        files = [str(path) for path in writer.files]
        click.echo(json.dumps({"files": files, "seeds": output.seeds, "stats": output.stats.to_dict()}, indent=1))
        return
    for path in writer.files:
        click.echo(path)
    stats = output.stats
    if stats.images:
        _CONSOLE.print(
            f"{stats.images} image(s), {stats.images_per_second:.2f} images/s, rule {stats.rule}, "
            f"tau {stats.tau:.2f} ({stats.target_calls} target calls)",
            highlight=False,
        )
