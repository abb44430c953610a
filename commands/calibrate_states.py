"""`cascade-trt calibrate states`: the table that `swap` looks tokens up in."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from ..calibration.states import Reach, StateSums, StateWatch
from ..calibration.subjects import conditioning
from ..engines.publish import amend_bundle, check_replaceable
from ..runtime.bundle import STATES, Manifest
from ..runtime.errors import CascadeError
from ..runtime.files import describe_file
from ..runtime.rules import get_rule
from ..runtime.rules.states import StateTable
from .counts import check_count
from .demo import bundle_or_demo
from .loader import Loader
from .progress import progress

if TYPE_CHECKING:
    from ..evaluation.captions import Caption

_ALIKE = 0.95  # of a table's draws count as as many: the last round of an image draws a few tokens more or less


def run(
    *, bundle: Path | None, tree: str | None, num_images: int, prompts: Path | None, seed: int, loader: Loader,
    replace_better: bool,
) -> None:  # fmt: skip
    """Draws images with `exact` and writes the mean states behind their tokens into the bundle.

    Raises CascadeError, and the bundle stays as it is, when the images are too few for a table; before they are drawn
    when the bundle's table rests on more, unless `replace_better`.
    """
    check_count("--num-images", num_images)
    texts = () if prompts is None else tuple(caption.prompt for caption in _read(prompts))
    bundle = bundle_or_demo(bundle)
    pipe = loader.load(bundle)
    model = pipe.manifest.model
    known = None if replace_better else _known(bundle, pipe.manifest)
    if known is not None and num_images * model.plan.image_tokens < _ALIKE * known.draws:
        raise _better(bundle, known, f"{num_images} images have fewer", model.plan.image_tokens)
    check_replaceable(bundle)
    watch = StateWatch(get_rule("exact"), StateSums.empty(model.vocab_size, model.features))
    with progress() as bar:
        for number in bar.track(range(num_images), description="recording states"):
            subject = conditioning(pipe.manifest, texts, number)
            pipe.generate(**subject, seed=seed + number, rule=watch, tree=tree)
    watch.sums.check_covered(num_images)
    table, count = watch.sums.table(), watch.sums.count
    if known is not None and (seen := Reach.of(table).tokens) < known.tokens:
        raise _better(bundle, known, f"this one would have rows of {seen:,}", model.plan.image_tokens)
    write_table(bundle, table, pipe.manifest)
    click.echo(
        f"{bundle}: table of states from {count.sum():,} places; {(count > 0).sum():,} of {model.vocab_size:,} tokens "
        f"were seen, half of those at least {int(np.median(count[count > 0]))} times"
    )


def _read(file: Path) -> list[Caption]:
    from ..evaluation.captions import read_captions

    return read_captions(file)


def _known(bundle: Path, manifest: Manifest) -> Reach | None:
    """What the bundle's table rests on, where it has one that can be read."""
    if manifest.states is not None:
        with suppress(CascadeError):
            return Reach.of(StateTable.load(bundle / manifest.states))
    return None


def _better(bundle: Path, known: Reach, but: str, tokens: int) -> CascadeError:
    images = max(1, round(known.draws / tokens))
    return CascadeError(
        f"the table of states in {bundle} rests on {known.draws:,} draws (about {images:,} images) and has rows of "
        f"{known.tokens:,} tokens, {but}: it stays; give --num-images {images}, or --replace to have the new one."
    )


def write_table(bundle: Path, table: StateTable, measured: Manifest | None = None) -> None:
    """Gives the bundle its table of states; the bundle is replaced as a whole. `measured`: where the table is from."""

    def change(stage: Path, manifest: Manifest) -> Manifest:
        part = stage / f"part.{STATES}"  # its own file: a linked one is the published bundle's
        table.save(part)
        part.replace(stage / STATES)
        files = {**manifest.files, STATES: describe_file(stage / STATES)}
        return replace(manifest, states=STATES, files=files)

    amend_bundle(bundle, change, measured)
