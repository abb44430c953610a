"""`cascade-trt eval` as a user runs it: drawn sets, folders of images, features of one's own, and every refusal."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from support import build, save_checkpoints, save_text_encoder

from cascade_trt.cli import cli


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    arguments = save_checkpoints(folder / "checkpoints", vocab=32, grid=6)
    text = save_text_encoder(folder / "encoder", width=16)
    build(*arguments, "--text", text, "--batch", 2, "--tree", "pair_4", "--out", folder / "bundle")
    return folder / "bundle"


def evaluate(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["eval", "--threads", "1", *map(str, arguments)])


def report(*arguments: object) -> dict[str, Any]:
    result = evaluate(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.slow
def test_rules_side_by_side(bundle: Path, judge_file: Path, tmp_path: Path) -> None:
    """`exact` draws the images of `ar`, so every paired difference is nought; other seeds draw others."""
    out = tmp_path / "eval"
    found = report("--bundle", bundle, "--judge", judge_file, "--rule", "ar", "--rule", "exact", "--tree", "pair_4",
                   "--num-images", 9, "--seed", 5, "--spread", "--out", out)  # fmt: skip
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == ["real images", "reconstructions", "ar", "exact", "ar, seed 1048581"]
    assert [row["images"] for row in found["rows"]] == [9] * 5
    own = ("name", "tree", "tau", "tau_interval", "images_per_second")
    same = {name: value for name, value in rows["ar"].items() if name not in own}
    assert same.items() <= rows["exact"].items()
    assert rows["ar"]["tau"] == 1 <= rows["exact"]["tau"]
    assert [row.get("tree") for row in found["rows"]] == [None, None, None, "pair_4", None]
    assert rows["ar"]["groups"]["held-out"]["images"] == 3
    (pair,) = found["paired"]
    assert (pair["first"], pair["second"], pair["frechet"]) == ("ar", "exact", 0)
    assert pair["concept"] == {"mean": 0, "low": 0, "high": 0, "pairs": 9}
    assert found["spread"]["frechet"] > 0
    assert json.loads((out / "report.json").read_text()) == found
    assert Image.open(out / "sheet.png").width > 500
    table = evaluate("--images", out / "exact-pair_4-seed5", "--judge", judge_file, "--out", tmp_path / "again")
    assert table.exit_code == 0, table.output
    assert "exact-pair_4" in table.stdout and "report.json" in table.stdout
    read = json.loads((tmp_path / "again" / "report.json").read_text())["rows"][-1]
    assert read["frechet"] == rows["exact"]["frechet"] and read["concept"] == rows["exact"]["concept"]


@pytest.mark.slow
def test_what_is_drawn_is_kept(bundle: Path, judge_file: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("red apple\na cat\n")
    call = ("--bundle", bundle, "--judge", judge_file, "--prompts", tmp_path / "p.txt", "--out", tmp_path, "--seed", 1)
    first = report(*call, "--num-images", 3)
    files = sorted((tmp_path / "ar-seed1").glob("*.png"))
    assert [file.name for file in files] == ["00000.png", "00001.png", "00002.png"]
    written = [file.stat().st_mtime_ns for file in files]
    files[1].write_bytes(files[1].read_bytes()[:100])
    again = report(*call, "--num-images", 3)
    assert files[0].stat().st_mtime_ns == written[0] and files[1].stat().st_mtime_ns != written[1]
    assert first["rows"][-1]["frechet_held_out"] is None
    assert first["rows"][-1]["concept"] == again["rows"][-1]["concept"]
    (tmp_path / "p.txt").write_text("red apple\na red cat\n")
    report(*call, "--num-images", 4)
    assert files[0].stat().st_mtime_ns == written[0]
    assert Image.open(files[1]).info["prompt"] == "a red cat"


def test_the_tree_of_each_rule_is_told(bundle: Path, judge_file: Path, tmp_path: Path) -> None:
    """That it was drawn with where none was asked for, too."""
    (tmp_path / "p.txt").write_text("red apple\n")
    given = ("--bundle", bundle, "--judge", judge_file, "--prompts", tmp_path / "p.txt", "--num-images", 1)
    rules = ("--rule", "ar", "--rule", "exact", "--rule", "cool:delta=1")
    result = evaluate(*given, *rules, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "out" / "report.json").read_text())["rows"]
    trees = {row["name"]: row["tree"] for row in rows if row["kind"] == "drawn"}
    assert trees == {"ar": None, "exact": "auto", "cool:delta=1": "pair_4"}
    speed = result.stdout[result.stdout.index("speed of this run") :].splitlines()
    for rule, tree in trees.items():
        assert any(line.split("│")[1:3] == [f" {rule:<12} ", f" {tree or '-':<6} "] for line in speed)


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_drawn(bundle: Path, judge_file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cascade_trt", "eval", "--bundle", str(bundle), "--judge", str(judge_file),
               "--num-images", "2000", "--out", str(tmp_path), "--threads", "1"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.rglob("*.png"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    files = sorted((tmp_path / "ar-seed0").iterdir())
    assert f"{len(files)} images are kept" in stderr and "Traceback" not in stderr
    assert all(file.suffix == ".png" for file in files)
    for file in files:
        Image.open(file).load()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder, rng = tmp_path / "mine", np.random.default_rng(0)
    folder.mkdir()
    lines = ["file,prompt,concept"]
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).save(folder / f"{i}.png")
        lines.append(f"{i}.png,a red cat,{'cat' if i % 2 else ''}")
    (folder / "list.csv").write_text("\n".join(lines))
    return folder


class Mean(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


@pytest.mark.parametrize("judge", ["none", ""])
def test_own_images_features_and_reference(images: Path, judge_file: Path, tmp_path: Path, judge: str) -> None:
    torch.jit.script(Mean()).save(str(tmp_path / "mean.pt"))
    found = report("--images", images, "--captions", images / "list.csv", "--judge", judge or judge_file,
                   "--features", tmp_path / "mean.pt", "--reference", images, "--out", tmp_path / "out")  # fmt: skip
    row = found["rows"][-1]
    assert (row["name"], row["kind"], row["images"]) == ("mine", "images", 6)
    assert row["frechet"] == pytest.approx(0, abs=1e-6)
    assert (row["precision"], row["recall"]) == (1, 1)
    assert (row["concept"] is None) == (judge == "none")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.json", "sheet.png"]


FEW = "Warning: a Fréchet distance of 6 images is due more to their number than to what they show: with 4 features it "
UNLIKE = "and here are real images 30, mine 6: --num-images sets how many real and drawn ones are judged."


@pytest.mark.parametrize(
    ("times", "asked", "said"),
    [(1, 6, [FEW]), (1, 500, [FEW, UNLIKE]), (4, 24, []), (4, 12, ["of 12 images", "real images 12, mine 24"])],
)
def test_what_distances_of_few_images_are_worth(
    images: Path, judge_file: Path, tmp_path: Path, times: int, asked: int, said: list[str]
) -> None:
    """The judge has 4 features, and 30 real images."""
    head, *lines = (images / "list.csv").read_text().splitlines()
    (images / "list.csv").write_text("\n".join([head, *(lines * times)]))
    result = evaluate("--images", images, "--captions", images / "list.csv", "--judge", judge_file, "--num-images",
                      asked, "--out", tmp_path / "out")  # fmt: skip
    assert result.exit_code == 0, result.output
    told = [line for line in result.stderr.splitlines() if line.startswith("Warning: ")]
    assert len(told) == len(said)
    assert all(part in line for part, line in zip(said, told, strict=True))


def refused(result: Result, said: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stderr.startswith("Error: ") and said in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--num-images", "0"], "--num-images"),
        (["--num-images", "1000000000000"], "--num-images must be at most 100000"),
        (["--judge", "."], "there is no judge in ."),
        (["--judge", ".."], "there is no judge in .."),
        (["--judge", "/"], "there is no judge in /"),
        (["--captions", "x"], "--captions belongs to --images"),
        (["--judge", "none"], "nothing to measure"),
        (["--judge", "nowhere.safetensors"], "there is no judge"),
        (["--features", "nowhere.pt"], "no TorchScript module"),
        (["--reference", "nowhere"], "there are no images"),
        (["--images", "nowhere"], "cannot be read"),
        (["--bundle", "nowhere"], "there is no bundle"),
        (["--prompts", "nowhere.txt"], "cannot be read"),
        (["--rule", "magic"], "unknown rule 'magic'"),
        (["--rule", "exact", "--tree", "chain"], "chain"),
    ],
)
def test_refusals(bundle: Path, judge_file: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    given = [] if "--judge" in arguments else ["--judge", judge_file]
    given += [] if "--bundle" in arguments or "--images" in arguments else ["--bundle", bundle]
    refused(evaluate(*arguments, *given, "--out", tmp_path / "out"), said)


def test_a_missing_image_is_named(images: Path, judge_file: Path, tmp_path: Path) -> None:
    (images / "3.png").unlink()
    call = ("--images", images, "--captions", images / "list.csv", "--judge", judge_file, "--out", tmp_path / "out")
    refused(evaluate(*call), "3.png cannot be read")
