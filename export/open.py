"""Opens the parts of a model for a build: from checkpoints, from the bundled demo, or with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..runtime.bundle import SamplingDefaults
from ..runtime.errors import CascadeError
from .checkpoints.llamagen import drafter_shapes, llamagen_shapes, open_drafter, open_llamagen
from .checkpoints.settings import check_grid, positive, rules, state_table, whole
from .checkpoints.source import DummySource, read_json
from .checkpoints.t5 import check_text_matches, open_t5, t5_shapes
from .checkpoints.vq import check_vq_matches, open_vq, vq_shapes
from .models.drafter import DrafterConfig
from .models.llamagen import LlamaGenConfig
from .models.vq import VQConfig
from .parts import Parts
from .presets import Preset, get_preset

DEMO = Path(__file__).resolve().parent.parent / "examples" / "emoji" / "weights"


def open_checkpoints(
    checkpoint: Path,
    vq: Path,
    drafter: Path | None,
    text: Path | None,
    config: Path | None,
    overrides: Mapping[str, Any],
) -> tuple[Parts, SamplingDefaults]:
    """LlamaGen from files in the original formats; everything is checked before anything is read.

    `config` is a JSON file and `overrides` are options that win over it. Raises CascadeError.
    """
    settings = (read_json(config) if config is not None else {}) | dict(overrides)
    source, model = open_llamagen(checkpoint, settings)
    vq_source, vq_config = open_vq(vq, settings)
    check_vq_matches(model, vq_config)
    shapes = {"target": llamagen_shapes(model), "vq": vq_shapes(vq_config)}
    parts: dict[str, Any] = {}
    if drafter is not None:
        parts["drafter"], parts["drafter_config"] = open_drafter(drafter, model)
        shapes["drafter"] = drafter_shapes(parts["drafter_config"])
    if text is not None:
        parts["text"], parts["text_config"], parts["tokenizer"] = open_t5(text)
        check_text_matches(model, parts["text_config"])
        shapes["text"] = t5_shapes(parts["text_config"])
    parts["rules"] = rules(settings)
    if config is not None and drafter is not None:
        parts["states"] = state_table(settings, config.parent, (model.vocab_size, model.dim))
    variant = f"{model.condition[0]}2i {model.n_layer}x{model.dim}"
    opened = Parts(variant, source, model, vq_source, vq_config, shapes, **parts)
    return opened, _sampling(model, settings)


def _sampling(model: LlamaGenConfig, settings: Mapping[str, Any]) -> SamplingDefaults:
    """LlamaGen's defaults for texts and classes, unless the config has its own."""
    guidance, top_k = (7.5, 1000) if model.condition == "text" else (4.0, 2000)
    return SamplingDefaults(
        positive(settings, "cfg_scale", guidance),
        positive(settings, "temperature", 1.0),
        min(whole(settings, "top_k", top_k), model.vocab_size),
        min(positive(settings, "top_p", 1.0), 1.0),
    )


def open_demo() -> tuple[Parts, SamplingDefaults]:
    """The bundled demo model."""
    if not (DEMO / "target.safetensors").is_file():
        raise CascadeError(f"the demo weights are not in {DEMO}: install the whole repository.")
    drafter = DEMO / "drafter.safetensors"
    return open_checkpoints(
        DEMO / "target.safetensors", DEMO / "vq.safetensors", drafter if drafter.is_file() else None,
        DEMO / "text", DEMO / "config.json", {},
    )  # fmt: skip


def open_dummy(name: str, grid: int | None) -> tuple[Parts, SamplingDefaults]:
    """Random weights of a preset's size, with a drafter of LANTERN's shape and no text encoder."""
    preset: Preset = get_preset(name)
    model = LlamaGenConfig(
        dim=preset.dim, n_layer=preset.n_layer, n_head=preset.n_head, ffn_dim=preset.ffn_dim,
        vocab_size=preset.vocab_size, grid=check_grid(preset.grid if grid is None else grid),
        prefix_len=preset.prefix_len, condition=preset.condition, caption_dim=preset.caption_dim,
        num_classes=preset.num_classes,
    )  # fmt: skip
    vq = VQConfig(codebook_size=preset.vocab_size, ch_mult=preset.vq_ch_mult)
    drafter = DrafterConfig(
        dim=model.dim, n_head=model.n_head, ffn_dim=model.ffn_dim, vocab_size=model.vocab_size,
        grid=model.grid, prefix_len=model.prefix_len,
    )  # fmt: skip
    shapes = {"target": llamagen_shapes(model), "vq": vq_shapes(vq), "drafter": drafter_shapes(drafter)}
    parts = Parts(
        preset.name, DummySource(shapes["target"]), model, DummySource(shapes["vq"]), vq, shapes,
        drafter=DummySource(shapes["drafter"]), drafter_config=drafter, dummy=True,
    )  # fmt: skip
    return parts, SamplingDefaults(preset.guidance_scale, 1.0, preset.top_k, 1.0)


