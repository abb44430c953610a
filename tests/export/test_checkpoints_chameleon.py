"""Anole and Lumina-mGPT from every published form, and what is wrong with bad folders: a sentence for each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from support import build

from cascade_trt.cli import cli
from cascade_trt.export.build import BuildOptions, build_bundle
from cascade_trt.export.checkpoints.source import TensorSource
from cascade_trt.export.families import get_family
from cascade_trt.export.families.chameleon import anole, lumina
from cascade_trt.export.families.chameleon.model import Chameleon, ChameleonConfig, rope_1d
from cascade_trt.export.families.chameleon.opening import Kind, open_dummy
from cascade_trt.export.families.chameleon.presets import ANOLE_7B, LUMINA_7B_768
from cascade_trt.export.families.chameleon.reader import chameleon_shapes, drafter_shapes, open_chameleon
from cascade_trt.export.families.chameleon.vocabulary import code_name, open_vocabulary
from cascade_trt.export.models.llama import Attention, Drafter
from cascade_trt.export.open import open_parts
from cascade_trt.export.parts import Parts
from cascade_trt.export.request import BuildRequest
from cascade_trt.runtime.bundle import read_manifest
from cascade_trt.runtime.errors import CascadeError
from cascade_trt.runtime.pipeline import Pipeline
from cascade_trt.runtime.plan import TokenPlan
from cascade_trt.runtime.tree import get_tree

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
ANOLE, LUMINA, LLAMAGEN = (FIXTURES / f"{name}-tiny" for name in ("anole", "lumina", "llamagen"))
DRAWN = (("ar", None), ("exact", "chain_2"))
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
SMALL = ChameleonConfig(16, 2, 4, 2, 8, 24, 32, (4, 2))
Tensors = dict[str, torch.Tensor]


def request_of(family: str, **given: Any) -> BuildRequest:
    options: dict[str, Any] = {"grid": 8} if family == "anole" else {"size": "96x96"}
    folder = ANOLE if family == "anole" else LUMINA
    return BuildRequest(family, **({"checkpoint": folder} | options | given))


def tensors_of(folder: Path) -> Tensors:
    """Every tensor of a sharded folder."""
    return {name: x for file in sorted(folder.glob("model-*.safetensors")) for name, x in load_file(file).items()}


@pytest.fixture
def copied(tmp_path: Path) -> Callable[..., Path]:
    """copied(folder, name=None for a file that is left out, or its text) -> a copy of a fixture's folder."""

    def copy(folder: Path, **changes: str | None) -> Path:
        to = tmp_path / folder.name
        shutil.copytree(folder, to)
        for path in (to, *to.rglob("*")):
            path.chmod(0o755)
        for name, text in changes.items():
            (to / name).unlink()
            if text is not None:
                (to / name).write_text(text)
        return to

    return copy


def edit(folder: Path, **changes: Any) -> Path:
    """The folder with entries of its config.json changed."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def same(found: TensorSource, wanted: TensorSource) -> None:
    assert set(found.names()) == set(wanted.names())
    for name in wanted.names():
        torch.testing.assert_close(found.load(name), wanted.load(name), rtol=0, atol=0)


# what is opened -------------------------------------------------------------------------------------------------
def test_shapes_are_those_of_the_modules() -> None:
    found = {name: tuple(x.shape) for name, x in Chameleon(SMALL).state_dict().items()}
    assert found == chameleon_shapes(SMALL)
    drafter = replace(SMALL, n_layer=1)
    found = {name: tuple(x.shape) for name, x in Drafter(drafter.layer, drafter.vocab_size).state_dict().items()}
    assert found == drafter_shapes(drafter, bias=True)


def test_anole() -> None:
    parts, sampling = open_parts(request_of("anole", drafter=ANOLE / "drafter"))
    assert parts.target.plan == TokenPlan(8, 8, 8192)
    assert (sampling.guidance_scale, sampling.temperature, sampling.top_k) == (3.0, 1.0, 2000)
    assert parts.target.weights.shape("layers.0.attention.q_norm.weight") == (2, 20)
    assert parts.target.weights.shape("readout.weight") == (8192, 40)
    assert parts.target.weights.shape("condition.embedding.weight") == (8720, 40)
    assert not any("vqmodel" in name for name in parts.target.checkpoint.names())
    assert open_parts(BuildRequest("anole", checkpoint=ANOLE))[0].target.plan == TokenPlan(32, 32, 8192)


def test_lumina() -> None:
    parts, sampling = open_parts(request_of("lumina-mgpt", size="128x64"))
    assert parts.target.plan == TokenPlan(4, 8, 8192, row_end=8192)
    assert sampling.guidance_scale == 4.0 and sampling.top_k == 2000
    assert parts.target.weights.shape("layers.0.attention.q_norm.weight") == (1, 24)
    form = parts.prompt.form if parts.prompt is not None else None
    assert form is not None
    assert form.before == "Generate an image of 128x64 according to the following prompt:\n"
    assert (form.begin, form.end) == ([0], [8710, 8197, 8806, 8808])  # height before width
    assert form.uncond == [8197, 8806, 8808]
    table = parts.target.checkpoint.load("model.embed_tokens.weight")
    assert torch.equal(parts.target.weights.load("embedding.weight")[-1], table[8803])


@pytest.mark.parametrize("name", ["Lumina-mGPT-7B-96", "lumina-mgpt-7b-768", "a--Lumina-mGPT-7B-768/snapshots/a1"])
def test_the_name_of_the_folder_tells_the_size(copied: Callable[..., Path], tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    copied(LUMINA).rename(folder)
    request = request_of("lumina-mgpt", checkpoint=folder, size=None)
    if "96" in name:
        with pytest.raises(CascadeError, match="does not tell the size of its images: give --size 768x768"):
            open_parts(request)  # two digits are no size of a published model
    else:
        assert open_parts(request)[0].target.plan.rows == 48


def as_native(tensors: Tensors, heads: int) -> Tensors:
    """Meta's names and order of channels: rotated pairs lie side by side; one norm serves all heads."""
    names = {"model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output",
             "model.layers": "layers", "self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk",
             "self_attn.v_proj": "attention.wv", "self_attn.o_proj": "attention.wo",
             "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3",
             "mlp.down_proj": "feed_forward.w2", "input_layernorm": "attention_norm", "q_norm": "q_normalization",
             "post_attention_layernorm": "ffn_norm", "k_norm": "k_normalization",
             "self_attn.": "attention."}  # fmt: skip
    found = {}
    for name, x in tensors.items():
        if "vqmodel" in name:
            continue
        if "_norm." in name and "self_attn" in name:
            x = x[0].view(2, -1).t().reshape(-1)
        elif "q_proj" in name or "k_proj" in name:
            x = x.view(heads, 2, x.shape[0] // heads // 2, -1).transpose(1, 2).reshape(x.shape)
        for theirs, meta in names.items():
            name = name.replace(theirs, meta)
        found[name] = x.contiguous()
    return found


@pytest.mark.parametrize("joined", [False, True])
def test_metas_layout_is_the_same_model(tmp_path: Path, joined: bool) -> None:
    """consolidated.pth in models/7b, with queries, keys and values apart or joined; its one norm serves all heads."""
    tensors = {name: x for name, x in tensors_of(LUMINA).items() if "vqmodel" not in name}
    native = as_native(tensors, 2)
    if joined:
        for i in range(3):
            parts = [native.pop(f"layers.{i}.attention.w{part}.weight") for part in "qkv"]
            native[f"layers.{i}.attention.wqkv.weight"] = torch.cat(parts)
            parts = [native.pop(f"layers.{i}.feed_forward.w{part}.weight") for part in (1, 3)]
            native[f"layers.{i}.feed_forward.w13.weight"] = torch.cat(parts)
    place = tmp_path / "models" / "7b"
    place.mkdir(parents=True)
    torch.save(native | {"rope.freqs": torch.ones(12)}, place / "consolidated.pth")
    params = {"model": {"dim": 48, "n_layers": 3, "n_heads": 2, "norm_eps": 1e-5, "rope_theta": 10000.0}}
    (place / "params.json").write_text(json.dumps(params))
    shutil.copytree(LUMINA / "tokenizer", tmp_path / "tokenizer")
    with pytest.raises(CascadeError, match="has Meta's own layout, in which nobody has published Lumina-mGPT"):
        open_chameleon(tmp_path, "Lumina-mGPT", is_lumina=True)
    found, config = open_chameleon(tmp_path, "Anole", is_lumina=False)
    wanted, other = open_chameleon(LUMINA, "Lumina-mGPT", is_lumina=True)
    assert config == other
    same(found, wanted)
    parts, _ = open_parts(BuildRequest("anole", checkpoint=tmp_path))
    assert parts.tokenizer == tmp_path / "tokenizer" / "text_tokenizer.json"


@pytest.mark.parametrize("rows", [0, 1, 2])  # 0: norms without an axis of heads
def test_norms_of_metas_layout_are_put_in_order_too(tmp_path: Path, rows: int) -> None:
    """Whatever their layout, a norm's even channels come first, then its odd ones."""
    shapes = chameleon_shapes(replace(SMALL, norm_rows=(max(rows, 1),) * 2))
    tensors = {name: torch.randn(x) for name, x in shapes.items()}
    native = as_native(tensors, 2)
    name = "layers.1.attention.k_normalization.weight"
    given = torch.arange(8.0 * max(rows, 1)).reshape((rows, 8) if rows else (8,))
    for part in "qk":
        for kind in ("weight", "bias"):
            for layer in range(SMALL.n_layer):
                native[f"layers.{layer}.attention.{part}_normalization.{kind}"] = given.clone()
    folder = tmp_path / "native"
    folder.mkdir()
    torch.save(native, folder / "consolidated.pth")
    (folder / "params.json").write_text("{}")
    source, _ = open_chameleon(folder, "Anole", is_lumina=False)
    found = source.load("model.layers.1.self_attn.k_norm.weight")
    assert name in native and found.reshape(-1, 8)[0].tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    assert rows < 2 or found[1].tolist() == [8, 10, 12, 14, 9, 11, 13, 15]


def test_rotations_of_transformers_5(tmp_path: Path) -> None:
    """`rope_parameters` holds the base, and a scaling that these graphs do not have."""
    tensors = {name: torch.randn(x) for name, x in chameleon_shapes(SMALL).items()}
    for rotation, base in (({"rope_theta": 50.0, "rope_type": "default"}, 50.0), ({"rope_type": "default"}, 10000.0)):
        folder = saved(tmp_path / "plain", tensors, rope_parameters=rotation)
        assert open_chameleon(folder, "Anole", is_lumina=False)[1].rope_base == base
    scaled = saved(tmp_path / "scaled", tensors, rope_parameters={"rope_type": "linear", "factor": 2.0})
    with pytest.raises(CascadeError, match="rope_scaling"):
        open_chameleon(scaled, "Anole", is_lumina=False)


def test_metas_rotation_of_pairs_is_the_rotation_of_halves() -> None:
    """Scores of queries and keys that are normed and then rotated, in Meta's order, against the module."""
    config = replace(SMALL, n_head=2, n_kv_head=2, norm_rows=(1, 1))
    module = Attention(config.layer)
    with torch.no_grad():
        for name, x in module.named_parameters():
            torch.nn.init.normal_(x, mean=float("_norm" in name))
    hf = {f"model.layers.0.self_attn.{name}": x.detach() for name, x in module.state_dict().items()}
    native = as_native(hf, 2)
    x, positions = torch.randn(1, 5, 16), torch.arange(5)[None]
    rope = rope_1d(5, 8)[positions]

    def rotated(part: str) -> torch.Tensor:
        y = (x @ native[f"layers.0.attention.w{part}.weight"].T).unflatten(-1, (2, 8))
        scale, shift = (native[f"layers.0.attention.{part}_normalization.{kind}"] for kind in ("weight", "bias"))
        y = torch.nn.functional.layer_norm(y, (8,), scale, shift, 1e-5).unflatten(-1, (4, 2))
        a, b, cos, sin = y[..., 0], y[..., 1], rope[:, :, None, :, 0], rope[:, :, None, :, 1]
        return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2).transpose(1, 2)

    v = (x @ native["layers.0.attention.wv.weight"].T).unflatten(-1, (2, 8)).transpose(1, 2)
    y = torch.nn.functional.scaled_dot_product_attention(rotated("q"), rotated("k"), v, is_causal=True)
    wanted = y.transpose(1, 2).flatten(2) @ native["layers.0.attention.wo.weight"].T
    found = module(x, rope, torch.ones(5, 5, dtype=torch.bool).tril())
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def saved(folder: Path, tensors: Tensors, **config: Any) -> Path:
    """A folder in transformers' layout with one file of weights."""
    folder.mkdir(exist_ok=True)
    save_file({name: x.contiguous() for name, x in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "chameleon"} | config))
    return folder


@pytest.mark.parametrize(("shape", "rows"), [((8,), 1), ((1, 8), 1), ((4, 8), 4), ((2, 8), 4)])
def test_norms_of_every_layout(tmp_path: Path, shape: tuple[int, ...], rows: int) -> None:
    """One row for all heads, a row for each of four, a row for every two."""
    tensors = {name: torch.randn(x) for name, x in chameleon_shapes(replace(SMALL, n_kv_head=4)).items()}
    given = torch.randn(shape)
    for name in tensors:
        if "self_attn" in name and "_norm." in name:
            tensors[name] = given.clone() if "weight" in name else torch.zeros(shape)
    source, config = open_chameleon(saved(tmp_path, tensors), "Anole", is_lumina=False)
    assert config.norm_rows == (rows, rows)
    found = source.load("model.layers.1.self_attn.k_norm.weight")
    assert found.shape == (rows, 8)
    group = 4 // (len(given) if given.dim() == 2 else 1)
    for head in range(4):
        wanted = given if given.dim() == 1 else given[head // group]
        assert torch.equal(found[head if rows > 1 else 0], wanted)


def test_dummy_weights_have_the_published_sizes() -> None:
    for name, preset, plan in (
        ("anole", ANOLE_7B, TokenPlan(32, 32, 8192)), ("lumina-mgpt", LUMINA_7B_768, TokenPlan(48, 48, 8192, 8192)),
    ):  # fmt: skip
        family = get_family(name)
        assert family.dummy is not None
        parts, sampling = family.dummy(preset.name, None, None)
        assert parts.target.plan == plan and sampling.guidance_scale == preset.guidance_scale
        parts_weights(parts)
        assert 6.9e9 < preset.parameters < 7.1e9
    assert (drafter_count(rows=1), drafter_count(rows=32)) == (504_377_856, 504_393_728)


def parts_weights(parts: Parts) -> None:
    """Every tensor that the graphs read is there, in its shape."""
    for model, shapes in ((parts.target, parts.target.shapes()), (parts.drafter, None)):
        assert model is not None
        for name, shape in (shapes or parts.drafter.shapes(parts.target.plan)).items():  # type: ignore[union-attr]
            assert model.weights.shape(name) == shape


def drafter_count(rows: int) -> int:
    p = ANOLE_7B
    config = ChameleonConfig(
        p.dim, 1, p.n_head, p.n_head, p.head_dim, p.ffn_dim, p.vocab_size, norm_rows=(rows, rows)
    )
    return sum(int(np.prod(shape)) for shape in drafter_shapes(config, bias=True).values())


@pytest.mark.slow
@pytest.mark.parametrize("kind", [anole.KIND, lumina.KIND], ids=["anole", "lumina-mgpt"])
def test_random_weights_make_a_bundle_that_draws(tmp_path: Path, kind: Kind) -> None:
    """With a tokenizer of bytes and a drafter; a preset that is small but for its vocabulary."""
    small = replace(
        kind.preset, dim=32, n_layer=1, n_head=2, head_dim=16, ffn_dim=48, vocab_size=9216, grid=4,
        vq_ch_mult=(1, 1, 1, 1, 1),
    )  # fmt: skip
    parts, sampling = open_dummy(replace(kind, preset=small), None)
    options = BuildOptions(tmp_path / "bundle", (get_tree("chain_2"),), sampling)
    build_bundle(parts, options, lambda *_: None)
    pipe = Pipeline.load(tmp_path / "bundle", threads=1)
    plain, drafted = (pipe.generate("a caf\u00e9", rule=rule, tree=tree) for rule, tree in DRAWN)
    np.testing.assert_array_equal(plain.codes, drafted.codes)
    assert plain.images[0].size == (64, 64)


# what is refused ------------------------------------------------------------------------------------------------
def test_folders_that_are_not_whole(copied: Callable[..., Path]) -> None:
    def refused(sentence: str, changes: dict[str, str | None], **options: Any) -> None:
        folder = copied(ANOLE, **changes)
        with pytest.raises(CascadeError, match=sentence) as caught:
            open_parts(request_of("anole", checkpoint=folder, **options))
        assert "\n" not in str(caught.value)
        shutil.rmtree(folder)

    refused(r"lacks its part model-00002-of-00002\.safetensors", {"model-00002-of-00002.safetensors": None})
    refused(r"model-00001-of-00002\.safetensors is a Git LFS pointer", {"model-00001-of-00002.safetensors": POINTER})
    refused("has no config.json: download the whole repository", {"config.json": None})
    refused(r"has no tokenizer/vqgan\.ckpt, which draws the pixels", {"tokenizer/vqgan.ckpt": None})
    refused("is a Git LFS pointer", {"tokenizer/vqgan.ckpt": POINTER})
    refused("is a Git LFS pointer", {"tokenizer/text_tokenizer.json": POINTER})
    refused(
        "has neither tokenizer/text_tokenizer.json nor tokenizer.json",
        {"tokenizer/text_tokenizer.json": None, "tokenizer.json": None},
    )
    shards = dict.fromkeys(("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"))
    refused("holds no weights", shards | {"model.safetensors.index.json": None})
    with pytest.raises(CascadeError, match="is not a folder: give that of Anole's repository"):
        open_parts(request_of("anole", checkpoint=ANOLE / "config.json"))


def test_either_tokenizer_will_do(copied: Callable[..., Path]) -> None:
    """Meta's goes before transformers'; one beside the VQ file serves a folder that has none."""
    folder = copied(ANOLE, **{"tokenizer/text_tokenizer.json": None})
    assert open_parts(request_of("anole", checkpoint=folder))[0].tokenizer == folder / "tokenizer.json"
    (folder / "tokenizer.json").unlink()
    vq = ANOLE / "tokenizer" / "vqgan.ckpt"
    found = open_parts(request_of("anole", checkpoint=folder, vq=vq))[0].tokenizer
    assert found == ANOLE / "tokenizer" / "text_tokenizer.json"


def test_tokenizers_of_other_models(copied: Callable[..., Path], tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    file = tmp_path / "tokenizer.json"
    Tokenizer(models.WordLevel({"<s>": 0, "cat": 1}, unk_token="<s>")).save(str(file))
    folder = copied(ANOLE)
    shutil.copy(file, folder / "tokenizer" / "text_tokenizer.json")
    with pytest.raises(CascadeError, match="no tokens for the codes of images"):
        open_parts(request_of("anole", checkpoint=folder))
    shutil.copy(LUMINA / "tokenizer" / "text_tokenizer.json", folder / "tokenizer" / "text_tokenizer.json")
    with pytest.raises(CascadeError, match="has ids up to 8831, the checkpoint 8720 tokens"):
        open_parts(request_of("anole", checkpoint=folder))
    ids = {"<s>": 0} | {code_name(code): code + 4 for code in range(20)}
    ids[code_name(7)], ids[code_name(8)] = ids[code_name(8)], ids[code_name(7)]
    Tokenizer(models.WordLevel(ids, unk_token="<s>")).save(str(file))
    with pytest.raises(CascadeError, match=r"gives code 7 of images \(IMGIMGHZ\) the id 12, not 11"):
        open_vocabulary(file, 100)
    ids = {"<s>": 0} | {code_name(code): code + 4 for code in range(20)}
    Tokenizer(models.WordLevel(ids, unk_token="<s>")).save(str(file))
    assert open_vocabulary(file, 100).codes == 20
    with pytest.raises(CascadeError, match="has no token '<pad>'"):
        open_vocabulary(file, 100)["<pad>"]


def test_other_models(copied: Callable[..., Path], tmp_path: Path) -> None:
    def refused(sentence: str, request: BuildRequest) -> None:
        with pytest.raises(CascadeError, match=sentence) as caught:
            open_parts(request)
        assert "\n" not in str(caught.value)

    refused("is Lumina-mGPT by its config", request_of("anole", checkpoint=LUMINA))
    refused("does not say mask_image_logits false.*build `anole`", request_of("lumina-mgpt", checkpoint=ANOLE))
    masked = edit(copied(LUMINA), mask_image_logits=True)
    for family in ("anole", "lumina-mgpt"):
        refused("a Chameleon that draws no images", request_of(family, checkpoint=masked))
    llama = {name: x for name, x in tensors_of(ANOLE).items() if "_norm." not in name}
    for kind, sentence in (("llama", "is a 'llama' by its config"), ("qwen2", "is a 'qwen2' by its config"),
                           ("multi_modality", "is a 'multi_modality'"), ("chameleon", "do not norm queries and keys"),
                           (None, "is a None by its config")):  # fmt: skip
        folder = saved(tmp_path / "other", llama, model_type=kind)
        refused(sentence, request_of("anole", checkpoint=folder))
    refused("is a 'multi_modality' by its config", request_of("anole", checkpoint=FIXTURES / "janus-tiny"))
    janus = {f"language_model.{name}": x for name, x in llama.items()}
    refused("do not norm queries and keys", request_of("anole", checkpoint=saved(tmp_path / "janus", janus)))
    more = tensors_of(ANOLE) | {"model.layers.0.self_attn.q_proj.bias": torch.zeros(40)}
    refused(r"q_proj\.bias, which would be left unread", request_of("anole", checkpoint=saved(tmp_path / "m", more)))
    for change in ({"swin_norm": True}, {"tie_word_embeddings": True}, {"hidden_act": "gelu"},
                   {"rope_scaling": {"type": "linear"}}):  # fmt: skip
        folder = saved(tmp_path / "variant", tensors_of(ANOLE), **change)
        refused(f"says {next(iter(change))} .* which is not supported", request_of("anole", checkpoint=folder))
    folder = saved(tmp_path / "variant", tensors_of(ANOLE), num_attention_heads=4)
    refused("says num_attention_heads 4, its weights have 2", request_of("anole", checkpoint=folder))
    refused("is a VQ tokenizer, but not a VQGAN", request_of("anole", vq=LLAMAGEN / "vq.pt"))


def test_drafters_of_other_models(tmp_path: Path) -> None:
    def refused(sentence: str, family: str, drafter: Path) -> None:
        with pytest.raises(CascadeError, match=sentence) as caught:
            open_parts(request_of(family, drafter=drafter))
        assert "\n" not in str(caught.value)

    refused("has no norms of queries and keys", "anole", LLAMAGEN / "drafter.pt")
    refused("is not a LANTERN drafter", "anole", ANOLE)
    refused("is 48 wide with 8832 tokens, Anole is 40 wide with 8720", "anole", LUMINA / "drafter")
    tensors = torch.load(LUMINA / "drafter" / "pytorch_model.bin", weights_only=True)
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    assert open_parts(request_of("lumina-mgpt", drafter=tmp_path))[0].drafter is not None
    torch.save(tensors | {"norm.weight": torch.ones(48)}, tmp_path / "pytorch_model.bin")
    refused(r"norm\.weight, which would be left unread", "lumina-mgpt", tmp_path)


@pytest.mark.parametrize(("family", "rows"), [("anole", 1), ("lumina-mgpt", 2)])
def test_drafters_with_norms_of_the_other_layout(tmp_path: Path, family: str, rows: int) -> None:
    """One row for all heads where the published ones have a row for each, and the other way round: they are read, the
    same numbers draft the same, and a note says what they may be."""
    fixture = ANOLE if family == "anole" else LUMINA
    tensors = torch.load(fixture / "drafter" / "pytorch_model.bin", weights_only=True)
    norms = {name: x.reshape(-1, x.shape[-1])[:1] for name, x in tensors.items() if "_norm." in name}
    folders = []
    for name, heads in (("published", 3 - rows), ("other", rows)):
        alike = tensors | {key: x.expand(heads, -1).clone() for key, x in norms.items()}
        (tmp_path / name).mkdir()
        torch.save(alike, tmp_path / name / "pytorch_model.bin")
        folders.append(tmp_path / name)
    published, other = (open_parts(request_of(family, drafter=folder))[0] for folder in folders)
    assert published.drafter is not None and other.drafter is not None
    assert not any("has norms for" in note for note in published.notes)
    kind = "all heads together, as those of Lumina-mGPT" if family == "anole" else "each head, as those of Anole"
    assert any(f"has norms for {kind}: where it was not trained for" in note for note in other.notes)
    assert other.drafter.weights.shape("layers.0.attention.q_norm.weight")[0] == rows
    width, generator = published.drafter.stack.dim, torch.Generator().manual_seed(0)
    hidden = torch.randn((1, 5, width), generator=generator)
    given = (hidden, torch.arange(5)[None], torch.arange(5)[None], torch.ones(5, 5).tril().bool()[None, None])
    with torch.inference_mode():
        states = [parts.drafter.reference(parts.drafter.checkpoint).states(*given) for parts in (published, other)]
    torch.testing.assert_close(*states, rtol=0, atol=0)
    options = ("--grid", 8) if family == "anole" else ("--size", "96x96")
    said = build(family, "--checkpoint", fixture, "--drafter", folders[1], *options, "--tree", "chain_2", "--out",
                 tmp_path / "bundle")  # fmt: skip
    assert "Note: the drafter" in said
    outputs = read_manifest(tmp_path / "bundle").parity["draft.chain_2"]["outputs"]
    assert max(entry["relative"] for entry in outputs.values()) < 2e-5  # the graph reads those rows, too


def test_settings_of_a_config(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"cfg_scale": 2.5, "top_k": 100, "grid": 4}))
    parts, sampling = open_parts(request_of("anole", config=file, grid=None))
    assert (parts.target.plan.rows, sampling.guidance_scale, sampling.top_k) == (4, 2.5, 100)
    with pytest.raises(CascadeError, match="has the entry grid, which is not read"):
        open_parts(request_of("lumina-mgpt", config=file))


@pytest.mark.parametrize(
    ("size", "sentence"),
    [("100x96", "draws no images of 100x96: .*size token for .32 to 864."),
     ("96x4096", "draws no images of 96x4096"), ("96", "must be WIDTHxHEIGHT"),
     ("96x96x3", "must be WIDTHxHEIGHT"), ("0x96", "must be WIDTHxHEIGHT"),
     (None, "give --size 768x768, or another with sides that are multiples of 32 .*size token for .32 to 864.")],
)  # fmt: skip
def test_sizes_that_do_not_exist(size: str | None, sentence: str) -> None:
    with pytest.raises(CascadeError, match=sentence):
        open_parts(request_of("lumina-mgpt", size=size))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(("anole", "--checkpoint", ANOLE, "--size", "512x512"), "leave --size away"),
     (("lumina-mgpt", "--checkpoint", LUMINA, "--grid", 6), "takes no --grid"),
     (("anole", "--checkpoint", ANOLE, "--text", ANOLE), "takes no --text"),
     (("anole", "--checkpoint", ANOLE, "--n-head", 2), "takes no --n-head"),
     (("llamagen", "--checkpoint", ANOLE, "--vq", LLAMAGEN / "vq.pt", "--grid", 8), "is not a LlamaGen transformer"),
     (("llamagen", "--checkpoint", LLAMAGEN / "gpt_t2i.pt", "--vq", LLAMAGEN / "vq.pt", "--size", "9x9"),
      "leave --size away")],
)  # fmt: skip
def test_options_that_a_model_has_no_use_for(tmp_path: Path, arguments: tuple[object, ...], sentence: str) -> None:
    given = [str(word) for word in (*arguments, "--out", tmp_path / "bundle")]
    result = CliRunner().invoke(cli, ["build", *given])
    assert result.exit_code == 2 and sentence in " ".join(result.output.split()) and not list(tmp_path.iterdir())
