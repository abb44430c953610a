"""`cascade-trt models`: what can be built."""

from __future__ import annotations

import json
from dataclasses import asdict

import click
from rich.console import Console
from rich.table import Table

from ..export.families.llamagen.presets import PRESETS


def run(as_json: bool) -> None:
    if as_json:
        rows = [asdict(p) | {"parameters": p.parameters, "image_size": p.image_size} for p in PRESETS.values()]
        click.echo(json.dumps(rows, indent=1))
        return
    table = Table("model", "weights", "layers x width", "picture", "tokens", "guidance", "top_k", "download")
    for preset in PRESETS.values():
        size = f"{preset.parameters / 1e6:.0f} M" if preset.parameters < 1e9 else f"{preset.parameters / 1e9:.1f} B"
        table.add_row(
            preset.name, size, f"{preset.n_layer} x {preset.dim}", f"{preset.image_size} px",
            str(preset.grid**2), str(preset.guidance_scale), str(preset.top_k), preset.download,
        )  # fmt: skip
    console = Console(width=None if Console().is_terminal else 160)
    console.print(table)
    console.print(
        "build one: cascade-trt build llamagen --checkpoint F --vq F [--drafter F] [--text DIR] --grid 16|24|32\n"
        "or, for sizing, with random weights: cascade-trt build llamagen-t2i-b --dummy-weights\n"
        "the bundled demo: cascade-trt build emoji",
        highlight=False,
    )
