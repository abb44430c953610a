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
from ..runtime.bundle import Manifest
from ..runtime.errors import CascadeError
from ..runtime.images import grid as contact_sheet
from ..runtime.images import save_png
from ..runtime.options import DrawOptions
from ..runtime.pipeline import Output, Pipeline
from ..runtime.stats import Stats
from ..runtime.tree import AUTO
from .files import check_writable

_CONSOLE = Console(stderr=True)


def run(
    *, prompts: tuple[str, ...], bundle: Path, class_ids: tuple[int, ...], seed: int, num_images: int, grid: bool,
    out: Path, threads: int | None, as_json: bool, **settings: Any,
) -> None:  # fmt: skip
    """Draws, and writes every image as soon as it is done. `settings` are fields of `DrawOptions`."""
    if num_images < 1:
        raise CascadeError("--num-images must be at least 1.")
    if not prompts and not class_ids:
        raise CascadeError('say what to draw: cascade-trt generate "a red apple".')
    if prompts and class_ids:
        raise CascadeError("give prompts or --class-id, not both.")
    options = DrawOptions(**settings)
    subjects: list[Any] = [subject for subject in prompts or class_ids for _ in range(num_images)]
    _check_output(out)
    with Pipeline.load(bundle, threads=threads) as pipe:
        writer = _Writer(out, subjects, pipe.manifest, options)
        try:
            _draw(pipe, subjects, bool(prompts), seed, options, writer)
        finally:  # after Ctrl-C and after a failed image, too, for what was finished
            if grid and len(writer.images) > 1:
                writer.sheet()
            if writer.files:
                _report(writer, as_json)


class _Writer:
    """Writes images as they are done, under names and in an order that do not depend on when that is."""

    def __init__(self, out: Path, subjects: list[Any], manifest: Manifest, options: DrawOptions) -> None:
        self._out, self._subjects, self._manifest, self._options = out, subjects, manifest, options
        self._files: dict[int, Path] = {}
        self._sheet: Path | None = None
        self.images: dict[int, Any] = {}
        self.seeds: dict[int, int] = {}
        self._outputs: dict[int, Output] = {}

    @property
    def files(self) -> list[Path]:
        """In the order of the subjects, the contact sheet last."""
        return [self._files[place] for place in sorted(self._files)] + ([self._sheet] if self._sheet else [])

    def write(self, output: Output) -> None:
        """Writes the images of one output."""
        defaults = self._manifest.sampling
        used = {name: value if (value := getattr(self._options, name)) is not None else getattr(defaults, name)
                for name in ("guidance_scale", "temperature", "top_k", "top_p")}  # fmt: skip
        for place, image, seed in zip(output.places, output.images, output.seeds, strict=True):
            subject = self._subjects[place]
            text = {
                "prompt": subject, "seed": seed, **used, "rule": output.stats.rule, "tree": output.stats.tree or "",
                "model": self._manifest.name, "Software": f"cascade-trt {__version__}",
            }  # fmt: skip
            path = self._path(str(subject), seed)
            save_png(image, path, text)
            self._files[place], self.images[place], self.seeds[place] = path, image, seed
        self._outputs[min(output.places)] = output

    @property
    def warnings(self) -> list[str]:
        return [warning for place in sorted(self._outputs) for warning in self._outputs[place].warnings]

    @property
    def stats(self) -> Stats:
        """Of all outputs together; there is at least one."""
        first, *others = self._outputs.values()
        stats = first.stats.copy()
        for output in others:
            stats.add(output.stats)
        return stats

    def sheet(self) -> None:
        path = self._out.with_stem(f"{self._out.stem}-grid") if self._single else self._out / "grid.png"
        images = [self.images[place] for place in sorted(self.images)]
        save_png(contact_sheet(images), path, {"prompt": "; ".join(map(str, dict.fromkeys(self._subjects)))})
        self._sheet = path

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
    pipe: Pipeline, subjects: list[Any], from_text: bool, seed: int, options: DrawOptions, writer: _Writer
) -> None:
    """Draws; each image is on disk as soon as it is done."""
    what: dict[str, Any] = {"prompts": subjects} if from_text else {"class_ids": subjects}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_CONSOLE, transient=True, disable=not _CONSOLE.is_terminal) as bar:
        task = bar.add_task("tokens", total=len(subjects) * pipe.manifest.model.plan.length)

        def advance(done: int, _total: int) -> None:
            bar.update(task, completed=done)

        for output in pipe.stream(**what, seed=seed, callback=advance, options=options):
            try:
                writer.write(output)
            except KeyboardInterrupt:  # these images are drawn: they are written before it goes on
                writer.write(output)
                raise


def _report(writer: _Writer, as_json: bool) -> None:
    stats = writer.stats
    for warning in writer.warnings:
        click.echo(f"Warning: {warning}", err=True)
    if as_json:
        seeds = [writer.seeds[place] for place in sorted(writer.seeds)]
        files = [str(path) for path in writer.files]
        click.echo(json.dumps({"files": files, "seeds": seeds, "stats": stats.to_dict()}, indent=1))
        return
    for path in writer.files:
        click.echo(path)
    click.echo(
        f"{stats.images} image{'s' * (stats.images != 1)}, {stats.images_per_second:.2f} images/s, rule {stats.rule}, "
        f"tau {stats.tau:.2f} ({stats.target_calls} target calls){_guesses(stats)}",
        err=True,
    )
    if stats.tree is not None:
        rounds = ", ".join(f"{tree} {count}" for tree, count in stats.trees.items() if count)
        said = stats.why if stats.tree != AUTO else f"auto, rounds by tree: {rounds}; last choice: {stats.why}"
        click.echo(f"tree: {said}", err=True)


def _guesses(stats: Stats) -> str:
    """Where the accepted tokens came from."""
    counts, total = stats.origins, sum(stats.origins.values())
    said = {"drafter": counts["eagle"], "round before": counts["jacobi"]}
    shares = [f"{100 * count / total:.0f} % of the tokens from the {name}" for name, count in said.items() if count]
    return f", {', '.join(shares)}" if shares else ""
