"""The scan of activations: what it sees, what it says, and that a build's manifest and output carry it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from support import build, save_checkpoints

from cascade_trt.cli import cli
from cascade_trt.export.overflow import FP16_LARGEST, ActivationScan, fp16_advice, fp16_sentence
from cascade_trt.runtime.bundle import read_manifest


def test_inputs_and_outputs_of_every_module_count() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.ReLU())
    module[0].weight.data = torch.tensor([[-300.0, 0.0], [0.0, 1.0]])
    scan = ActivationScan()
    with scan.watch("one"):
        module(torch.tensor([[10.0, 1.0]]))
    with scan.watch("two"):
        module(torch.tensor([[0.0, 7.0]]))
    module(torch.full((1, 2), 1e9))  # not watched
    assert scan.largest == {"one": (3000.0, "Linear"), "two": (7.0, "Linear")}
    assert scan.entry("one")["activations"]["largest"] == 3000.0 and scan.entry("none") == {}


def test_what_a_mask_hides_is_no_activation() -> None:
    scan = ActivationScan()
    lowest = torch.finfo(torch.float32).min
    with scan.watch("text"):
        torch.nn.Identity()(torch.tensor([[-8.0, lowest]]))
    assert scan.largest["text"][0] == 8.0


@pytest.mark.parametrize(
    ("largest", "words"),
    [(100.0, "well inside fp16"), (FP16_LARGEST / 2, "bf16 is safer"), (1e6, "build with --precision bf16")],
)
def test_the_sentence(largest: float, words: str) -> None:
    assert words in fp16_sentence(largest, "Block")
    entry = {"activations": {"largest": largest, "module": "Block", "fp16": fp16_sentence(largest, "Block")}}
    advice = fp16_advice({"target": entry, "embed": {}})
    assert advice == ([] if largest == 100 else [f"target: {entry['activations']['fp16']}"])


def test_a_build_advises_bf16_where_activations_outgrow_fp16(tmp_path: Path) -> None:
    """Large gate and up weights: their product leaves fp16, and the weights themselves do not."""
    arguments = save_checkpoints(tmp_path / "c")
    assert "activations reach" not in build(*arguments, "--out", tmp_path / "tame")
    reports = read_manifest(tmp_path / "tame").parity
    assert all(report["activations"]["largest"] > 0 for name, report in reports.items() if name != "embed")
    file = tmp_path / "c" / "target.pt"
    content = torch.load(file, weights_only=True)
    for name in ("w1", "w3"):
        content["model"][f"layers.1.feed_forward.{name}.weight"] *= 4000
    content["model"]["layers.1.feed_forward.w2.weight"] /= 4000
    torch.save(content, file)
    said = build(*arguments, "--out", tmp_path / "wild")
    assert "target: activations reach" in said and "build with --precision bf16" in said
    seen = read_manifest(tmp_path / "wild").parity["target"]["activations"]
    assert seen["largest"] > FP16_LARGEST and seen["fp16"] in said
    shown = CliRunner().invoke(cli, ["info", str(tmp_path / "wild")]).output
    assert f"{seen['largest']:.3g}" in shown
