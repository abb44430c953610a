"""`cascade-trt models`: what can be built."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import click

from ..export.families.chameleon.presets import PRESETS as CHAMELEON
from ..export.families.chameleon.presets import Preset as ChameleonPreset
from ..export.families.janus.presets import PRESETS as JANUS
from ..export.families.janus.presets import Preset as JanusPreset
from ..export.families.llamagen.presets import PRESETS as LLAMAGEN
from ..export.families.llamagen.presets import Preset as LlamaGenPreset
from .hints import program
from .tables import Rows

Preset = LlamaGenPreset | JanusPreset | ChameleonPreset


def _facts(preset: Preset) -> dict[str, Any]:
    """A preset for JSON, where its files lie as text."""
    published = None if preset.published is None else str(preset.published)
    return asdict(replace(preset, published=None)) | {"published": published}


def run(as_json: bool) -> None:
    presets: list[Preset] = [*LLAMAGEN.values(), *JANUS.values(), *CHAMELEON.values()]
    if as_json:
        rows = [
            _facts(p) | {"parameters": p.parameters, "image_size": p.image_size, "top_k": p.top_k} for p in presets
        ]
        click.echo(json.dumps(rows, indent=1))
        return
    table = Rows(("model", "weights", "layers x width", "image", "tokens", "guidance", "top_k"))
    files = Rows(("model", "download from the Hugging Face hub"))
    for preset in presets:
        size = f"{preset.parameters / 1e6:.0f} M" if preset.parameters < 1e9 else f"{preset.parameters / 1e9:.1f} B"
        table.add(
            preset.name, size, f"{preset.n_layer} x {preset.dim}", f"{preset.image_size} px",
            str(preset.grid**2), str(preset.guidance_scale), str(preset.top_k),
        )  # fmt: skip
        files.add(preset.name, "no public file" if preset.published is None else str(preset.published))
    table.print()
    files.print()
    build = f"{program()} build"
    click.echo(
        f"build one from the hub:\n  {build} llamagen-t2i-xl-stage1\n"
        f"from files of yours:\n  {build} llamagen --checkpoint F --vq F [--drafter F] [--text DIR] --grid 16|24|32\n"
        f"  {build} janus-pro|anole|lumina-mgpt --checkpoint FOLDER [--drafter FOLDER]\n"
        f"or, for sizing, with random weights:\n  {build} llamagen-t2i-b --dummy-weights\n"
        f"the bundled demo:\n  {build} emoji"
    )
