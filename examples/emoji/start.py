"""Weights that were shipped, to go on from: their target where grain begins, or all but the drafter as it is."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn

from ...export.families.llamagen.drafter import Drafter
from ...export.models.vq import VQModel
from ...runtime.errors import CascadeError
from ...runtime.files import describe_file
from .config import Recipe
from .data import DataSet
from .drafter import drafter_config
from .model import TextToImage
from .progress import Run
from .target import make_parts


def start_from(recipe: Recipe, data: DataSet, folder: Path, out: Path) -> None:
    """Leaves in `out` what the steps `tokenizer` and (up to its grain) `target` would have; keeps what is there.

    Raises CascadeError when a file of `folder` is missing or of another size than the recipe's.
    """
    with _from(folder):
        if not (out / "tokenizer" / "state.pt").is_file():
            vq = VQModel(recipe.vq())
            _fill(vq, folder / "vq.safetensors")
            Run(out, "tokenizer").save({"model": vq}, torch.optim.AdamW(vq.parameters()), recipe.vq_steps)
        shutil.copyfile(folder / "text" / "tokenizer.json", out / "tokenizer.json")
        if (out / "target" / "state.pt").is_file():
            return
        words = Tokenizer.from_file(str(out / "tokenizer.json"))
        parts, optimizer = make_parts(recipe, data, words.get_vocab_size())
        for name in ("model", "average"):
            part = parts[name]
            assert isinstance(part, TextToImage)
            _fill_target(part, folder)
    Run(out, "target").save(parts, optimizer, max(1, int(recipe.grain_start * recipe.target_steps)))


def load_shipped(recipe: Recipe, folder: Path) -> tuple[VQModel, Tokenizer, TextToImage]:
    """Tokenizer, text tokenizer and target of `folder` as they are, on the recipe's device. Raises as above."""
    with _from(folder):
        vq = VQModel(recipe.vq())
        _fill(vq, folder / "vq.safetensors")
        words = Tokenizer.from_str((folder / "text" / "tokenizer.json").read_text())
        model = TextToImage(recipe, words.get_vocab_size())
        _fill_target(model, folder)
    return vq.eval(), words, model.eval().to(recipe.device)


def load_drafter(recipe: Recipe, file: Path) -> Drafter:
    """The drafter of a file that step `ship` wrote, to go on from. Raises as above."""
    drafter = Drafter(drafter_config(recipe))
    with _from(file, "a drafter.safetensors"):
        _fill(drafter, file)
    return drafter


def claim(out: Path, folder: Path) -> None:
    """Marks the drafter's run in `out` as one for the target in `folder`. Raises CascadeError when it is another's."""
    digest = describe_file(folder / "target.safetensors").sha256
    run, mark = out / "drafter", out / "drafter" / "target.sha256"
    if run.is_dir() and (not mark.is_file() or mark.read_text() != digest):
        raise CascadeError(f"{run} was trained for another target than that in {folder}: choose another --out.")
    run.mkdir(parents=True, exist_ok=True)
    mark.write_text(digest)


@contextmanager
def _from(place: Path, what: str = "a folder") -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        first, *more = str(error).splitlines()  # PyTorch says in the second line which tensor does not fit
        reason = more[0].strip() if more else first
        raise CascadeError(
            f"{place} cannot be started from ({reason}): give {what} that step `ship` wrote."
        ) from None


def _fill_target(model: TextToImage, folder: Path) -> None:
    _fill(model.target, folder / "target.safetensors")
    _fill(model.text, folder / "text" / "model.safetensors")


def _fill(module: nn.Module, file: Path) -> None:
    module.load_state_dict({name: tensor.float() for name, tensor in load_file(file).items()})
