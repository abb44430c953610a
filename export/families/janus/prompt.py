"""How Janus-Pro takes prompts: its form, with ids by their names in the tokenizer."""

from __future__ import annotations

from pathlib import Path

from ....runtime.bundle import PromptForm, TextInfo
from ....runtime.errors import CascadeError
from ...checkpoints.tokenizer import read_vocabulary, token_id
from ...parts import TOKENIZER

PROMPT_LENGTH = 128  # slots of the prefix: 120 tokens of a prompt, as LlamaGen reads, and 8 around it
_BEGIN, _PAD, _IMAGE = "<｜begin▁of▁sentence｜>", "<｜▁pad▁｜>", "<begin_of_image>"
_USER, _ASSISTANT = "<|User|>", "<|Assistant|>"


def open_prompt(folder: Path, vocab_size: int, length: int) -> tuple[TextInfo, Path]:
    """The form of prompts with the ids of the tokenizer in `folder`, for a prefix of `length` slots, and its file.

    Raises CascadeError where there is none, or it is another model's, that of Janus (not Pro) among them.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise CascadeError(f"{folder} has no tokenizer.json: download the whole repository.")
    ids = read_vocabulary(file, vocab_size, "the checkpoint")
    if _IMAGE in ids and not {_USER, _ASSISTANT} <= set(ids):
        raise CascadeError(
            f"the tokenizer {file} has no token {_USER!r}, with which Janus-Pro's prompts begin: it is that of Janus "
            "(not Pro), which is not built; give Janus-Pro."
        )
    begin, pad, image = (token_id(ids, name, file) for name in (_BEGIN, _PAD, _IMAGE))
    return prompt_of(begin, pad, image, length), file


def prompt_of(begin: int, pad: int, image: int, length: int) -> TextInfo:
    """Janus-Pro's form: the unconditional row has pads, which it sees, in the place of the whole conversation."""
    form = PromptForm([begin], f"{_USER}: ", f"\n\n{_ASSISTANT}:", [image], uncond_pad=pad,
                      empty=f"{_USER}:{_ASSISTANT}:")  # as the original, which leaves the blank away, too
    return TextInfo(TOKENIZER, length, pad, clean=False, form=form)


def dummy_prompt(length: int) -> tuple[TextInfo, bytes]:
    """The form of a tokenizer of bytes, for random weights; and the tokenizer."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = [_BEGIN, _PAD, _IMAGE, _USER, _ASSISTANT]
    ids = {name: i for i, name in enumerate([*alphabet, *special])}
    tokenizer = Tokenizer(models.BPE(ids, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in special])
    return prompt_of(ids[_BEGIN], ids[_PAD], ids[_IMAGE], length), tokenizer.to_str().encode()
