"""LlamaGen's transformer and LANTERN's drafter from every published form, and what is wrong with bad ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cascade_trt.export.checkpoints.reading import read_json
from cascade_trt.export.checkpoints.source import TensorSource
from cascade_trt.export.families.llamagen.drafter import Drafter, DrafterConfig
from cascade_trt.export.families.llamagen.model import LlamaGen, LlamaGenConfig
from cascade_trt.export.families.llamagen.reader import (
    drafter_shapes,
    llamagen_shapes,
    open_drafter,
    open_llamagen,
)
from cascade_trt.runtime.errors import CascadeError

CONFIG = LlamaGenConfig(
    dim=64, n_layer=2, n_head=2, ffn_dim=96, vocab_size=48, grid=4, prefix_len=5, condition="text",
    caption_dim=12,
)  # fmt: skip
CLASSES = replace(CONFIG, prefix_len=1, condition="class", caption_dim=2048, num_classes=9)
SETTINGS = {"grid": 4, "n_head": 2}
Weights = dict[str, torch.Tensor]


def weights(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype = torch.float32) -> Weights:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def save(tensors: Weights, path: Path) -> Path:
    torch.save({"model": tensors}, path)
    return path


def assert_same(source: TensorSource, tensors: Weights) -> None:
    for name, tensor in tensors.items():
        assert source.shape(name) == tuple(tensor.shape)
        assert torch.equal(source.load(name), tensor)


@pytest.mark.parametrize("config", [CONFIG, CLASSES], ids=["text", "class"])
def test_shapes_are_those_of_the_module(config: LlamaGenConfig) -> None:
    module = LlamaGen(config).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in module.items()} == llamagen_shapes(config)


def test_the_fixture(llamagen_fixture: Path) -> None:
    settings = read_json(llamagen_fixture / "config.json")
    source, config = open_llamagen(llamagen_fixture / "gpt_t2i.pt", settings)
    assert config == LlamaGenConfig(128, 4, 4, config.ffn_dim, 512, 8, 120, "text", 32)
    assert source.load("norm.weight").shape == (128,)
    drafter, drafter_config = open_drafter(llamagen_fixture / "drafter.pt", config)
    assert (drafter_config.n_head, drafter_config.norm_eps, drafter_config.bias) == (4, 1e-6, True)
    assert "fc.bias" in drafter


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("config", [CONFIG, CLASSES], ids=["text", "class"])
def test_dims_come_from_the_shapes(tmp_path: Path, config: LlamaGenConfig, dtype: torch.dtype) -> None:
    tensors = weights(llamagen_shapes(config), dtype)
    source, found = open_llamagen(save(tensors, tmp_path / "c.pt"), SETTINGS)
    assert found == config
    assert_same(source, tensors)


@pytest.mark.parametrize(("dim", "heads", "head_dim"), [(768, 12, 64), (1280, 20, 64), (3200, 32, 100)])
def test_heads_follow_the_width(tmp_path: Path, dim: int, heads: int, head_dim: int) -> None:
    """64 channels a head, except GPT-3B."""
    config = replace(CLASSES, dim=dim, n_layer=1, ffn_dim=4)
    tensors = {name: torch.zeros(1).expand(shape) for name, shape in llamagen_shapes(config).items()}
    path = save(tensors, tmp_path / "c.pt")  # expanded tensors keep their one element in the file
    _, found = open_llamagen(path, {"grid": 24})
    assert (found.n_head, found.head_dim) == (heads, head_dim)


def test_block_size_is_the_square_of_the_grid(tmp_path: Path) -> None:
    path = save(weights(llamagen_shapes(CONFIG)), tmp_path / "c.pt")
    assert open_llamagen(path, {"block_size": 16, "n_head": 2})[1] == CONFIG


BAD_SETTINGS = [
    ({}, r"token grid: give --grid 16 \(256 px\), 24 \(384 px\) or 32 \(512 px\)"),
    ({"grid": 0}, "grid must be a positive whole number"),
    ({"grid": "4"}, "grid must be a positive whole number"),
    ({"grid": 4.5}, "grid must be a positive whole number"),
    ({"grid": 256}, "from 1 to 128, not 256: it counts tokens"),
    ({"block_size": 15}, "15 is not the square"),
    ({"grid": 5, "block_size": 16}, "16 is not the square of the grid 5"),
    ({"grid": 4, "n_head": 3}, "3 heads do not divide the width 64"),
    ({"grid": 4, "n_head": -2}, "n_head must be a positive whole number"),
    ({"grid": 4, "n_head": "x"}, "n_head must be a positive whole number"),
    ({"grid": 4, "n_layer": 7}, r"n_layer 7, the checkpoint .* has 2"),
    ({"grid": 4, "dim": 128}, r"dim 128, the checkpoint .* has 64"),
    ({"grid": 4, "vocab_size": 16384}, r"vocab_size 16384, the checkpoint .* has 48"),
    ({"grid": 4, "cls_token_num": 120}, r"cls_token_num 120, the checkpoint .* has 5"),
    ({"grid": 4, "caption_dim": 2048}, r"caption_dim 2048, the checkpoint .* has 12"),
    ({"grid": 4, "dim": "wide"}, "dim must be a positive whole number"),
    ({"grid": 4, "norm_eps": "small"}, "norm_eps must be a positive number"),
]


@pytest.mark.parametrize(("settings", "sentence"), BAD_SETTINGS)
def test_bad_settings_are_sentences(tmp_path: Path, settings: dict, sentence: str) -> None:
    path = save(weights(llamagen_shapes(CONFIG)), tmp_path / "c.pt")
    with pytest.raises(CascadeError, match=sentence):
        open_llamagen(path, settings)


@pytest.mark.parametrize("config", [CONFIG, CLASSES], ids=["text", "class"])
def test_any_missing_or_misshapen_tensor_is_named(tmp_path: Path, config: LlamaGenConfig) -> None:
    whole = weights(llamagen_shapes(config))
    for name in whole:
        rest = {key: tensor for key, tensor in whole.items() if key != name}
        with pytest.raises(CascadeError) as caught:
            open_llamagen(save(rest, tmp_path / "c.pt"), SETTINGS)
        if name != "tok_embeddings.weight":  # without it the file is no LlamaGen transformer at all
            assert name in str(caught.value)
        # fewer rows of these two are a model with a shorter prefix or fewer classes, not a mistake
        counted = name in ("cls_embedding.uncond_embedding", "cls_embedding.embedding_table.weight")
        for wrong in (whole[name][None], whole[name][..., :-1] if counted else whole[name][:-1]):
            with pytest.raises(CascadeError, match="tensor") as caught:
                open_llamagen(save(rest | {name: wrong}, tmp_path / "c.pt"), SETTINGS)
            assert "c.pt" in str(caught.value)


TABLE = "cls_embedding.embedding_table.weight"


def test_a_class_table_tells_how_many_classes_it_has_beside_the_null_class(tmp_path: Path) -> None:
    tensors = weights(llamagen_shapes(CLASSES))
    path = save(tensors, tmp_path / "c.pt")
    assert open_llamagen(path, SETTINGS | {"num_classes": 9})[0].notes == ()
    (note,) = open_llamagen(path, SETTINGS)[0].notes
    assert "10 rows of classes" in note and "null class" in note and "num_classes" in note
    with pytest.raises(CascadeError, match="has 10 rows of classes, and none for the null class"):
        open_llamagen(path, SETTINGS | {"num_classes": 10})
    with pytest.raises(CascadeError, match="num_classes 8, the checkpoint .* has 9"):
        open_llamagen(path, SETTINGS | {"num_classes": 8})
    with pytest.raises(CascadeError, match="none for the null class"):
        open_llamagen(save(tensors | {TABLE: torch.ones(1, 64)}, path), SETTINGS)
    published = tensors | {TABLE: torch.zeros(1001, 64)}
    assert open_llamagen(save(published, path), SETTINGS)[0].notes == ()


def test_layers_are_numbered_without_a_gap(tmp_path: Path) -> None:
    tensors = weights(llamagen_shapes(CONFIG))
    for name in ("layers.3000000.x", "layers.3.ffn_norm.weight", f"layers.{'9' * 5000}.x"):
        with pytest.raises(CascadeError, match=r"lacks the tensors layers\.2:"):
            open_llamagen(save(tensors | {name: torch.ones(1)}, tmp_path / "c.pt"), SETTINGS)
    with pytest.raises(CascadeError, match=r"layers\.01\.x, which would be left unread|lacks the tensors layers"):
        open_llamagen(save(tensors | {"layers.01.x": torch.ones(1)}, tmp_path / "c.pt"), SETTINGS)
    for name in ("layers.1.attention.q_norm.weight", "pos_embedding", "output.bias"):
        with pytest.raises(CascadeError, match=rf"{name}, which would be left unread"):
            open_llamagen(save(tensors | {name: torch.ones(1)}, tmp_path / "c.pt"), SETTINGS)


# LANTERN's re-layout


def relayout(tensors: Weights) -> Weights:
    """LlamaGen's names -> LANTERN's."""
    names = {
        "attention.wo": "self_attn.o_proj",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w3": "mlp.up_proj",
        "feed_forward.w2": "mlp.down_proj",
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "tok_embeddings": "embed_tokens",
    }
    found: Weights = {}
    for name, tensor in tensors.items():
        if "wqkv" in name:
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                new = name.replace("attention.wqkv", f"self_attn.{part}_proj")
                found[f"model.{new}"] = rows.contiguous()
        elif name == "output.weight":
            found["lm_head.weight"] = tensor
        else:
            for ours, theirs in names.items():
                name = name.replace(ours, theirs)
            found[f"model.{name}"] = tensor
    return found


def hf_folder(folder: Path, tensors: Weights, shards: int = 1, **config: object) -> Path:
    content = {"block_size": 16, "num_attention_heads": 2, "rms_norm_eps": 1e-6, "hidden_size": 64} | config
    (folder / "config.json").write_text(json.dumps(content))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    names = sorted(tensors)
    files = {name: f"model-{i % shards}.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in names if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return folder


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("config", [CONFIG, CLASSES], ids=["text", "class"])
def test_lantern_gives_the_original_tensors(tmp_path: Path, config: LlamaGenConfig, shards: int) -> None:
    """q, k and v may lie in different shards; grid, heads and eps come from config.json."""
    tensors = weights(llamagen_shapes(config))
    source, found = open_llamagen(hf_folder(tmp_path, relayout(tensors), shards), {})
    assert found == replace(config, norm_eps=1e-6)
    assert sorted(source.names()) == sorted(tensors)
    assert_same(source, tensors)


def test_the_lantern_file_itself_reads_the_config_beside_it(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path, relayout(weights(llamagen_shapes(CONFIG))))
    _, config = open_llamagen(folder / "model.safetensors", {})
    assert config == replace(CONFIG, norm_eps=1e-6)


def test_lantern_errors_are_sentences(tmp_path: Path) -> None:
    tensors = relayout(weights(llamagen_shapes(CONFIG)))
    folder = hf_folder(tmp_path, tensors)
    with pytest.raises(CascadeError, match="16 is not the square of the grid 8"):
        open_llamagen(folder, {"grid": 8})
    del tensors["model.layers.1.self_attn.v_proj.weight"]
    with pytest.raises(CascadeError, match=r"lacks the tensor model\.layers\.1\.self_attn\.v_proj\.weight"):
        open_llamagen(hf_folder(tmp_path, tensors), {})


@pytest.mark.parametrize("layout", ["llama", "chameleon", "meta"])
def test_a_language_model_is_told_from_a_transformer_that_draws(tmp_path: Path, layout: str) -> None:
    tensors = relayout({k: x for k, x in weights(llamagen_shapes(CONFIG)).items() if "cls_embedding" not in k})
    if layout == "chameleon":
        tensors["model.vqmodel.quantize.embedding.weight"] = torch.ones(4, 4)
        tensors["model.layers.0.self_attn.q_norm.weight"] = torch.ones(2, 32)
    if layout == "meta":
        names = {"tok_embeddings.weight", "layers.0.attention.wq.weight", "norm.weight", "output.weight"}
        tensors = dict.fromkeys(names, torch.ones(48, 64))
    path = save(tensors, tmp_path / "c.pt")
    for opened in (lambda: open_llamagen(path, SETTINGS), lambda: open_drafter(path, CONFIG)):
        with pytest.raises(CascadeError, match="a language model"):
            opened()


def test_lantern_layers_must_be_llamagens(tmp_path: Path) -> None:
    """Norms of queries, biases, grouped keys: nothing of another model is left unread."""
    tensors = relayout(weights(llamagen_shapes(CONFIG)))
    for name in ("self_attn.q_norm.weight", "self_attn.q_proj.bias", "self_attn.rotary.weight"):
        with pytest.raises(CascadeError, match="which would be left unread"):
            open_llamagen(hf_folder(tmp_path, tensors | {f"model.layers.1.{name}": torch.ones(64)}), {})
    layer = "model.layers.0.self_attn"
    keys = {f"{layer}.k_proj.weight": torch.ones(32, 64), f"{layer}.v_proj.weight": torch.ones(96, 64)}
    with pytest.raises(CascadeError, match=r"keys and values have \[32, 64\] and \[96, 64\]"):
        open_llamagen(hf_folder(tmp_path, tensors | keys), {})
    with pytest.raises(CascadeError, match=r"tok_embeddings\.weight twice"):
        open_llamagen(hf_folder(tmp_path, tensors | {"tok_embeddings.weight": torch.ones(48, 64)}), {})


# Drafter

DRAFTER = DrafterConfig(dim=64, n_head=2, ffn_dim=96, vocab_size=48, grid=4, prefix_len=5)


@pytest.mark.parametrize("bias", [True, False])
def test_drafter_shapes_are_those_of_the_module(bias: bool) -> None:
    config = replace(DRAFTER, bias=bias)
    module = Drafter(config).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in module.items()} == drafter_shapes(config)


def drafter_pickle(path: Path, tensors: Weights) -> Path:
    torch.save(tensors, path / "d.pt")
    return path / "d.pt"


def drafter_file(path: Path, tensors: Weights) -> Path:
    save_file(tensors, path / "d.safetensors")
    return path / "d.safetensors"


def drafter_folder(path: Path, tensors: Weights) -> Path:
    torch.save(tensors, path / "pytorch_model.bin")
    return path


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("write", [drafter_pickle, drafter_file, drafter_folder])
def test_drafter_forms(tmp_path: Path, write: Callable[[Path, Weights], Path], bias: bool) -> None:
    expected = replace(DRAFTER, bias=bias)
    tensors = weights(drafter_shapes(expected))
    source, config = open_drafter(write(tmp_path, tensors), CONFIG)
    assert config == expected
    assert_same(source, tensors)


@pytest.mark.parametrize("name", ["config.json", "drafter_config.json"])
def test_the_drafter_reads_its_own_config(tmp_path: Path, name: str) -> None:
    own = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "rms_norm_eps": 1e-5}
    (tmp_path / name).write_text(json.dumps(own))
    _, config = open_drafter(drafter_pickle(tmp_path, weights(drafter_shapes(DRAFTER))), CONFIG)
    assert (config.n_head, config.norm_eps) == (4, 1e-5)


@pytest.mark.parametrize(
    "content",
    [
        {"dim": 64, "n_head": 4, "n_layer": 2, "grid": 4},
        {"hidden_size": 64, "num_hidden_layers": 36, "num_attention_heads": 4, "rms_norm_eps": 1e-5},
    ],
    ids=["our keys", "the base model's"],
)
def test_a_config_of_the_target_is_left_alone(tmp_path: Path, content: dict) -> None:
    (tmp_path / "config.json").write_text(json.dumps(content))
    _, config = open_drafter(drafter_pickle(tmp_path, weights(drafter_shapes(DRAFTER))), CONFIG)
    assert config == DRAFTER


@pytest.mark.parametrize("heads", [5, 0, "two", 64])
def test_bad_heads_of_a_drafter_are_a_sentence(tmp_path: Path, heads: object) -> None:
    own = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": heads}
    (tmp_path / "config.json").write_text(json.dumps(own))
    with pytest.raises(CascadeError, match=r"num_attention_heads"):
        open_drafter(drafter_pickle(tmp_path, weights(drafter_shapes(DRAFTER))), CONFIG)


def test_a_drafter_of_another_target_is_a_sentence(tmp_path: Path) -> None:
    path = drafter_pickle(tmp_path, weights(drafter_shapes(replace(DRAFTER, dim=128))))
    with pytest.raises(CascadeError, match=r"d\.pt is 128 wide with 48 tokens, the target is 64 wide with 48"):
        open_drafter(path, CONFIG)
    path = drafter_pickle(tmp_path, weights(drafter_shapes(replace(DRAFTER, vocab_size=32))))
    with pytest.raises(CascadeError, match="with 32 tokens"):
        open_drafter(path, CONFIG)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, ""), ({"input_type": None, "block_size": None}, ""), ({"block_size": 16}, ""),
        ({"input_type": "t2i", "block_size": 16}, ""),
        ({"input_type": "t2i2", "block_size": 1024}, "1024 tokens an image"),
        ({"input_type": "t2i"}, "256 tokens an image"), ({"block_size": 1024}, "1024 tokens an image"),
        ({"input_type": "c2i", "block_size": 16}, "16 tokens an image from a class"),
    ],
)  # fmt: skip
def test_a_drafter_of_another_stage_is_told(tmp_path: Path, config: dict, said: str) -> None:
    """Not one whose block_size is the target's: LANTERN's table of positions goes by input_type alone."""
    own = {"hidden_size": 64, "num_hidden_layers": 1} | config
    (tmp_path / "config.json").write_text(json.dumps(own))
    source, _ = open_drafter(drafter_pickle(tmp_path, weights(drafter_shapes(DRAFTER))), CONFIG)
    assert len(source.notes) == (1 if said else 0)
    assert all(said in note and "the target draws 16 from a text" in note for note in source.notes)


@pytest.mark.parametrize(
    "config", [{"input_type": "i2i"}, {"input_type": ["t2i"]}, {"block_size": "x"}, {"hidden_size": 32}]
)
def test_bad_values_of_a_drafter_config_are_sentences(tmp_path: Path, config: dict) -> None:
    own = {"hidden_size": 64, "num_hidden_layers": 1} | config
    (tmp_path / "config.json").write_text(json.dumps(own))
    with pytest.raises(CascadeError, match=next(iter(config))):
        open_drafter(drafter_pickle(tmp_path, weights(drafter_shapes(DRAFTER))), CONFIG)


def test_a_drafter_of_another_kind_is_told_by_what_is_left(tmp_path: Path) -> None:
    tensors = weights(drafter_shapes(DRAFTER))
    for name in ("layers.0.input_layernorm.weight", "layers.1.mlp.up_proj.weight", "norm.weight", "lm_head.weight"):
        with pytest.raises(CascadeError, match=rf"{name}, which would be left unread"):
            open_drafter(drafter_pickle(tmp_path, tensors | {name: torch.ones(64)}), CONFIG)


def test_any_missing_drafter_tensor_is_named(tmp_path: Path) -> None:
    whole = weights(drafter_shapes(DRAFTER))
    for name in set(whole) - {"fc.bias", "fc.weight", "embed_tokens.weight"}:
        rest = {key: tensor for key, tensor in whole.items() if key != name}
        with pytest.raises(CascadeError, match=name):
            open_drafter(drafter_pickle(tmp_path, rest), CONFIG)


def test_files_given_in_the_wrong_place(tmp_path: Path, llamagen_fixture: Path) -> None:
    with pytest.raises(CascadeError, match="a VQ tokenizer: pass it with --vq"):
        open_llamagen(llamagen_fixture / "vq.pt", {"grid": 8})
    with pytest.raises(CascadeError, match="a drafter: pass it with --drafter"):
        open_llamagen(llamagen_fixture / "drafter.pt", {"grid": 8})
    with pytest.raises(CascadeError, match="a transformer: pass it with --checkpoint"):
        open_drafter(llamagen_fixture / "gpt_t2i.pt", CONFIG)
    save_file({"encoder.weight": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(CascadeError, match=r"starts with the tensors encoder\.weight"):
        open_llamagen(tmp_path / "x.safetensors", {"grid": 8})
