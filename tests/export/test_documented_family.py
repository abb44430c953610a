"""The family in docs/adding-a-model.md as it stands there: installed, listed, built from files and at random, drawn."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from cascade_trt.cli import cli
from cascade_trt.export.models.vq import VQConfig, VQModel
from cascade_trt.runtime.pipeline import Pipeline

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "adding-a-model.md"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The document's module, in an installed package."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    about = tmp_path / "site" / "my_family-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: my-family\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[cascade_trt.families]\nmy-family = documented_family:FAMILY\n")
    (tmp_path / "site" / "documented_family.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "documented_family", raising=False)
    return "documented_family"


def run(*arguments: object) -> str:
    done = CliRunner().invoke(cli, [*map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_documented_family_is_built_and_drawn(module: str, tmp_path: Path) -> None:
    assert {"name": "my-family-tiny", "family": "my-family", "package": "my-family", "published": None} in json.loads(
        run("models", "--json")
    )
    run("build", "my-family-tiny", "--dummy-weights", "--tree", "jacobi_4", "--out", tmp_path / "random")
    generator = torch.Generator().manual_seed(0)
    shapes = sys.modules[module].shapes()
    tensors = {name: torch.randn(shape, generator=generator) * shape[-1] ** -0.5 for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "target.safetensors")
    torch.manual_seed(0)
    vq = VQModel(VQConfig(64, 8, 32, 32, (1, 1), 1), with_encoder=False)
    torch.save({"model": vq.state_dict()}, tmp_path / "vq.pt")
    given = ("--checkpoint", tmp_path / "target.safetensors", "--vq", tmp_path / "vq.pt", "--tree", "jacobi_4")
    run("build", "my-family", *given, "--out", tmp_path / "bundle")
    for bundle in ("random", "bundle"):
        with Pipeline.load(tmp_path / bundle, backend="ort-cpu") as pipe:
            plain, exact = (pipe.generate(class_ids=[3, 9], seed=1, rule=rule).codes for rule in ("ar", "exact"))
        np.testing.assert_array_equal(plain, exact)
        assert plain.shape == (2, 16)
