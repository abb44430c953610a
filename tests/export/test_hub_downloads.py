"""What is fetched of a repository, and what becomes of a download that breaks off: over loopback."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hub_stand_in import Hub, build_by_name, serve
from janus import JANUS, WEIGHTS, tensors
from safetensors.torch import save_file
from support import FIXTURE

from cascade_trt.export.published import HubFiles

TEXT, JANUS_REPO = "peizesun/llamagen_t2i", "deepseek-ai/Janus-Pro-1B"
SMALL = ("--grid", 8, "--text", "none", "--config", FIXTURE / "config.json", "--tree", "small_6")
FILE, MODEL, PIECE = "t2i_XL_stage1_256.pt", "llamagen-t2i-xl-stage1", 10 << 20


@pytest.mark.parametrize(
    ("held", "left"),
    [(["config.json", "model.safetensors", "pytorch_model.bin"], ["pytorch_model.bin"]),
     (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json",
       "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "pytorch_model.bin.index.json"],
      ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "pytorch_model.bin.index.json"]),
     (["pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json", "adapter.safetensors"], []),
     (["config.json", "step_20/config.json", "step_20/model.safetensors", "pytorch_model.bin"],
      ["step_20/config.json", "step_20/model.safetensors"])],
)  # fmt: skip
def test_safetensors_go_before_pickles(held: list[str], left: list[str]) -> None:
    """As `open_source` reads a folder; of a subfolder nothing is read."""
    files = HubFiles("a/b", patterns=("*.json", "pytorch_model*.bin", "*.safetensors"))
    assert files.chosen(held) == [name for name in held if name not in left]


def test_patterns_of_folders() -> None:
    files = HubFiles("a/b", patterns=("models/7b/*", "tokenizer/*"))
    held = ["models/7b/consolidated.pth", "models/30b/consolidated.pth", "tokenizer/vqgan.ckpt", "tokenizer/a/b", "x"]
    assert files.chosen(held) == [held[0], held[2]]
    assert HubFiles("a/b", "pytorch_model.bin").chosen(["model.safetensors", "pytorch_model.bin"]) == [
        "pytorch_model.bin"
    ]


@pytest.mark.parametrize("both", [True, False])
def test_a_repository_with_both_forms(tmp_path: Path, both: bool) -> None:
    """Half of what lies there is fetched, and that is what is said and read."""
    folder = tmp_path / "published"
    shutil.copytree(JANUS, folder, ignore=shutil.ignore_patterns("golden.npz", "README.md"))
    if both:
        save_file({name: x.contiguous().clone() for name, x in tensors().items()}, folder / "model.safetensors")
        (folder / WEIGHTS).write_bytes(b"not what it seems")
    with serve(Hub({JANUS_REPO: {file.name: file for file in folder.iterdir()}})) as hub:
        said = build_by_name(tmp_path / "here", "janus-pro", "--tree", "jacobi_4", url=hub.url)
    fetched = {asked.partition(" ")[0] for asked in hub.asked}
    assert fetched & {"model.safetensors", WEIGHTS} == {"model.safetensors" if both else WEIGHTS}
    size = sum((folder / name).stat().st_size for name in fetched)
    assert f"{JANUS_REPO}: {len(fetched)} files, {size / 1e6:.1f} MB, licence mit" in said


@pytest.fixture
def large(tmp_path: Path) -> Hub:
    """LlamaGen's fixture in a file of 24 MB: with what a trainer keeps beside the weights."""
    content = torch.load(FIXTURE / "gpt_t2i.pt", weights_only=False)
    torch.save(content | {"optimizer": {"state": torch.zeros(5 << 20)}}, tmp_path / FILE)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({}))
    files = {FILE: tmp_path / FILE, "vq_ds16_t2i.pt": FIXTURE / "vq.pt"}
    drafter = {"config.json": config, "pytorch_model.bin": FIXTURE / "drafter.pt"}
    return Hub({TEXT: files, "jadohu/llamagen_drafter": drafter})


def asked_for(hub: Hub) -> list[int]:
    """From which bytes on the large file was asked for."""
    return [int(asked.rpartition(" ")[2]) for asked in hub.asked if asked.startswith(FILE)]


def test_a_download_goes_on_where_it_broke(large: Hub, tmp_path: Path) -> None:
    """By Range requests, behind the last whole piece: twice here, the second time after nothing more came."""
    large.cut[FILE] = [PIECE + 12345, 77]
    with serve(large) as hub:
        build_by_name(tmp_path / "here", MODEL, *SMALL, url=hub.url)
    assert asked_for(hub) == [0, PIECE, PIECE]
    (blob,) = (tmp_path / "here" / "hf").rglob(FILE)
    assert blob.read_bytes() == (tmp_path / FILE).read_bytes()


def test_a_download_that_was_given_up(large: Hub, tmp_path: Path) -> None:
    """The next run begins that file anew: huggingface_hub throws a part away. What is whole is not fetched again."""
    large.cut = {FILE: [PIECE + 1, *[0] * 9], "vq_ds16_t2i.pt": [0] * 9}
    asked = []
    with serve(large) as hub:
        for code in (2, 2, 0):
            said = build_by_name(tmp_path / "here", MODEL, *SMALL, url=hub.url, code=code)
            last = said.strip().splitlines()[-1]
            assert code == 0 or last.startswith("Error: the hub cannot be reached (")
            assert code == 0 or last.endswith("or run it again, which keeps the files that are whole.")
            assert not list((tmp_path / "here").rglob("*.incomplete"))
            asked.append(asked_for(hub))
            hub.asked.clear()
            hub.cut.pop(FILE if len(asked) == 1 else "vq_ds16_t2i.pt", None)
    first, second, third = asked
    assert first[0] == 0 and set(first[1:]) == {PIECE} and second == [0] and third == []
