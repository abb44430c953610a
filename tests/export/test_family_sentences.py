"""What `models` and `build` say of families: what is missing is named, and nothing twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from janus import JANUS
from rich.cells import cell_len
from support import FIXTURE

from cascade_trt.cli import cli
from cascade_trt.commands import models
from cascade_trt.export.open import open_parts
from cascade_trt.export.request import BuildRequest
from cascade_trt.runtime.errors import CascadeError


def refused(sentence: str, request: BuildRequest) -> None:
    with pytest.raises(CascadeError, match=sentence):
        open_parts(request)


def test_what_of_llamagen_is_missing_is_named() -> None:
    refused("^give LlamaGen's checkpoint: --checkpoint", BuildRequest("llamagen", vq=FIXTURE / "vq.pt"))
    refused("^give the VQ tokenizer.*: --vq", BuildRequest("llamagen", checkpoint=FIXTURE / "gpt_t2i.pt"))


def test_a_folder_without_a_config_says_which_is_wanted(tmp_path: Path) -> None:
    refused("has no config.json: give the folder of Janus-Pro's repo", BuildRequest("janus-pro", checkpoint=tmp_path))


def test_models_fits_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the program is on the path."""
    monkeypatch.setattr(models, "program", lambda: "cascade-trt")
    monkeypatch.delenv("COLUMNS", raising=False)
    said = CliRunner().invoke(cli, ["models"]).stdout.splitlines()
    assert max(map(cell_len, said)) <= 80
    titles = [line for line in said if "layers" in line]
    assert len(titles) == 1 and titles[0].split() == [
        "model", "weights", "layers", "image", "tokens", "guidance", "top_k",
    ]  # fmt: skip


def test_what_no_tensorrt_takes_is_said_once(tmp_path: Path) -> None:
    options = ["--tree", "jacobi_4", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(cli, ["build", "janus-pro", "--checkpoint", str(JANUS), *options])
    assert done.exit_code == 0, done.output
    assert done.stdout.count("no attention kernel for head_dim 16") == 1
    assert "tensorrt, tensorrt-rtx: no attention" in done.stdout
