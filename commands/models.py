"""`cascade-trt models`: what can be built."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import click

from ..export.families import get_family, of_other_packages
from ..export.families.chameleon.presets import PRESETS as CHAMELEON
from ..export.families.chameleon.presets import Preset as ChameleonPreset
from ..export.families.janus.presets import PRESETS as JANUS
from ..export.families.janus.presets import Preset as JanusPreset
from ..export.families.llamagen.presets import PRESETS as LLAMAGEN
from ..export.families.llamagen.presets import Preset as LlamaGenPreset
from ..runtime.errors import CascadeError
from .hints import program, usable
from .tables import Rows

Preset = LlamaGenPreset | JanusPreset | ChameleonPreset


def _facts(preset: Preset) -> dict[str, Any]:
    """A preset for JSON, where its files lie as text."""
    published = None if preset.published is None else str(preset.published)
    return asdict(replace(preset, published=None)) | {"published": published}


def _of_other_packages() -> list[dict[str, Any]]:
    """The families of other packages with their presets; one that cannot be asked is warned of."""
    rows = []
    for name, package in of_other_packages().items():
        try:
            family = get_family(name)
        except ImportError as error:
            install = usable("`pip install 'cascade-trt[export]'`")
            click.echo(f"Warning: the model family {name} of {package} needs {error.name}: run {install}.", err=True)
            continue
        except CascadeError as error:
            click.echo(f"Warning: {error}", err=True)
            continue
        published = {preset: str(files) for preset, files in family.published.items()}
        rows.append({"family": name, "package": package, "presets": sorted(family.presets), "published": published})
    return rows


def run(as_json: bool) -> None:
    presets: list[Preset] = [*LLAMAGEN.values(), *JANUS.values(), *CHAMELEON.values()]
    if as_json:
        rows = [
            _facts(p) | {"parameters": p.parameters, "image_size": p.image_size, "top_k": p.top_k} for p in presets
        ]
        for other in _of_other_packages():
            about = {"family": other["family"], "package": other["package"]}
            rows += [about | {"name": name, "published": other["published"].get(name)} for name in other["presets"]]
            rows += [] if other["presets"] else [about | {"name": other["family"], "published": None}]
        click.echo(json.dumps(rows, indent=1))
        return
    table = Rows(("model", "weights", "layers", "image", "tokens", "guidance", "top_k"))
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
    if others := _of_other_packages():
        brought = Rows(("model family", "package", "models"))
        for other in others:
            brought.add(other["family"], other["package"], ", ".join(other["presets"]) or "from its checkpoint")
        brought.print()
    build = f"{program()} build"
    click.echo(
        f"build one from the hub:\n  {build} llamagen-t2i-xl-stage1\n"
        f"from files of yours:\n  {build} llamagen --grid 16|24|32 \\\n"
        "    --checkpoint F --vq F [--drafter F] [--text DIR]\n"
        f"  {build} janus-pro|anole|lumina-mgpt \\\n    --checkpoint FOLDER [--drafter FOLDER]\n"
        f"or, for sizing, with random weights:\n  {build} llamagen-t2i-b --dummy-weights\n"
        f"the bundled demo:\n  {build} emoji"
    )
