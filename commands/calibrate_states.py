"""`cascade-trt calibrate states`: the table that CASCADE's tau_draw looks tokens up in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from rich.console import Console
from rich.progress import Progress

from ..calibration.states import StateSums, StateWatch
from ..calibration.subjects import conditioning
from ..engines.publish import amend_bundle
from ..runtime.bundle import STATES, Manifest
from ..runtime.errors import CascadeError
from ..runtime.files import describe_file
from ..runtime.pipeline import Pipeline
from ..runtime.rules import get_rule
from ..runtime.rules.states import StateTable

if TYPE_CHECKING:
    from ..evaluation.captions import Caption

_CONSOLE = Console(stderr=True)


def run(
    *, bundle: Path, tree: str | None, num_images: int, prompts: Path | None, seed: int, threads: int | None
) -> None:
    """Draws pictures with `exact` and writes the mean states behind their tokens into the bundle."""
    if num_images < 1:
        raise CascadeError(f"--num-images must be at least 1, not {num_images}.")
    texts = () if prompts is None else tuple(caption.prompt for caption in _read(prompts))
    pipe = Pipeline.load(bundle, threads=threads)
    model = pipe.manifest.model
    watch = StateWatch(get_rule("exact"), StateSums.empty(model.vocab_size, model.features))
    with Progress(console=_CONSOLE, transient=True, disable=not _CONSOLE.is_terminal) as bar:
        for number in bar.track(range(num_images), description="recording states"):
            subject = conditioning(pipe.manifest, texts, number)
            pipe.generate(**subject, seed=seed + number, rule=watch, tree=tree)
    write_table(bundle, watch.sums.table())
    count = watch.sums.count
    click.echo(
        f"{bundle}: table of states from {count.sum():,} places; {(count > 0).sum():,} of {model.vocab_size:,} tokens "
        f"were seen, half of those at least {int(np.median(count[count > 0]))} times"
    )


def _read(file: Path) -> list[Caption]:
    from ..evaluation.captions import read_captions

    return read_captions(file)


def write_table(bundle: Path, table: StateTable) -> None:
    """Gives the bundle its table of states; the bundle is replaced as a whole."""

    def change(stage: Path, manifest: Manifest) -> Manifest:
        part = stage / f"part.{STATES}"  # its own file: a linked one is the published bundle's
        table.save(part)
        part.replace(stage / STATES)
        files = {**manifest.files, STATES: describe_file(stage / STATES)}
        return replace(manifest, states=STATES, files=files)

    amend_bundle(bundle, change)
