"""Folders as users bring them, through the command line: what is wrong is one sentence, and what is right is built."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from janus import JANUS, WEIGHTS, edit, save_drafter, tensors
from safetensors.torch import load_file, save_file
from support import FIXTURE, build

from cascade_trt.cli import cli
from cascade_trt.export.open import open_parts
from cascade_trt.export.request import BuildRequest

ANOLE, LUMINA = FIXTURE.parent / "anole-tiny", FIXTURE.parent / "lumina-tiny"
INDEX, FIRST, SECOND = "model.safetensors.index.json", *(f"model-0000{n}-of-00002.safetensors" for n in (1, 2))
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
OPTIONS: dict[str, tuple[object, ...]] = {"anole": ("--grid", 8), "lumina-mgpt": ("--size", "96x96"), "janus-pro": ()}
FOLDERS = {"anole": ANOLE, "lumina-mgpt": LUMINA, "janus-pro": JANUS}
Change = Callable[[Path], object]


def text(name: str, content: str) -> Change:
    return lambda folder: (folder / name).write_text(content)


def without(*names: str) -> Change:
    return lambda folder: [(folder / name).unlink() for name in names]


def taken(name: str, file: Path) -> Change:
    """A file of another model in the place of the folder's own."""
    return lambda folder: shutil.copy(file, folder / name)


def config(**changes: Any) -> Change:
    return lambda folder: edit(folder / "config.json", **changes)


def index(change: Callable[[dict[str, str]], dict[str, str]]) -> Change:
    def run(folder: Path) -> None:
        content = json.loads((folder / INDEX).read_text())
        (folder / INDEX).write_text(json.dumps(content | {"weight_map": change(content["weight_map"])}))

    return run


def lacks_its_last_layer(folder: Path) -> None:
    for shard in (FIRST, SECOND):
        held = load_file(folder / shard)
        save_file({name: x for name, x in held.items() if ".layers.2." not in name}, folder / shard)


def first_shard_is_both(folder: Path) -> None:
    shutil.copy(folder / FIRST, folder / SECOND)


CHAMELEON: dict[str, tuple[Change, str]] = {
    "a shard is missing": (without(SECOND), f"lacks its part {SECOND}: download it again"),
    "a shard is a pointer": (text(SECOND, POINTER), f"{SECOND} is a Git LFS pointer: fetch the file itself"),
    "the index is a pointer": (text(INDEX, POINTER), f"{INDEX} is a Git LFS pointer"),
    "the config is a pointer": (text("config.json", POINTER), "config.json is a Git LFS pointer"),
    "the index names other files": (
        index(lambda names: {name: file.replace("model-", "part-") for name, file in names.items()}),
        "lacks its part part-00001-of-00002.safetensors: download it again",
    ),
    "the index leaves a shard out": (
        index(lambda names: {name: file for name, file in names.items() if file == FIRST}), "download "
    ),
    "one shard lies there twice": (first_shard_is_both, "in two files: download it again"),
    "layers are missing": (lacks_its_last_layer, "download the whole repository"),
    "the tokenizer is Janus-Pro's": (
        taken("tokenizer/text_tokenizer.json", JANUS / "tokenizer.json"), "it is another model's, so give Chameleon's"
    ),
    "the config is Janus-Pro's": (taken("config.json", JANUS / "config.json"), "is a 'multi_modality' by its config"),
    "it is a Llama": (config(model_type="llama", mask_image_logits=None), "is a 'llama' by its config"),
    "it is a Qwen": (config(model_type="qwen2", mask_image_logits=None), "is a 'qwen2' by its config"),
    "it draws no images": (config(mask_image_logits=True), "it is a Chameleon that draws no images"),
    "the config is of another size": (config(hidden_size=4096), "give the config that belongs to it"),
}  # fmt: skip
JANUS_PRO: dict[str, tuple[Change, str]] = {
    "weights are missing": (without(WEIGHTS), "holds no model.safetensors or pytorch_model.bin: download it again"),
    "weights are a pointer": (text(WEIGHTS, POINTER), f"{WEIGHTS} is a Git LFS pointer"),
    "the tokenizer is missing": (without("tokenizer.json"), "has no tokenizer.json: download the whole repository"),
    "the tokenizer is Anole's": (taken("tokenizer.json", ANOLE / "tokenizer.json"), "give the tokenizer that belongs"),
    "the tokenizer is that of Janus": (
        lambda folder: (folder / "tokenizer.json").write_text(
            (folder / "tokenizer.json").read_text().replace("<|User|>", "<|Usr|>")
        ),
        "is not built; give Janus-Pro",
    ),
    "the config is Anole's": (taken("config.json", ANOLE / "config.json"), "is a 'chameleon' by its config.json"),
    "it is a Llama": (config(model_type="llama"), "is a 'llama' by its config.json, not a Janus-Pro"),
    "it is Janus": (config(_name_or_path="deepseek-ai/Janus-1.3B"), "is Janus or JanusFlow, not Janus-Pro"),
    "it is a language model": (
        lambda folder: torch.save(
            {name: x for name, x in tensors().items() if not name.startswith("gen_")}, folder / WEIGHTS
        ),
        "a language model that draws nothing: give Janus-Pro's folder",
    ),
}  # fmt: skip
CASES = [("anole", kind) for kind in CHAMELEON] + [("lumina-mgpt", kind) for kind in CHAMELEON]
CASES += [("janus-pro", kind) for kind in JANUS_PRO]


def sentence(out: Path, *arguments: object) -> str:
    """The one that refuses a build."""
    result = CliRunner().invoke(cli, ["build", *map(str, arguments), "--out", str(out)])
    assert result.exit_code == 2 and result.stdout == "" and not out.exists(), result.output
    (said,) = result.stderr.splitlines()
    assert said.startswith("Error: ") and said.endswith(".")
    return said


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_a_wrong_folder(tmp_path: Path, family: str, kind: str) -> None:
    change, wanted = (JANUS_PRO if family == "janus-pro" else CHAMELEON)[kind]
    folder = tmp_path / FOLDERS[family].name
    shutil.copytree(FOLDERS[family], folder)
    change(folder)
    assert wanted in sentence(tmp_path / "bundle", family, "--checkpoint", folder, *OPTIONS[family])


def test_drafters_of_other_families(tmp_path: Path) -> None:
    drafters = {"llamagen": FIXTURE / "drafter.pt", "anole": ANOLE / "drafter", "lumina-mgpt": LUMINA / "drafter",
                "janus-pro": save_drafter(tmp_path / "drafter")}  # fmt: skip
    for family, folder in FOLDERS.items():
        for other, drafter in drafters.items():
            if other != family:
                given = ("--checkpoint", folder, *OPTIONS[family], "--drafter", drafter)
                said = sentence(tmp_path / "bundle", family, *given)
                assert "drafter" in said and "give" in said, (family, other, said)


def test_sizes_that_nobody_published(tmp_path: Path) -> None:
    for name in ("janus-pro-3b", "anole-13b", "lumina-mgpt-7b-1024", "llamagen-t2i-xxl"):
        for more in ((), ("--dummy-weights",)):
            said = sentence(tmp_path / "bundle", name, *more)
            assert f"unknown model '{name}'" in said and "`" in said and "models` lists the known ones" in said


@pytest.mark.parametrize("family", ["anole", "janus-pro"])
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_every_float_and_form_is_the_same_model(tmp_path: Path, family: str, kind: torch.dtype) -> None:
    """A pickle in shards with its index, and one file of safetensors, of the same weights in each precision."""
    source = FOLDERS[family]
    whole = tensors() if family == "janus-pro" else load_file(source / FIRST) | load_file(source / SECOND)
    whole = {name: x.to(kind).contiguous() if x.is_floating_point() else x for name, x in whole.items()}
    opened = []
    for form in ("sharded", "safe"):
        folder = tmp_path / form
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("model*", "pytorch_model*", "golden*"))
        if form == "safe":
            save_file({name: x.clone() for name, x in whole.items()}, folder / "model.safetensors")
        else:
            names = {name: f"pytorch_model-0000{1 + n % 2}-of-00002.bin" for n, name in enumerate(whole)}
            for file in set(names.values()):
                torch.save({name: whole[name] for name in names if names[name] == file}, folder / file)
            (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
        opened.append(open_parts(BuildRequest(family, checkpoint=folder))[0].target.weights)
    one, other = opened
    assert set(one.names()) == set(other.names())
    for name in one.names():
        torch.testing.assert_close(one.load(name), other.load(name), rtol=0, atol=0)
    if kind == torch.float16:
        build(family, "--checkpoint", tmp_path / "sharded", *OPTIONS[family], "--tree", "jacobi_4", "--out",
              tmp_path / "bundle")  # fmt: skip
    (tmp_path / "sharded" / "pytorch_model-00002-of-00002.bin").unlink()
    said = sentence(tmp_path / "none", family, "--checkpoint", tmp_path / "sharded", *OPTIONS[family])
    assert "lacks its part pytorch_model-00002-of-00002.bin: download it again" in said
