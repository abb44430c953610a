"""The Janus-Pro fixture: changed copies of it, drafters for it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from support import FIXTURE

from cascade_trt.export.families.janus.reader import drafter_shapes
from cascade_trt.export.models.llama import LayerConfig

JANUS = FIXTURE.parent / "janus-tiny"
WEIGHTS = "pytorch_model.bin"
Tensors = dict[str, torch.Tensor]


def tensors() -> Tensors:
    """The checkpoint's."""
    return torch.load(JANUS / WEIGHTS)


def copy(folder: Path, change: Callable[[Tensors], Mapping[str, torch.Tensor]] | None = None) -> Path:
    """The fixture in `folder`, its tensors changed."""
    shutil.copytree(JANUS, folder, ignore=shutil.ignore_patterns("golden.npz", WEIGHTS if change else ""))
    if change is not None:
        torch.save(dict(change(tensors())), folder / WEIGHTS)
    return folder


def edit(file: Path, **changes: Any) -> None:
    """Entries of a JSON file; those that become None go."""
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def save_drafter(folder: Path, seed: int = 0, codes: int = 512, dim: int = 64) -> Path:
    """A random drafter of LANTERN's form for the fixture."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    shapes = drafter_shapes(LayerConfig(dim, 4, 4, dim // 4, 96, 1e-6), codes, bias=True)
    found = {name: torch.randn(shape, generator=generator) * shape[-1] ** -0.5 for name, shape in shapes.items()}
    found |= {name: 1 + x for name, x in found.items() if name.endswith("layernorm.weight")}
    torch.save(found, folder / WEIGHTS)
    (folder / "config.json").write_text(json.dumps({"num_hidden_layers": 1, "num_attention_heads": 4}))
    return folder
