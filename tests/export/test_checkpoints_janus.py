"""Janus-Pro's folders in every published form, drafters for it, and what is wrong with other folders."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hub_stand_in import Hub, serve
from janus import JANUS, WEIGHTS, Tensors, copy, edit, save_drafter, tensors
from safetensors.torch import save_file
from support import FIXTURE, build

from cascade_trt.cli import cli
from cascade_trt.export.families.janus.family import CODES
from cascade_trt.export.families.janus.model import JanusConfig
from cascade_trt.export.families.janus.presets import PRESETS
from cascade_trt.export.families.janus.reader import drafter_shapes, janus_shapes, open_drafter, open_janus
from cascade_trt.export.models.llama import LayerConfig
from cascade_trt.export.open import open_dummy, open_parts
from cascade_trt.export.request import BuildRequest, check_request
from cascade_trt.runtime.bundle import read_manifest
from cascade_trt.runtime.errors import CascadeError
from cascade_trt.runtime.pipeline import Pipeline

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def test_sizes_come_from_the_tensors() -> None:
    source, config, vq, vq_config = open_janus(JANUS, None)
    assert (config.dim, config.n_layer, config.n_head, config.n_kv_head, config.head_dim) == (64, 3, 4, 4, 16)
    assert (config.ffn_dim, config.vocab_size, config.codes, config.code_dim, config.head_width) == (
        160, 352, 512, 8, 80
    )  # fmt: skip
    assert (config.grid, config.norm_eps, config.rope_base) == (8, 1e-6, 10000.0)
    assert set(source.names()) == set(janus_shapes(config)) and vq_config.ch_mult == (1, 2)
    assert not any(name.startswith("encoder") for name in vq.names())


def test_a_code_enters_as_its_row_of_one_table() -> None:
    given = {name: x.double() for name, x in tensors().items() if name.startswith("gen_")}
    source = open_parts(BuildRequest("janus-pro", checkpoint=JANUS))[0].target.checkpoint
    hidden = given["gen_embed.weight"] @ given["gen_aligner.layers.0.weight"].T + given["gen_aligner.layers.0.bias"]
    wanted = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2 @ given["gen_aligner.layers.2.weight"].T
    assert (source.load(CODES) - (wanted + given["gen_aligner.layers.2.bias"])).abs().max() < 1e-5


def converted(given: Tensors) -> Tensors:
    """Under the names of transformers' own conversion."""
    names = (
        ("gen_vision_model.decoder.conv_blocks", "gen_vision_model.decoder.up"),
        ("gen_vision_model.encoder.conv_blocks", "gen_vision_model.encoder.down"),
        ("gen_vision_model", "model.vqmodel"),
        ("gen_aligner.layers.0", "model.generation_aligner.fc1"),
        ("gen_aligner.layers.2", "model.generation_aligner.hidden_layers.0"), ("aligner.layers.0", "model.aligner.fc1"),
        ("aligner.layers.2", "model.aligner.hidden_layers.0"),
        ("gen_head.output_mlp_projector", "model.generation_head.proj_out"), ("gen_head", "model.generation_head"),
        ("gen_embed", "model.generation_embeddings"), ("language_model.model", "model.language_model"),
        ("language_model.lm_head", "lm_head"), ("vision_model.vision_tower", "model.vision_model"),
    )  # fmt: skip
    found = {}
    for name, x in given.items():
        start = next((pair for pair in names if name.startswith(pair[0])), ("", ""))
        new = start[1] + name.removeprefix(start[0])
        new = new.replace("gen_vision_model", "model.vqmodel")
        if "vqmodel" in new:
            new = re.sub(r"\.res\.", ".block.", new)
            for number, part in enumerate(("block_1", "attn_1", "block_2")):
                new = new.replace(f".mid.{number}.", f".mid.{part}.")
        found[new] = x.contiguous()
    return found


def save_converted(folder: Path) -> Path:
    """The fixture as transformers saves it: its names, safetensors in two parts, its config and processor."""
    copy(folder)
    (folder / WEIGHTS).unlink()
    found = converted(tensors())
    parts = [dict(list(found.items())[::2]), dict(list(found.items())[1::2])]
    files = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for file, part in zip(files, parts, strict=True):
        save_file(part, folder / file)
    index = {name: file for file, part in zip(files, parts, strict=True) for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    language = json.loads((folder / "config.json").read_text())["language_config"]
    language |= {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "head_dim": 16}
    (folder / "config.json").write_text(json.dumps({"model_type": "janus", "text_config": language}))
    edit(folder / "preprocessor_config.json", image_size=None, size={"height": 16, "width": 16})
    return folder


def test_transformers_own_form(tmp_path: Path) -> None:
    one, two = open_janus(JANUS, None), open_janus(save_converted(tmp_path / "model"), None)
    assert one[1] == two[1] and one[3] == two[3]
    for source, other in ((one[0], two[0]), (one[2], two[2])):
        assert set(source.names()) == set(other.names())
        assert all(torch.equal(source.load(name), other.load(name)) for name in source.names())


def test_a_folder_in_parts(tmp_path: Path) -> None:
    """As the 7B is published; and one of its parts is missing."""
    folder = copy(tmp_path / "model")
    (folder / WEIGHTS).unlink()
    given = list(tensors().items())
    files = {f"pytorch_model-0000{i}-of-00002.bin": dict(given[i - 1 :: 2]) for i in (1, 2)}
    for file, part in files.items():
        torch.save(part, folder / file)
    index = {name: file for file, part in files.items() for name in part}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": index}))
    source = open_janus(folder, None)[0]
    assert all(torch.equal(source.load(name), x) for name, x in given if name in source)
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    refused(folder, "lacks its part pytorch_model-00002-of-00002.bin")


def refused(folder: Path, sentence: str, **options: object) -> None:
    """By the command, in one sentence, before anything is written."""
    given = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    arguments = ["build", "janus-pro", "--checkpoint", str(folder), *given, "--out", str(folder.parent / "out")]
    result = CliRunner().invoke(cli, arguments)
    said = result.output.strip()
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit), result.output
    assert re.search(sentence, said.replace("\n", " ")), said
    assert said.endswith(".") and not (folder.parent / "out").exists()


def without(*starts: str) -> Callable[[Tensors], Tensors]:
    return lambda given: {name: x for name, x in given.items() if not name.startswith(starts)}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (without("gen_embed"), "is not a Janus-Pro but a language model that draws nothing"),
        (without("gen_head.vision_head.bias"), "lacks the tensor gen_head.vision_head.bias"),
        (without("gen_vision_model"), "lacks the tensor quantize.embedding.weight"),
        (without("gen_vision_model.decoder.norm_out"), "lacks the tensor decoder.norm_out.weight"),
        (without("language_model.model.layers.1."), "lacks the tensors language_model.model.layers.1"),
        (without("language_model.model.layers.2."), "num_hidden_layers 3 by config.json, 2 by its tensors"),
        (lambda given: given | {"gen_more.weight": torch.zeros(3)}, "holds gen_more.weight, which would be left unre"),
        (lambda given: given | {"gen_vision_model.decoder.more": torch.zeros(3)}, "holds decoder.more"),
        (lambda given: given | {"gen_aligner.layers.4.weight": torch.zeros(64, 64)}, "holds gen_aligner.layers.4"),
        (lambda given: given | {"gen_head.vision_head.weight": torch.zeros(512, 79)}, r"\[512, 79\], not \[512, 80\]"),
        (lambda given: given | {"gen_embed.weight": torch.zeros(500, 8)}, "shape .*, not "),
        (lambda given: given | {"gen_embed.weight": torch.zeros(512, 8, dtype=torch.int8)}, "quantised"),
    ],
    ids=lambda value: None if callable(value) else value[:30],
)
def test_tensors_that_are_wrong(tmp_path: Path, change: Callable[[Tensors], Tensors], sentence: str) -> None:
    refused(copy(tmp_path / "model", change), sentence)


def test_what_draws_nothing_may_be_missing(tmp_path: Path) -> None:
    folder = copy(tmp_path / "model", without("vision_model", "aligner", "language_model.lm_head",
                                              "gen_vision_model.encoder", "gen_vision_model.quant_conv"))  # fmt: skip
    assert open_janus(folder, None)[1] == open_janus(JANUS, None)[1]


@pytest.mark.parametrize(
    ("file", "changes", "sentence"),
    [
        ("config.json", {"model_type": "llama"}, "is a 'llama' by its config.json, not a Janus-Pro"),
        ("config.json", {"model_type": "qwen2"}, "is a 'qwen2' by its config.json"),
        ("config.json", {"model_type": "chameleon"}, "is a 'chameleon' by its config.json"),
        ("config.json", {"model_type": None}, "does not say in config.json which kind"),
        ("config.json", {"_name_or_path": "deepseek-ai/Janus-1.3B"}, "is Janus or JanusFlow, not Janus-Pro"),
        ("config.json", {"language_config": [1]}, "no language model that can be read"),
        ("config.json", {"language_config": {"num_attention_heads": 3}}, r"3 heads .* do not fit 64 rows"),
        ("config.json", {"language_config": {"num_attention_heads": 4, "num_key_value_heads": 2}}, "do not fit"),
        ("config.json", {"language_config": {"num_attention_heads": 4, "vocab_size": 9}}, "vocab_size 9 by config"),
        ("config.json", {"language_config": {"rope_scaling": {"type": "linear"}}}, "rope_scaling .* no Janus-Pro has"),
        ("config.json", {"language_config": {"attention_bias": True}}, "attention_bias True"),
        ("processor_config.json", {"num_image_tokens": 60}, "num_image_tokens 60 is no square"),
        ("processor_config.json", {"num_image_tokens": 576}, "24 tokens a side, image_size in pixels of 8"),
        ("processor_config.json", {"sft_format": "alpaca"}, "sft_format 'alpaca'"),
        ("preprocessor_config.json", {"image_size": 384}, "8 tokens a side, image_size in pixels of 192"),
    ],
)
def test_settings_that_are_wrong(tmp_path: Path, file: str, changes: dict, sentence: str) -> None:
    folder = copy(tmp_path / "model")
    edit(folder / file, **changes)
    refused(folder, sentence)


def test_the_default_heads_are_llamas(tmp_path: Path) -> None:
    """Published configs may leave them out."""
    folder = copy(tmp_path / "model")
    edit(folder / "config.json", language_config={"num_hidden_layers": 3})
    config = open_janus(folder, None)[1]
    assert (config.n_head, config.head_dim) == (32, 2)


def test_the_grid(tmp_path: Path) -> None:
    folder = copy(tmp_path / "model")
    refused(folder, "--grid makes images of 6 tokens a side, num_image_tokens of 8", grid=6)
    (folder / "processor_config.json").unlink()
    assert open_janus(folder, None)[1].grid == 8
    (folder / "preprocessor_config.json").unlink()
    assert open_janus(folder, 8)[1].grid == 8
    refused(folder, "neither processor_config.json nor preprocessor_config.json")


def tokenizer(folder: Path, change: Callable[[str], str]) -> None:
    file = folder / "tokenizer.json"
    file.write_text(change(file.read_text()))


def test_tokenizers_that_are_wrong(tmp_path: Path) -> None:
    folder = copy(tmp_path / "model")
    good = (folder / "tokenizer.json").read_text()
    for change, sentence in (
        (lambda text: text.replace("<|User|>", "<|Human|>"), "is that of Janus .not Pro."),
        (lambda text: text.replace("<begin_of_image>", "<image>"), "has no token '<begin_of_image>'"),
        (lambda text: text.replace("▁pad▁", "pad"), "has no token '<｜▁pad▁｜>'"),
        (lambda text: re.sub(r'("vocab": \{)', r'\1"more": 999,', text), "ids up to 999, the checkpoint 352 tokens"),
        (lambda text: text[:100], "cannot be read"),
        (lambda _: POINTER.decode(), "is a Git LFS pointer"),
    ):
        tokenizer(folder, lambda _, change=change: change(good))
        refused(folder, sentence)
    (folder / "tokenizer.json").unlink()
    refused(folder, "has no tokenizer.json: download the whole repository")


@pytest.mark.parametrize("file", ["config.json", WEIGHTS, "processor_config.json"])
def test_pointers_of_git_lfs(tmp_path: Path, file: str) -> None:
    folder = copy(tmp_path / "model")
    (folder / file).write_bytes(POINTER)
    refused(folder, f"{file} is a Git LFS pointer")


def test_other_folders(tmp_path: Path) -> None:
    llama = copy(tmp_path / "llama", lambda given: {
        name.removeprefix("language_"): x for name, x in given.items() if name.startswith("language_model.model")
    })  # fmt: skip
    refused(llama, "is not a Janus-Pro but a language model that draws nothing")
    refused(JANUS / WEIGHTS, "is not a folder")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(empty, "has no config.json: give the folder of Janus-Pro")
    refused(FIXTURE.parent / "anole-tiny", "is a 'chameleon' by its config.json")
    named = copy(tmp_path / "Janus-1.3B")
    refused(named, "is Janus or JanusFlow, not Janus-Pro, by its name")
    (empty / "config.json").write_text((JANUS / "config.json").read_text())
    refused(empty, "holds no model.safetensors or pytorch_model.bin")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"vq": JANUS / WEIGHTS}, "takes no --vq, as the VQ decoder is in the checkpoint"),
     ({"text": JANUS}, "takes no --text, as the model reads prompts itself"),
     ({"n_head": 4}, "takes no --n-head, as config.json tells"), ({"size": "96x96"}, "leave --size away"),
     ({"prompt_length": 8}, "from 64 to 4096, not 8"), ({"config": JANUS / "config.json"}, "says nothing here")],
)  # fmt: skip
def test_options_that_it_has_no_use_for(tmp_path: Path, options: dict, sentence: str) -> None:
    refused(copy(tmp_path / "model"), sentence, **options)


def test_prompt_length_is_for_models_that_read_token_ids() -> None:
    request = BuildRequest("llamagen", checkpoint=FIXTURE / "gpt_t2i.pt", vq=FIXTURE / "vq.pt",
                           config=FIXTURE / "config.json", prompt_length=64)  # fmt: skip
    with pytest.raises(CascadeError, match="does not read prompts as token ids: leave --prompt-length away"):
        open_parts(request)
    with pytest.raises(CascadeError, match="llamagen-t2i-b does not read prompts as token ids"):
        open_dummy("llamagen-t2i-b", None, 64)


@pytest.mark.parametrize("name", ["janus-pro-1b", "anole-7b", "lumina-mgpt-7b-768"])
def test_random_weights_have_the_prompt_length_that_is_asked_for(name: str) -> None:
    request = BuildRequest(name, dummy_weights=True, prompt_length=256)
    check_request(request)
    for given, length in ((request, 256), (replace(request, prompt_length=None), 128)):
        parts, _ = open_parts(given)
        assert parts.prompt is not None
        assert parts.target.prefix_len == parts.prompt.max_length == length


def test_drafters_of_others(tmp_path: Path) -> None:
    folder = copy(tmp_path / "model")
    refused(folder, "is one for LlamaGen .it has no input norm.", drafter=FIXTURE / "drafter.pt")
    refused(folder, "is one for Chameleon", drafter=FIXTURE.parent / "anole-tiny" / "drafter")
    refused(folder, "64 wide with 500 tokens, the target is 64 wide with 512",
            drafter=save_drafter(tmp_path / "codes", codes=500))  # fmt: skip
    refused(folder, "32 wide with 512 tokens", drafter=save_drafter(tmp_path / "width", dim=32))
    refused(folder, "is not a drafter for Janus-Pro but", drafter=JANUS / WEIGHTS)
    odd = save_drafter(tmp_path / "odd")
    edit(odd / "config.json", num_attention_heads=3)
    refused(folder, "do not fit 3 heads .3 of keys. of 21: give num_attention_heads.*config.json", drafter=odd)
    more = save_drafter(tmp_path / "more")
    torch.save(torch.load(more / WEIGHTS) | {"norm.weight": torch.zeros(64)}, more / WEIGHTS)
    refused(folder, "holds norm.weight, which would be left unread", drafter=more)


@pytest.mark.parametrize(("config", "eps", "heads"), [
    (None, 1e-6, 4), ({"rms_norm_eps": 1e-3}, 1e-3, 4), ({"num_attention_heads": 8}, 1e-6, 8),
    ({"num_hidden_layers": 3, "rms_norm_eps": 1e-3}, 1e-6, 4),  # the target's own, where both lie in one folder
])  # fmt: skip
def test_a_drafters_config_is_read(tmp_path: Path, config: dict[str, Any] | None, eps: float, heads: int) -> None:
    drafter = save_drafter(tmp_path / "drafter")
    (drafter / "config.json").unlink()
    if config is not None:
        (drafter / "config.json").write_text(json.dumps(config))
    parts, _ = open_parts(BuildRequest("janus-pro", checkpoint=JANUS, drafter=drafter))
    assert parts.drafter is not None
    assert (parts.drafter.stack.eps, parts.drafter.stack.n_head) == (eps, heads)


HEADS = {  # of a target: dim, heads, heads of keys, their width
    "grouped": (96, 6, 2, 16), "widths of their own": (40, 2, 2, 8), "both": (40, 6, 3, 12),
}  # fmt: skip


def shaped_drafter(folder: Path, config: LayerConfig, **settings: float) -> Path:
    """A drafter's folder of this shape, with a config.json where it says something."""
    folder.mkdir()
    torch.save({name: torch.zeros(shape) for name, shape in drafter_shapes(config, 512, bias=False).items()},
               folder / WEIGHTS)  # fmt: skip
    if settings:
        (folder / "config.json").write_text(json.dumps({"num_hidden_layers": 1} | settings))
    return folder


@pytest.mark.parametrize("kind", HEADS)
def test_the_targets_heads_hold_for_a_drafter_that_says_nothing(kind: str, tmp_path: Path) -> None:
    """They are told where config.json has none; what it leaves out beside them, the tensors tell."""
    dim, heads, few, width = HEADS[kind]
    target = JanusConfig(
        dim=dim, n_layer=1, n_head=heads, n_kv_head=few, head_dim=width, ffn_dim=64, vocab_size=9, codes=512,
        code_dim=4, head_width=dim, grid=4,
    )  # fmt: skip
    layer = LayerConfig(dim, heads, few, width, 64, 1e-6)
    for name, said in (("none", {}), ("eps", {"rms_norm_eps": 1e-5}), ("heads", {"num_attention_heads": heads})):
        _, found, _ = open_drafter(shaped_drafter(tmp_path / name, layer, **said), target)
        assert (found.n_head, found.n_kv_head, found.head_dim) == (heads, few, width)
    other = replace(layer, n_head=2 * heads, n_kv_head=2 * heads)
    advice = "give num_attention_heads, num_key_value_heads and head_dim in the drafter's config.json"
    with pytest.raises(CascadeError, match=advice):
        open_drafter(shaped_drafter(tmp_path / "other", other), target)
    _, found, _ = open_drafter(shaped_drafter(tmp_path / "told", other, num_attention_heads=2 * heads), target)
    assert found == replace(other, norm_eps=target.norm_eps)


def test_an_eagle_3_drafter_is_named(tmp_path: Path) -> None:
    drafter = save_drafter(tmp_path / "drafter")
    torch.save(torch.load(drafter / WEIGHTS) | {"d2t": torch.zeros(5, dtype=torch.int64)}, drafter / WEIGHTS)
    refused(JANUS, "is an EAGLE-3 drafter: give one of the form of EAGLE-1", drafter=drafter)


def test_a_model_by_its_name_alone(tmp_path: Path) -> None:
    """The family's name means the 1B; all of its folder comes from the hub, which is a stand-in here."""
    files = {"deepseek-ai/Janus-Pro-1B": {file.name: file for file in JANUS.iterdir()}}
    with serve(Hub(files)) as hub:
        settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-m", "cascade_trt", "build", "janus-pro", "--out", str(tmp_path / "bundle")]
        done = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, **settings}, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(tmp_path / "bundle")
    assert manifest.provenance["target"]["repository"] == "deepseek-ai/Janus-Pro-1B"
    assert manifest.text is not None and manifest.text.form is not None
    assert not any("golden" in name or "README" in name for name in hub.asked)


def test_defaults_of_a_config(tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text(json.dumps({"cfg_scale": 2, "top_k": 40, "rules": {"lantern": "lantern:k=5"}}))
    out = tmp_path / "bundle"
    build("janus-pro", "--checkpoint", JANUS, "--config", tmp_path / "own.json", "--out", out)
    manifest = read_manifest(out)
    assert (manifest.sampling.guidance_scale, manifest.sampling.top_k) == (2.0, 40)
    assert manifest.rules == {"lantern": "lantern:k=5"}


@pytest.mark.parametrize(("precision", "limit"), [("fp16", 1e-2), ("bf16", 1e-2)])
def test_half_precisions(tmp_path: Path, precision: str, limit: float) -> None:
    out = tmp_path / "bundle"
    build("janus-pro", "--checkpoint", JANUS, "--drafter", save_drafter(tmp_path / "drafter"), "--tree", "small_6",
          "--precision", precision, "--out", out)  # fmt: skip
    parity = read_manifest(out).parity
    assert max(x["relative"] for entry in parity.values() for x in entry.get("outputs", {}).values()) < limit
    if precision == "fp16":  # which a CPU can draw with
        codes = Pipeline.load(out, threads=1, warm=False).generate(["a red fox in the snow"], seed=1).codes
        assert codes.shape == (1, 64) and codes.min() >= 0 and codes.max() < 512


@pytest.mark.parametrize(("name", "weights"), [("janus-pro-1b", 1.6e9), ("janus-pro-7b", 6.6e9)])
def test_presets(name: str, weights: float) -> None:
    parts, sampling = open_dummy(name, None)
    assert sampling.guidance_scale == 5.0 and parts.target.plan.image_tokens == 576 and parts.prompt is not None
    preset, table, own = PRESETS[name], 16384 * parts.target.stack.dim, parts.target.checkpoint
    total = sum(int(np.prod(own.shape(tensor))) for tensor in own.names())
    folded = 16384 * 8 + 8 * preset.dim + preset.dim**2 + 2 * preset.dim  # gen_embed and gen_aligner
    assert total - table + folded == preset.parameters and abs(preset.parameters / weights - 1) < 0.1
