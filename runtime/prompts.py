"""Prompts to token ids, left padded, with the tokenizer file of the bundle."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .bundle import PromptForm, TextInfo
from .captions import clean_caption
from .errors import CascadeError
from .schema import short

_NAMED = 5  # words in a sentence; the others are counted


@dataclass(frozen=True)
class Encoded:
    """ids int64 [P, T], mask bool [P, T], and for each prompt sentences on what the model does not read of it."""

    ids: np.ndarray
    mask: np.ndarray
    warnings: list[tuple[str, ...]]


class PromptEncoder:
    """Tokenises prompts, padding on the left."""

    def __init__(self, folder: Path, info: TextInfo) -> None:
        from tokenizers import Tokenizer

        self._info = info
        try:
            self._tokenizer = Tokenizer.from_file(str(folder / info.tokenizer))
        except Exception as error:  # tokenizers raises plain Exception
            raise CascadeError(
                f"the tokenizer of bundle {folder} cannot be read ({error}): build the bundle again."
            ) from None
        needed = [info.pad_id, *([] if info.form is None else info.form.ids)]
        for token in needed:
            if self._tokenizer.id_to_token(token) is None:
                raise CascadeError(
                    f"the tokenizer of bundle {folder} has no token {token} to "
                    f"{'pad' if token == info.pad_id else 'frame'} prompts with: build the bundle again."
                )
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        unknown = getattr(self._tokenizer.model, "unk_token", None) or "<unk>"  # a unigram model does not say
        self._unknown: int | None = self._tokenizer.token_to_id(unknown)

    def encode(self, prompts: Sequence[str]) -> Encoded:
        """Raises CascadeError for a prompt of which nothing is left for the model."""
        length = self._info.max_length
        ids = np.full((len(prompts), length), self._info.pad_id, np.int64)
        mask = np.zeros((len(prompts), length), bool)
        warnings: list[tuple[str, ...]] = []
        for row, prompt in enumerate(prompts):
            name, form = f"prompt {row + 1}", self._info.form
            tokens, said = self._tokens(name, prompt) if form is None else self._formed(form, name, prompt)
            ids[row, length - len(tokens) :] = tokens
            mask[row, length - len(tokens) :] = True
            warnings.append(tuple(said))
        return Encoded(ids, mask, warnings)

    def _tokens(self, name: str, prompt: str) -> tuple[list[int], list[str]]:
        """At most T token ids of one prompt, which sentences call `name`, and what is to be said of it."""
        removed: list[str] = []
        text = clean_caption(prompt, removed) if self._info.clean else prompt.strip()
        if not text:
            raise CascadeError(
                f"nothing of {name} is left: the model's rules for captions remove {_listed(removed or [prompt])}; "
                "say it in other words, as a rule in English."
            )
        encoding = self._tokenizer.encode(text)
        if all(encoding.special_tokens_mask):
            raise CascadeError(f"nothing of {name} is left: the text encoder has no tokens for {short(prompt)}.")
        said = []
        if removed:
            said.append(f"{name}: the model's rules for captions removed {_listed(removed)}.")
        if unknown := self._unread(text, encoding):
            said.append(f"{name}: the text encoder does not know {_listed(unknown)}, so the image cannot show it.")
        tokens, length = encoding.ids, self._info.max_length
        if len(tokens) > length:
            said.append(f"{name} has {len(tokens)} tokens, the model reads {length}: the rest was cut.")
            tokens = [*tokens[: length - 1], tokens[-1]]  # keep the end-of-text token
        return tokens, said

    def _formed(self, form: PromptForm, name: str, prompt: str) -> tuple[list[int], list[str]]:
        """The same by a form: what is too long loses tokens of the prompt, and the template stays whole."""
        prompt = prompt.strip() if form.strip else prompt
        text = form.before + prompt + form.after if prompt or not form.empty else form.empty
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        first, last = len(form.before), len(form.before) + len(prompt)
        own = [i for i, (start, stop) in enumerate(encoding.offsets) if start < last and first < stop]
        if prompt and not own:
            raise CascadeError(f"nothing of {name} is left: the model has no tokens for {short(prompt)}.")
        said = []
        if unknown := self._unread(text, encoding):
            said.append(f"{name}: the model does not know {_listed(unknown)}, so the image cannot show it.")
        cut = self._cut(form, name, encoding, [i for i in own if encoding.offsets[i][1] <= last])
        if cut:
            said.append(f"{name} has {len(own)} tokens, the model reads {len(own) - len(cut)}: the rest was cut.")
        kept = [token for i, token in enumerate(encoding.ids) if i not in cut]
        return [*form.begin, *kept, *form.end], said

    def _cut(self, form: PromptForm, name: str, encoding: Any, own: list[int]) -> set[int]:
        """Which of the `own` tokens of a prompt there is no room for: the last ones, no letter in two."""
        more = len(form.begin) + len(encoding.ids) + len(form.end) - self._info.max_length
        if more <= 0:
            return set()
        room = len(own) - more
        while room > 0 and encoding.offsets[own[room - 1]] == encoding.offsets[own[room]]:  # bytes of one letter
            room -= 1
        if room < 1:
            raise CascadeError(
                f"nothing of {name} is left: the model reads {self._info.max_length} tokens, which what stands around "
                "a prompt takes: build the bundle again with a larger --prompt-length."
            )
        return set(own[room:])

    def _unread(self, text: str, encoding: Any) -> list[str]:
        """The parts of a text that are the tokenizer's unknown token."""
        if self._unknown is None or self._unknown not in encoding.ids:
            return []
        found = zip(encoding.ids, encoding.offsets, strict=True)
        return [text[start:stop] for token, (start, stop) in found if token == self._unknown]


def rows_of(info: TextInfo, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """int64 [2, T]: the conditional and the unconditional row of a model that reads token ids; `ids` int64 [T] are the
    conditional one's, valid where `mask` bool [T] says so."""
    form = info.form
    assert form is not None  # the manifest was checked
    other = np.full_like(ids, info.pad_id)
    if form.uncond_pad is None:
        other[len(ids) - len(form.uncond) :] = form.uncond
    else:
        valid = np.flatnonzero(mask)
        other[valid] = form.uncond_pad
        ends = valid[[0, -1]]
        other[ends] = ids[ends]
    return np.stack([ids, other])


def _listed(parts: Iterable[str]) -> str:
    """Parts of a prompt in a sentence, each once."""
    words = list(dict.fromkeys(word for part in parts if (word := part.strip())))
    named = ", ".join(short(word) for word in words[:_NAMED])
    return named if len(words) <= _NAMED else f"{named} and {len(words) - _NAMED} more"
