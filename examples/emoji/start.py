"""Goes on from weights that were shipped: their tokenizer, text encoder and target, where grain begins."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn

from ...export.models.vq import VQModel
from ...runtime.errors import CascadeError
from .config import Recipe
from .data import DataSet
from .model import TextToImage
from .progress import Run
from .target import make_parts


def start_from(recipe: Recipe, data: DataSet, folder: Path, out: Path) -> None:
    """Leaves in `out` what the steps `tokenizer` and (up to its grain) `target` would have; keeps what is there.

    Raises CascadeError when a file of `folder` is missing or of another size than the recipe's.
    """
    try:
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
            _fill(part.target, folder / "target.safetensors")
            _fill(part.text, folder / "text" / "model.safetensors")
    except (OSError, RuntimeError) as error:
        first, *more = str(error).splitlines()  # PyTorch says in the second line which tensor does not fit
        reason = more[0].strip() if more else first
        raise CascadeError(
            f"{folder} cannot be started from ({reason}): give a folder that step `ship` wrote."
        ) from None
    Run(out, "target").save(parts, optimizer, max(1, int(recipe.grain_start * recipe.target_steps)))


def _fill(module: nn.Module, file: Path) -> None:
    module.load_state_dict({name: tensor.float() for name, tensor in load_file(file).items()})
