"""Opens a repository of Chameleon's family as parts of a build, or makes parts of its size with random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ....runtime.bundle import SamplingDefaults, TextInfo
from ....runtime.errors import CascadeError
from ....runtime.model_info import DOWN
from ...checkpoints.reading import read_json
from ...checkpoints.settings import check_grid, check_names, rules, sampling_of, state_table, whole
from ...checkpoints.source import DummySource, TensorSource
from ...checkpoints.vq import check_vq_matches, open_vqgan, vq_shapes
from ...model import TargetModel
from ...models.vq import VQConfig
from ...parts import TOKENIZER, Parts
from ...request import BuildRequest
from .family import drafter_model, target_model
from .model import ChameleonConfig
from .presets import CODES, Preset
from .reader import chameleon_shapes, drafter_shapes, open_chameleon, open_drafter
from .sequence import Sequence
from .vocabulary import Vocabulary, dummy_tokenizer, find_tokenizer, open_vocabulary

# Of --config; the checkpoint's own config has the rest.
_SETTINGS = ("cfg_scale", "temperature", "top_k", "top_p", "rules", "states", "grid")
PROMPT_LENGTH = 128  # slots of a prefix, what stands around the prompt included


@dataclass(frozen=True)
class Kind:
    """What sets a model of the family apart: `name` on the command line, `title` in messages, its `preset`.

    `is_lumina`: its config has Lumina-mGPT's settings, and its published drafters one norm for all heads. `sequence`
    gives that of a vocabulary for the images that are asked for; `unused` are options it has no use for.
    """

    name: str
    title: str
    preset: Preset
    is_lumina: bool
    sequence: Callable[[Vocabulary, Images], Sequence]
    unused: tuple[str, ...]


@dataclass(frozen=True)
class Images:
    """Which images are asked for: a side in codes or a size as text, and the folder, whose name may tell. `pixels` is
    the side of a code."""

    grid: int | None
    size: str | None
    folder: Path | None
    pixels: int


def open_repository(request: BuildRequest, kind: Kind) -> tuple[Parts, SamplingDefaults]:
    """The parts of a request; everything is checked before anything is read. Raises CascadeError."""
    folder = request.checkpoint
    if folder is None:
        raise CascadeError(f"give the folder of {kind.title}'s repository: --checkpoint FOLDER.")
    for name in kind.unused:
        if getattr(request, name) is not None:
            raise CascadeError(f"{kind.title} takes no --{name.replace('_', '-')}: leave it away.")
    settings = _settings(request, kind)
    source, config = open_chameleon(folder, kind.title, kind.is_lumina)
    vq_file = request.vq or folder / "tokenizer" / "vqgan.ckpt"
    if request.vq is None and not vq_file.is_file():
        raise CascadeError(f"{folder} has no tokenizer/vqgan.ckpt, which draws the pixels: give Meta's with --vq.")
    vocabulary = open_vocabulary(find_tokenizer(folder, vq_file), config.vocab_size)
    vq, vq_config = open_vqgan(vq_file)
    grid = whole(settings, "grid", kind.preset.grid) if request.grid is None else check_grid(request.grid)
    sequence = kind.sequence(vocabulary, Images(grid, request.size, folder, vq_config.factor))
    check_vq_matches(sequence.plan, vq_config)
    parts: dict[str, Any] = {"rules": rules(settings)}
    if request.drafter is not None:
        found, drafter = open_drafter(request.drafter, config, kind.title, not kind.is_lumina)
        parts["drafter"] = drafter_model(found, drafter, sequence.kept)
    if request.config is not None:
        parts["states"] = state_table(settings, request.config.parent, (sequence.plan.codes, config.dim))
    length = PROMPT_LENGTH if request.prompt_length is None else request.prompt_length
    target = target_model(source, config, sequence, kind.name, f"{config.n_layer}x{config.dim}", length)
    opened = _parts(target, (vq, vq_config), sequence, vocabulary.file, **parts)
    return opened, _sampling(kind.preset, settings)


def open_dummy(
    kind: Kind, grid: int | None, prompt_length: int | None = None
) -> tuple[Parts, SamplingDefaults]:
    """Random weights of the preset's size, with a drafter of LANTERN's shape and a tokenizer of bytes."""
    preset = kind.preset
    config = ChameleonConfig(
        dim=preset.dim, n_layer=preset.n_layer, n_head=preset.n_head, n_kv_head=preset.n_head,
        head_dim=preset.head_dim, ffn_dim=preset.ffn_dim, vocab_size=preset.vocab_size,
        norm_rows=(1, 1) if kind.is_lumina else (preset.n_head, preset.n_head),
    )  # fmt: skip
    vq = VQConfig(CODES, 256, ch_mult=preset.vq_ch_mult, attention=False, normalised=False)
    vocabulary, tokenizer = dummy_tokenizer(CODES)
    side = check_grid(preset.grid if grid is None else grid)
    size = f"{side * vq.factor}x{side * vq.factor}"
    sequence = kind.sequence(vocabulary, Images(side, size, None, vq.factor))
    length = PROMPT_LENGTH if prompt_length is None else prompt_length
    target = target_model(DummySource(chameleon_shapes(config)), config, sequence, kind.name, preset.name, length)
    one = replace(config, n_layer=1)
    drafter = drafter_model(DummySource(drafter_shapes(one, bias=True)), one, sequence.kept)
    parts = _parts(target, (DummySource(vq_shapes(vq)), vq), sequence, tokenizer, drafter=drafter, dummy=True)
    return parts, _sampling(preset, {})


def _parts(
    target: TargetModel, vq: tuple[TensorSource, VQConfig], sequence: Sequence, tokenizer: Path | bytes, **more: Any
) -> Parts:
    """Parts with what all models of the family have in common."""
    prompt = TextInfo(TOKENIZER, target.prefix_len, sequence.pad, clean=False, form=sequence.form)
    return Parts(target, *vq, tokenizer=tokenizer, prompt=prompt, rounding=DOWN, **more)


def _settings(request: BuildRequest, kind: Kind) -> dict[str, Any]:
    """What --config says. Raises CascadeError for what it cannot say."""
    if request.config is None:
        return {}
    settings = read_json(request.config)
    check_names(settings, [name for name in _SETTINGS if name not in kind.unused], request.config)
    return settings


def _sampling(preset: Preset, settings: Mapping[str, Any]) -> SamplingDefaults:
    """The preset's defaults, unless the config has its own."""
    usual = SamplingDefaults(preset.guidance_scale, preset.temperature, preset.top_k, 1.0)
    return sampling_of(settings, usual, CODES)
