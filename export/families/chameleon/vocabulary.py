"""Chameleon's tokens by their names in the tokenizer: codes of the image, and what stands around them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ....runtime.errors import CascadeError
from ...checkpoints.tokenizer import read_vocabulary, token_id

FIRST_CODE = 4  # the id of code 0
BOS, PAD, BEGIN_IMAGE, SEPARATOR = "<s>", "<pad>", "<racm3:break>", "<reserved08706>"
ROW_END = "<reserved08799>"  # Lumina-mGPT's, behind each row of codes
GRID_PIXELS = 32  # what Lumina-mGPT's size tokens count
_DIGITS = str.maketrans("0123456789", "ABCDEFGHIJ")


@dataclass(frozen=True)
class Vocabulary:
    """Token ids by name; `codes` of them are the image's, id = code + 4. `file` is the tokenizer."""

    ids: Mapping[str, int] = field(repr=False)
    codes: int
    file: Path = Path("dummy")

    def __getitem__(self, name: str) -> int:
        """The id of a token. Raises CascadeError where there is none of this name."""
        return token_id(self.ids, name, self.file)

    def __contains__(self, name: str) -> bool:
        return name in self.ids


def size_token(pixels: int) -> str:
    """The name of Lumina-mGPT's token for a height or width."""
    return f"<reserved{8800 + pixels // GRID_PIXELS:05d}>"


def code_name(code: int) -> str:
    """The name of a code's token: its digits as letters."""
    return f"IMGIMG{str(code).translate(_DIGITS)}Z"


def dummy_tokenizer(codes: int) -> tuple[Vocabulary, bytes]:
    """A tokenizer of bytes with the published ids of what stands around a prompt, for random weights."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    ids = {BOS: 0, PAD: 1, BEGIN_IMAGE: FIRST_CODE + codes + 1, SEPARATOR: 8710, ROW_END: 8803}
    ids |= {size_token(n * GRID_PIXELS): 8804 + n for n in range(1, 65)}
    first = max(ids.values()) + 1
    text = {letter: first + i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(ids | text, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return Vocabulary(ids, codes), tokenizer.to_str().encode()


def find_tokenizer(folder: Path, vq: Path) -> Path:
    """Meta's tokenizer in the checkpoint's folder, else transformers', else the one beside the VQ file."""
    meta = "text_tokenizer.json"
    for place in (folder / "tokenizer" / meta, folder / "tokenizer.json", vq.parent / meta):
        if place.is_file():
            return place
    raise CascadeError(
        f"{folder} has neither tokenizer/text_tokenizer.json nor tokenizer.json: download the whole repository."
    )


def open_vocabulary(file: Path, rows: int) -> Vocabulary:
    """Reads a tokenizer of Chameleon for a table of `rows` tokens.

    Raises CascadeError for a file that cannot be read, and for the tokenizer of another model.
    """
    ids = read_vocabulary(file, rows, "the checkpoint")
    names = [name for name in ids if name.startswith("IMGIMG")]
    if not names:
        raise CascadeError(
            f"the tokenizer {file} has no tokens for the codes of images (IMGIMG...): it is another model's, so give "
            "Chameleon's."
        )
    for code in range(len(names)):
        if ids.get(code_name(code)) != code + FIRST_CODE:
            raise CascadeError(
                f"the tokenizer {file} gives code {code} of images ({code_name(code)}) the id "
                f"{ids.get(code_name(code))}, not {code + FIRST_CODE}: give Chameleon's own tokenizer."
            )
    return Vocabulary(ids, len(names), file)
