"""`cascade-trt generate`."""

from __future__ import annotations

import json
import re
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click

from .. import __version__
from ..runtime.bundle import Manifest
from ..runtime.errors import CascadeError
from ..runtime.images import grid as contact_sheet
from ..runtime.images import to_png
from ..runtime.options import DrawOptions
from ..runtime.pipeline import Output, Pipeline
from ..runtime.staging import write_new_file
from ..runtime.stats import Stats
from ..runtime.tree import AUTO
from .counts import check_count
from .demo import bundle_or_demo
from .files import check_file, check_writable
from .inputs import Inputs, choose
from .loader import Loader
from .progress import progress
from .streams import lost

_PNG = ".png"
_SUFFIX = re.compile(r"\.[a-z][a-z0-9]{0,4}", re.IGNORECASE)  # of a file; "v1.5" is a folder's name


def run(
    *, prompts: tuple[str, ...], bundle: Path | None, class_ids: tuple[int, ...], features: Path | None, seed: int,
    num_images: int, grid: bool, out: Path, loader: Loader, as_json: bool, **settings: Any,
) -> None:  # fmt: skip
    """Draws, and writes every image as soon as it is done. `settings` are fields of `DrawOptions`.

    Nothing is made before everything that was asked for is checked, and no file that is there is written over.
    """
    check_count("--num-images", num_images)
    options = DrawOptions(**settings)
    inputs = choose(prompts, class_ids, features, num_images)
    names = _Names(out, inputs.slugs, seed)
    names.check(grid)
    with loader.load(bundle_or_demo(bundle)) as pipe:
        writer = _Writer(names, inputs, pipe.manifest, options)
        try:
            _draw(pipe, inputs, seed, options, writer)
        finally:  # after Ctrl-C and after a failed image, too, for what was finished
            try:
                if grid and len(writer.images) > 1:
                    writer.sheet()
            finally:
                if writer.files:
                    _report(writer, as_json)


class _Names:
    """Where images go: into the folder `out` under names of their own, or to the .png file `out`, several with their
    seeds in the name."""

    def __init__(self, out: Path, slugs: list[str], seed: int) -> None:
        self._out, self._slugs, self._seed = out, slugs, seed

    def of(self, place: int) -> Path:
        if not self._is_file:
            return self._out / f"{self._slugs[place]}-{self._seed + place}{_PNG}"
        if len(self._slugs) == 1:
            return self._out
        return self._out.with_stem(f"{self._out.stem}-{self._seed + place}")

    @property
    def sheet(self) -> Path:
        return self._out.with_stem(f"{self._out.stem}-grid") if self._is_file else self._out / f"grid{_PNG}"

    def check(self, with_sheet: bool) -> None:
        """Raises CascadeError for an output that cannot be written, or is there."""
        files = [self.of(place) for place in range(len(self._slugs))] + ([self.sheet] if with_sheet else [])
        if not self._is_file:
            if _SUFFIX.fullmatch(self._out.suffix) and not self._out.is_dir():
                raise CascadeError(
                    f"--out {self._out} is called like a file, and images are written as {_PNG}: give a {_PNG} file or "
                    "a folder."
                )
            check_writable(self._out, [file.name for file in files])
            return
        check_writable(self._out.parent, [file.name for file in files])
        for file in files:
            check_file(file)
            if file.exists():
                raise CascadeError(f"{file} is there already: remove it first, or choose another --out.")

    @property
    def _is_file(self) -> bool:
        return self._out.suffix.lower() == _PNG


class _Writer:
    """Writes images as they are done, under names and in an order that do not depend on when that is."""

    def __init__(self, names: _Names, inputs: Inputs, manifest: Manifest, options: DrawOptions) -> None:
        self._names, self._inputs, self._manifest, self._options = names, inputs, manifest, options
        self._files: dict[int, Path] = {}
        self._sheet: Path | None = None
        self.images: dict[int, Any] = {}
        self.seeds: dict[int, int] = {}
        self._outputs: dict[int, Output] = {}

    @property
    def files(self) -> list[Path]:
        """In the order of the inputs, the contact sheet last."""
        return [self._files[place] for place in sorted(self._files)] + ([self._sheet] if self._sheet else [])

    def write(self, output: Output) -> None:
        """Writes the images of one output, but for those that are written."""
        defaults = self._manifest.sampling
        used = {name: value if (value := getattr(self._options, name)) is not None else getattr(defaults, name)
                for name in ("guidance_scale", "temperature", "top_k", "top_p")}  # fmt: skip
        for place, image, seed in zip(output.places, output.images, output.seeds, strict=True):
            if place in self._files:
                continue
            text = {
                self._inputs.kind: self._inputs.labels[place], "seed": seed, **used, "rule": output.stats.rule,
                "tree": output.stats.tree or "", "model": self._manifest.name,
                "Software": f"cascade-trt {__version__}",
            }  # fmt: skip
            self._files[place] = write_new_file(self._names.of(place), to_png(image, text))
            self.images[place], self.seeds[place] = image, seed
        self._outputs[min(output.places)] = output  # last: what was not written is not counted

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
        images = [self.images[place] for place in sorted(self.images)]
        text = {self._inputs.kind: "; ".join(dict.fromkeys(self._inputs.labels))}
        self._sheet = write_new_file(self._names.sheet, to_png(contact_sheet(images), text))


def _draw(pipe: Pipeline, inputs: Inputs, seed: int, options: DrawOptions, writer: _Writer) -> None:
    """Draws; each image is on disk as soon as it is done. Files are written beside the rounds, one after the other, and
    all that were drawn are there when this returns or raises."""
    with progress() as bar, ThreadPoolExecutor(1) as pool:
        written: list[Future[None]] = []
        task = bar.add_task("tokens", total=len(inputs.labels) * pipe.manifest.model.plan.length)

        def advance(done: int, _total: int) -> None:
            bar.update(task, completed=done)

        for output in pipe.stream(**inputs.given, seed=seed, callback=advance, options=options):
            try:
                written.append(pool.submit(writer.write, output))
            except KeyboardInterrupt:  # these images are drawn: they are written before it goes on
                pool.submit(writer.write, output)
                raise
            for one in written:
                if one.done():
                    one.result()  # raises what went wrong, before more is drawn
        for one in written:
            one.result()


def _report(writer: _Writer, as_json: bool) -> None:
    _print(writer, as_json)
    if (reason := lost(sys.stdout)) is not None:
        where = ", ".join(map(str, writer.files))
        click.echo(f"Warning: standard output could not be written ({reason}); the images are in {where}.", err=True)


def _print(writer: _Writer, as_json: bool) -> None:
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
    click.echo(f"backend: {stats.backend} ({stats.backend_why})", err=True)
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
