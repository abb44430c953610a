"""The table of published models."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from cascade_trt.export.families.llamagen.model import LlamaGenConfig, llamagen_ffn_dim
from cascade_trt.export.families.llamagen.presets import PRESETS, get_preset
from cascade_trt.export.families.llamagen.reader import llamagen_shapes
from cascade_trt.runtime.errors import CascadeError

# Parameters and tensors of the original models; the null caption is a tensor but, as a buffer, not counted.
COUNTS = {
    "llamagen-c2i-b-256": (110_888_448, 88),
    "llamagen-c2i-l-256": (342_910_976, 172),
    "llamagen-c2i-b-384": (110_888_448, 88),
    "llamagen-c2i-l-384": (342_910_976, 172),
    "llamagen-c2i-xl-384": (774_699_520, 256),
    "llamagen-c2i-xxl-384": (1_410_972_672, 340),
    "llamagen-c2i-3b-384": (3_096_659_200, 172),
    "llamagen-t2i-b": (112_282_368, 90),
    "llamagen-t2i-xl-stage1": (777_678_080, 258),
    "llamagen-t2i-xl-stage2": (777_678_080, 258),
}
NULL_CAPTION = "cls_embedding.uncond_embedding"


def test_every_preset_is_counted() -> None:
    assert set(PRESETS) == set(COUNTS)


@pytest.mark.parametrize("name", COUNTS)
def test_sizes_are_those_of_the_original_models(name: str) -> None:
    preset = get_preset(name)
    parameters, tensors = COUNTS[name]
    assert preset.parameters == parameters
    assert preset.ffn_dim == llamagen_ffn_dim(preset.dim)
    config = LlamaGenConfig(
        dim=preset.dim, n_layer=preset.n_layer, n_head=preset.n_head, ffn_dim=preset.ffn_dim,
        vocab_size=preset.vocab_size, grid=preset.grid, prefix_len=preset.prefix_len,
        condition=preset.condition, caption_dim=preset.caption_dim, num_classes=preset.num_classes,
    )  # fmt: skip
    shapes = llamagen_shapes(config)
    assert len(shapes) == tensors
    assert sum(math.prod(shape) for key, shape in shapes.items() if key != NULL_CAPTION) == parameters


@pytest.mark.parametrize("name", COUNTS)
def test_defaults(name: str) -> None:
    preset = get_preset(name)
    text = preset.condition == "text"
    expected = (120, 7.5, 1000) if text else (1, 4.0, 2000)
    assert (preset.prefix_len, preset.guidance_scale, preset.top_k) == expected
    assert preset.image_size == 16 * preset.grid == {16: 256, 24: 384, 32: 512}[preset.grid]
    assert preset.dim // preset.n_head == (100 if "-3b-" in name else 64)


def test_an_unknown_preset_is_a_sentence() -> None:
    with pytest.raises(CascadeError, match=r"unknown model 'gpt-9'.*models"):
        get_preset("gpt-9")


def test_presets_need_no_torch() -> None:
    module = "cascade_trt.export.families.llamagen.presets"
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
