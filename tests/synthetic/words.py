"""The synthetic family once more, with prompts that it reads as token ids: no text encoder, a tokenizer and a form."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cascade_trt.export.build import BuildOptions, build_bundle
from cascade_trt.export.checkpoints.source import Derived, RenamedSource, open_source, renamed
from cascade_trt.export.checkpoints.vq import open_vq
from cascade_trt.export.model import Conditioner
from cascade_trt.export.parts import TOKENIZER, Parts
from cascade_trt.runtime.bundle import TOKENS, ConditionInfo, Manifest, PromptForm, TextInfo
from cascade_trt.runtime.model_info import DOWN
from cascade_trt.runtime.tree import get_tree

from . import model as m
from .family import SAMPLING, drafter_model, reference, save_checkpoints, target_model

WORDS = ("<unk>", "<pad>", "<s>", "</s>", "draw", ":", "!", "a", "red", "green", "apple", "old", "cat", "on", "house")
LENGTH, PAD = 12, 1
OWN_ROW = PromptForm([2], "draw : ", " !\n", [3], uncond=[2, 3, 3])  # the unconditional row has ids of its own
PADDED_ROW = PromptForm([2], "draw : ", " !\n", [3], uncond_pad=PAD)


class WordsTarget(m.Target):
    """Prefixes are rows of a table."""

    def prefix(self, given: Tensor, uncond: Tensor) -> Tensor:  # noqa: ARG002 - the rows have ids of their own
        return self._tensors["words.weight"][given]


def tokenizer() -> bytes:
    """Whole words between blanks; it makes a `<s>` of its own before a text that asks for special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    return made.to_str().encode()


def build_words(
    folder: Path, form: PromptForm = OWN_ROW, trees: tuple[str, ...] = ("small_9",), precision: str = "fp32"
) -> tuple[Path, Manifest]:
    """A bundle of random weights in `folder`, its path and manifest."""
    request = save_checkpoints(folder / "checkpoints")
    assert request.checkpoint is not None and request.vq is not None and request.drafter is not None
    table = torch.randn(len(WORDS), m.SIZES.dim, generator=torch.Generator().manual_seed(7))
    save_file(load_file(request.checkpoint) | {"words.weight": table}, request.checkpoint)
    source = open_source(request.checkpoint, "checkpoint")
    target = target_model(source)
    weights = renamed(target.weights, {name: name for name in target.weights.names()})
    weights["condition.embedding.weight"] = Derived(tuple(table.shape), lambda: source.load("words.weight"))
    info = ConditionInfo(TOKENS, LENGTH, vocabulary=len(WORDS), uncond_length=len(form.uncond) or None)
    target = replace(
        target, weights=RenamedSource(source.path, weights), conditioner=Conditioner(info),
        reference=reference(WordsTarget),  # type: ignore[arg-type]
    )  # fmt: skip
    parts = Parts(
        target, *open_vq(request.vq, {}), drafter=drafter_model(open_source(request.drafter, "drafter")),
        tokenizer=tokenizer(), prompt=TextInfo(TOKENIZER, LENGTH, PAD, False, form), rounding=DOWN,
    )  # fmt: skip
    options = BuildOptions(
        folder / "bundle", tuple(map(get_tree, trees)), SAMPLING, batch=2, precision=precision
    )
    return options.out, build_bundle(parts, options, lambda *_: None)
