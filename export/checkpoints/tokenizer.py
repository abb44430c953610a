"""Tokenizer files (tokenizer.json) of checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ...runtime.errors import CascadeError
from .reading import refuse_pointer, spelt


def read_vocabulary(file: Path, size: int, reader: str) -> dict[str, int]:
    """Every token's id, added tokens among them; `reader` has embeddings of `size` tokens.

    Raises CascadeError for what is no tokenizer, a Git LFS pointer, and ids that the reader does not know.
    """
    from tokenizers import Tokenizer

    try:
        refuse_pointer(file)
        found = Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True)
    except CascadeError:
        raise
    except Exception as error:  # tokenizers raises plain Exception
        raise CascadeError(f"the tokenizer {file} cannot be read ({spelt(str(error))}): download it again.") from None
    if max(found.values(), default=0) >= size:
        raise CascadeError(
            f"the tokenizer {file} has ids up to {max(found.values())}, {reader} {size} tokens: give the tokenizer "
            "that belongs to it."
        )
    return found


def token_id(vocabulary: Mapping[str, int], name: str, file: Path) -> int:
    """The id of the token called `name`. Raises CascadeError where the tokenizer `file` has none."""
    if name not in vocabulary:
        raise CascadeError(
            f"the tokenizer {file} has no token {name!r}: give the tokenizer that belongs to the checkpoint."
        )
    return vocabulary[name]
