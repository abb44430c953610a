"""Teaches the text encoder what captions say, before there are images.

LlamaGen's prefix slots have no rotary phase, so their keys are zero: what an image token sees of a caption is the
mean of its words. A target that is trained from nothing with its encoder finds the background's colour in it, but
not which of a hundred concepts is meant: 3,000 steps left the concept's probe at chance in the first rows. So the
mean is taught first, in half a minute; large models get the same from a text encoder that was trained on text.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn
from tqdm import tqdm

from .captions import BACKGROUNDS, caption
from .config import Recipe
from .data import DataSet
from .model import TextToImage
from .progress import Run, cosine_rate
from .text import encode

_RATE = 2e-3
_BATCH = 128
_EVERY = 50
_UNSAID = ""  # the style of a caption that names none


class WordsHead(nn.Module):
    """Reads concept, style and background from the mean of a caption's prefix embeddings."""

    def __init__(self, names: Sequence[Sequence[str]], dim: int) -> None:
        super().__init__()
        self._numbers = [{name: i for i, name in enumerate(sorted(set(part)))} for part in names]
        self.heads = nn.ModuleList(nn.Linear(dim, len(numbers)) for numbers in self._numbers)

    def forward(self, prefix: Tensor, mask: Tensor, said: Sequence[Sequence[str]]) -> list[Tensor]:
        """Mean nats of each part for prefix embeddings [P, T, D] under mask bool [P, T]; `said` is a list of names for
        each part."""
        shown = F.rms_norm(prefix, prefix.shape[-1:]) * mask[..., None]  # as the first layer's attention reads it
        mean = shown.sum(1) / mask.sum(1, keepdim=True)  # [P, D]
        nats = []
        for head, numbers, part in zip(self.heads, self._numbers, said, strict=True):
            labels = torch.tensor([numbers[name] for name in part], device=mean.device)
            nats.append(F.cross_entropy(head(mean), labels))
        return nats


def learn_words(
    recipe: Recipe, data: DataSet, tokenizer: Tokenizer, model: TextToImage, pool: Sequence[int], run: Run
) -> None:
    """Trains model.text and the target's caption projection in place, on random captions of the pool's images."""
    images = [data.emoji[i] for i in pool]
    names = ([p.concept for p in images], [_UNSAID, *recipe.styles], list(BACKGROUNDS))
    head = WordsHead(names, recipe.dim).to(recipe.device)
    parameters = [*model.text.parameters(), *model.target.cls_embedding.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=_RATE, weight_decay=0.01)
    backgrounds = list(BACKGROUNDS)
    for step in tqdm(range(recipe.text_steps), desc="words"):
        rng = random.Random(step)
        chosen = [rng.choice(images) for _ in range(_BATCH)]
        colours = [rng.choice(backgrounds) for _ in chosen]
        texts = [caption(p, colour, rng) for p, colour in zip(chosen, colours, strict=True)]
        said = (
            [p.concept for p in chosen],
            [p.style if f"{p.style} style" in text else _UNSAID for p, text in zip(chosen, texts, strict=True)],
            [c if f"{c} background" in text else "white" for c, text in zip(colours, texts, strict=True)],
        )
        ids, mask = (part.to(recipe.device) for part in encode(tokenizer, texts, recipe.prefix_len))
        prefix = model.prefix(ids, mask, torch.zeros(len(ids), dtype=torch.bool, device=ids.device))
        nats = head(prefix, mask, said)
        optimizer.param_groups[0]["lr"] = _RATE * cosine_rate(step, recipe.text_steps, 20)
        optimizer.zero_grad(set_to_none=True)
        torch.stack(nats).sum().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if (step + 1) % _EVERY == 0 or step + 1 == recipe.text_steps:
            run.log(0, words_step=step + 1, words_nats=float(torch.stack(nats).sum().detach()))
