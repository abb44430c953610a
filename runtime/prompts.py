"""Prompts to token ids, left padded, with the tokenizer file of the bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .bundle import TextInfo
from .captions import clean_caption
from .errors import CascadeError


class PromptEncoder:
    """Tokenises prompts to ids int64 [P, T] and a mask bool [P, T], padding on the left."""

    def __init__(self, folder: Path, info: TextInfo) -> None:
        from tokenizers import Tokenizer

        self._info = info
        try:
            self._tokenizer = Tokenizer.from_file(str(folder / info.tokenizer))
        except Exception as error:  # tokenizers raises plain Exception
            raise CascadeError(
                f"the tokenizer of bundle {folder} cannot be read ({error}): build the bundle again."
            ) from None
        if self._tokenizer.id_to_token(info.pad_id) is None:
            raise CascadeError(
                f"the tokenizer of bundle {folder} has no token {info.pad_id} to pad prompts with: build the bundle "
                "again."
            )
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def encode(self, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
        """Returns ids [P, T], mask [P, T] and, by its index, a warning for each prompt that was cut to T tokens.

        Raises CascadeError for an empty prompt.
        """
        length = self._info.max_length
        ids = np.full((len(prompts), length), self._info.pad_id, np.int64)
        mask = np.zeros((len(prompts), length), bool)
        warnings: dict[int, str] = {}
        for row, prompt in enumerate(prompts):
            text = clean_caption(prompt) if self._info.clean else prompt.strip()
            if not text:
                raise CascadeError(f"prompt {row + 1} is empty: say what to draw.")
            tokens = self._tokenizer.encode(text).ids
            if len(tokens) > length:
                warnings[row] = (
                    f"prompt {row + 1} has {len(tokens)} tokens, the model reads {length}: the rest was cut."
                )
                tokens = [*tokens[: length - 1], tokens[-1]]  # keep the end-of-text token
            ids[row, length - len(tokens) :] = tokens
            mask[row, length - len(tokens) :] = True
        return ids, mask, warnings
