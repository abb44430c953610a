"""The sequences of tokens that make an image of Anole and of Lumina-mGPT."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from ....runtime.bundle import PromptForm
from ....runtime.errors import CascadeError
from ....runtime.plan import TokenPlan
from .vocabulary import BEGIN_IMAGE, BOS, FIRST_CODE, GRID_PIXELS, PAD, ROW_END, SEPARATOR, Vocabulary, size_token

_MOST_PIXELS = 4096  # of a side that is looked for in a tokenizer; the published ones end far below
_SIZE = re.compile(r"([1-9][0-9]{1,4})x([1-9][0-9]{1,4})")
_NAMED = re.compile(r"lumina.*?-([1-9][0-9]{2,3})(?![0-9])", re.IGNORECASE)


@dataclass(frozen=True)
class Sequence:
    """`plan` in the bundle's own ids, `syntax` the vocabulary's ids of the plan's syntax tokens, in their order; how a
    prompt becomes the prefix, and `pad`, the id before it."""

    plan: TokenPlan
    syntax: tuple[int, ...]
    form: PromptForm
    pad: int

    @property
    def kept(self) -> torch.Tensor:
        """int64 [tokens]: the vocabulary's id of each of the bundle's own."""
        codes = torch.arange(FIRST_CODE, FIRST_CODE + self.plan.codes)
        return torch.cat([codes, torch.tensor(self.syntax, dtype=torch.int64)])


def anole_sequence(vocabulary: Vocabulary, grid: int) -> Sequence:
    """A square of codes, nothing forced. The unconditional row is the beginning of a text and of an image."""
    bos, begin = vocabulary[BOS], vocabulary[BEGIN_IMAGE]
    form = PromptForm([bos], "", "", [vocabulary[SEPARATOR], begin], uncond=[bos, begin], strip=False)
    return Sequence(TokenPlan(grid, grid, vocabulary.codes), (), form, vocabulary[PAD])


def lumina_sequence(vocabulary: Vocabulary, width: int, height: int, factor: int) -> Sequence:
    """Rows of codes with a token behind each, after the two tokens of the size, which is in the prompt, too; `factor`
    pixels for a code. The unconditional row begins with the image. Raises CascadeError for a size that the model does
    not know.

    What is forced behind the last code, a row's end and the image's end, need not be computed.
    """
    if not {width, height} <= set(_sides(vocabulary, factor)):
        raise CascadeError(
            f"Lumina-mGPT draws no images of {width}x{height}: both sides must be {known_sides(vocabulary, factor)}, "
            "as in --size 768x768."
        )
    image = [vocabulary[BEGIN_IMAGE], vocabulary[size_token(height)], vocabulary[size_token(width)]]
    before = f"Generate an image of {width}x{height} according to the following prompt:\n"
    form = PromptForm([vocabulary[BOS]], before, "", [vocabulary[SEPARATOR], *image], uncond=image, strip=False)
    plan = TokenPlan(height // factor, width // factor, vocabulary.codes, row_end=vocabulary.codes)
    return Sequence(plan, (vocabulary[ROW_END],), form, vocabulary[PAD])


def _sides(vocabulary: Vocabulary, factor: int) -> list[int]:
    """The sides in pixels that the tokenizer has size tokens for, and that are whole codes of `factor` pixels."""
    sides = range(GRID_PIXELS, _MOST_PIXELS + 1, GRID_PIXELS)
    return [side for side in sides if side % factor == 0 and size_token(side) in vocabulary]


def known_sides(vocabulary: Vocabulary, factor: int) -> str:
    """The sides that images may have, for a sentence."""
    sides = _sides(vocabulary, factor)
    ends = f"{sides[0]} to {sides[-1]}" if sides else "none"
    return f"multiples of {GRID_PIXELS} that the model's tokenizer has a size token for ({ends})"


def lumina_size(given: str | None, folder: Path, sides: str) -> tuple[int, int]:
    """Width and height in pixels: as given, or of the model's name, which is the folder's or one's above it. `sides`
    are those it knows, for a sentence.

    Raises CascadeError for what is no size, and where no name tells one.
    """
    if given is not None:
        match = _SIZE.fullmatch(given)
        if match is None:
            raise CascadeError(f"--size must be WIDTHxHEIGHT in pixels, as 768x768, not {given!r}.")
        return int(match[1]), int(match[2])
    for name in reversed(folder.resolve().parts):
        if (match := _NAMED.search(name)) is not None:
            return int(match[1]), int(match[1])
    raise CascadeError(
        f"the name of {folder} does not tell the size of its images: give --size 768x768, or another with sides that "
        f"are {sides}."
    )
