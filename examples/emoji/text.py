"""The demo's text side: a BPE tokenizer over captions, and prompts as left-padded ids."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

from .captions import BACKGROUNDS, caption
from .data import DataSet

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
_VOCAB = 3200  # nearly every word of the captions becomes one token; unknown words fall into pieces


def train_text_tokenizer(data: DataSet, out: Path) -> Tokenizer:
    """A lower-casing BPE tokenizer that ends every text with </s>; kept in out/tokenizer.json."""
    file = out / "tokenizer.json"
    if file.is_file():
        return Tokenizer.from_file(str(file))
    rng = random.Random(0)
    backgrounds = list(BACKGROUNDS)
    texts = [caption(p, rng.choice(backgrounds), rng) for p in data.emoji for _ in range(4)]
    texts += [tag for p in data.emoji for tag in p.tags]
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(vocab_size=_VOCAB, special_tokens=[PAD, END, UNKNOWN], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 1)])  # type: ignore[assignment]
    tokenizer.save(str(file))
    return tokenizer


def encode(tokenizer: Tokenizer, texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
    """ids int64 [P, length], padded on the left, and their mask bool [P, length]."""
    ids = torch.zeros(len(texts), length, dtype=torch.long)
    mask = torch.zeros(len(texts), length, dtype=torch.bool)
    for row, text in enumerate(texts):
        tokens = tokenizer.encode(text).ids
        tokens = tokens if len(tokens) <= length else [*tokens[: length - 1], tokens[-1]]
        ids[row, length - len(tokens) :] = torch.tensor(tokens)
        mask[row, length - len(tokens) :] = True
    return ids, mask
