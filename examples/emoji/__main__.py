"""`python -m cascade_trt.examples.emoji STEP`: trains the demo model, step by step or all at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

    from ...export.families.llamagen.drafter import Drafter
    from ...export.models.vq import VQModel
    from .config import Recipe
    from .data import DataSet
    from .model import TextToImage

STEPS = ("data", "tokenizer", "judge", "target", "drafter", "ship")


@click.command()
@click.argument("step", type=click.Choice([*STEPS, "all"]))
@click.option(
    "--config", "name", default="cpu", show_default=True,
    help="cpu, gpu, tiny, or with --keep gpu-drafter, weak-drafter (config.py).",
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("build/emoji-train"), show_default=True)
@click.option("--start", type=click.Path(path_type=Path), help="Go on from weights in this folder (step `ship`'s).")
@click.option("--keep", type=click.Path(path_type=Path), help="Train only a drafter, for the target in this folder.")
@click.option(
    "--drafter", "begun", type=click.Path(path_type=Path), help="With --keep: go on from the drafter in this file."
)
@click.option("--threads", type=int, help="PyTorch threads.")
def main(
    step: str, name: str, out: Path, start: Path | None, keep: Path | None, begun: Path | None, threads: int | None
) -> None:  # fmt: skip
    """Runs STEP and, where they are missing, the steps before it. Interrupted steps go on where they were."""
    import torch

    from ...runtime.errors import CascadeError
    from .config import RECIPES

    if name not in RECIPES:
        raise click.UsageError(f"unknown config {name!r}: choose one of {', '.join(RECIPES)}.")
    if keep is not None and (start is not None or step not in ("ship", "all")):
        raise click.UsageError("--keep goes with the steps ship and all, and without --start.")
    if begun is not None and keep is None:
        raise click.UsageError("--drafter goes with --keep, which names the folder of its target.")
    if threads:
        torch.set_num_threads(threads)
    if RECIPES[name].device == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        if keep is not None:
            new_drafter(name, out, keep, begun)
        else:
            run_until(STEPS[-1] if step == "all" else step, name, out, start)
    except CascadeError as error:
        raise click.UsageError(str(error)) from None


def run_until(last: str, name: str, out: Path, start: Path | None = None) -> None:
    """Runs the steps up to `last`; each is quick when it was finished before, or given by the weights in `start`."""
    from .config import RECIPES
    from .data import build_data
    from .judge import make_judge
    from .start import start_from
    from .target import train_target
    from .text import train_text_tokenizer
    from .tokenizer import train_tokenizer

    recipe, until = RECIPES[name], STEPS.index(last)
    data = build_data(recipe, out)
    if until < 1:
        return
    if start is not None:
        start_from(recipe, data, start, out)
    vq = train_tokenizer(recipe, data, out)
    if until < 2:
        return
    for figure, value in make_judge(recipe, data, vq, out).items():
        click.echo(f"judge: {figure} {100 * value:.1f} %")
    if until < 3:
        return
    words = train_text_tokenizer(data, out)
    model = train_target(recipe, data, vq, words, out)
    if until < 4:
        return
    samples, drafter = _train_drafter(recipe, data, words, model, out)
    if until < 5:
        return
    _ship(recipe, vq, words, model, samples, drafter, out)


def new_drafter(name: str, out: Path, folder: Path, begun: Path | None = None) -> None:
    """A drafter for the target of the weights in `folder`, shipped beside them in out/weights; `begun` is the file of
    one to go on from."""
    from .config import RECIPES
    from .data import build_data
    from .start import claim, load_drafter, load_shipped

    recipe = RECIPES[name]
    data = build_data(recipe, out)
    vq, words, model = load_shipped(recipe, folder)
    drafter = None if begun is None else load_drafter(recipe, begun)
    claim(out, folder)
    samples, drafter = _train_drafter(recipe, data, words, model, out, drafter)
    _ship(recipe, vq, words, model, samples, drafter, out)


def _train_drafter(
    recipe: Recipe, data: DataSet, words: Tokenizer, model: TextToImage, out: Path, begun: Drafter | None = None
) -> tuple[dict[str, Tensor], Drafter]:
    from .drafter import flatness, make_samples, train_drafter

    samples = make_samples(recipe, data, words, model, out)
    drafter = train_drafter(recipe, samples, model.target, out, begun)
    entropy, top = flatness(recipe, model.target, samples["hidden"])
    settings = f"guidance {recipe.guidance_scale:g}, temperature {recipe.temperature:g}"
    click.echo(f"target at {settings}: entropy {entropy:.2f} nats, mean top-1 probability {top:.2f}")
    return samples, drafter


def _ship(
    recipe: Recipe, vq: VQModel, words: Tokenizer, model: TextToImage, samples: dict[str, Tensor], drafter: Drafter,
    out: Path,
) -> None:  # fmt: skip
    from .drafter import state_table
    from .ship import ship

    ship(recipe, model, vq, drafter, words, out / "weights", state_table(recipe, samples))
    click.echo(f"weights in {out / 'weights'}: copy them to examples/emoji/weights to make them the demo's")


if __name__ == "__main__":
    main()
