"""VQ tokenizers and text encoders: dims from shapes and configs, and what is wrong with bad ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models

from cascade_trt.export.checkpoints.reading import read_json
from cascade_trt.export.checkpoints.t5 import check_text_matches, open_t5, t5_shapes
from cascade_trt.export.checkpoints.vq import check_vq_matches, open_vq, vq_shapes
from cascade_trt.export.models.t5 import T5Config, T5Encoder
from cascade_trt.export.models.vq import VQConfig, VQModel
from cascade_trt.runtime.bundle import ConditionInfo
from cascade_trt.runtime.errors import CascadeError
from cascade_trt.runtime.plan import TokenPlan

PLAN, CONDITION = TokenPlan(4, 4, 48), ConditionInfo("features", 5, width=12)
VQ16 = VQConfig()
VQ8 = VQConfig(ch_mult=(1, 2, 2, 4))
SMALL = VQConfig(codebook_size=48, codebook_dim=4, z_channels=16, ch=32, ch_mult=(1, 1, 2), num_res_blocks=1)


def save_vq(path: Path, config: VQConfig, **changes: torch.Tensor | None) -> Path:
    """A file of zeros that takes no room: every tensor is one element, expanded."""
    tensors = {name: torch.zeros(1).expand(shape) for name, shape in vq_shapes(config).items()}
    torch.save({"model": {name: t for name, t in (tensors | changes).items() if t is not None}}, path / "vq.pt")
    return path / "vq.pt"


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, ch_mult=(1, 2))])
def test_vq_shapes_are_those_of_the_decoder(config: VQConfig) -> None:
    module = VQModel(config, with_encoder=False).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in module.items()} == vq_shapes(config)


def test_the_vq_16_decoder_is_counted() -> None:
    sizes = {name: torch.Size(shape).numel() for name, shape in vq_shapes(VQ16).items()}
    assert sum(size for name, size in sizes.items() if name.startswith("decoder.")) == 42_449_795
    assert (VQ16.factor, VQ8.factor) == (16, 8)


@pytest.mark.parametrize("config", [VQ16, VQ8, SMALL], ids=["VQ-16", "VQ-8", "small"])
def test_vq_dims_come_from_the_decoder(tmp_path: Path, config: VQConfig) -> None:
    source, found = open_vq(save_vq(tmp_path, config), {})
    assert found == config
    assert set(vq_shapes(config)) <= set(source.names())


def test_the_vq_fixture(llamagen_fixture: Path) -> None:
    """It holds the encoder too, in float16."""
    source, config = open_vq(llamagen_fixture / "vq.pt", read_json(llamagen_fixture / "config.json"))
    assert (config.ch_mult, config.z_channels, config.codebook_size) == ((1, 1), 64, 512)
    assert source.load("quantize.embedding.weight").dtype == torch.float16
    assert "quantize.codebook_used" not in source


BAD_VQ_SETTINGS = [{"vq_ch_mult": [1, 2]}, {"vq_ch_mult": [1, 2, 2]}, {"vq_ch_mult": 3}, {"vq_ch_mult": ["a"]},
                   {"vq_z_channels": 32}, {"vq_codebook_dim": 8}]  # fmt: skip


@pytest.mark.parametrize("settings", BAD_VQ_SETTINGS)
def test_contradicting_vq_settings_are_a_sentence(tmp_path: Path, settings: dict) -> None:
    with pytest.raises(CascadeError, match=f"the config says {next(iter(settings))}"):
        open_vq(save_vq(tmp_path, SMALL), settings)


def test_ch_mult_is_compared_by_ratio(tmp_path: Path) -> None:
    assert open_vq(save_vq(tmp_path, SMALL), {"vq_ch_mult": [2, 2, 4]})[1] == SMALL


def test_bad_vq_files_are_sentences(tmp_path: Path, llamagen_fixture: Path) -> None:
    for name in vq_shapes(SMALL):
        with pytest.raises(CascadeError) as caught:
            open_vq(save_vq(tmp_path, SMALL, **{name: None}), {})
        assert "\n" not in str(caught.value)
        with pytest.raises(CascadeError, match=r"shape|channels"):
            open_vq(save_vq(tmp_path, SMALL, **{name: torch.zeros(5)}), {})
    with pytest.raises(CascadeError, match="a transformer: pass it with --checkpoint"):
        open_vq(llamagen_fixture / "gpt_t2i.pt", {})
    janus = {"gen_vision_model.quantize.embedding.weight": torch.zeros(2, 2), "language_model.norm": torch.ones(2)}
    torch.save(janus, tmp_path / "janus.bin")
    with pytest.raises(CascadeError, match="Janus"):
        open_vq(tmp_path / "janus.bin", {})


def test_group_norm_needs_multiples_of_32(tmp_path: Path) -> None:
    with pytest.raises(CascadeError, match="not multiples of 32"):
        open_vq(save_vq(tmp_path, replace(SMALL, ch=24)), {})


def test_codes_and_tokens_must_agree() -> None:
    check_vq_matches(PLAN, SMALL)
    with pytest.raises(CascadeError, match="16384 codes, the transformer 48 tokens"):
        check_vq_matches(PLAN, VQ16)


# Text encoder

T5 = T5Config(vocab_size=40, d_model=12, d_kv=4, d_ff=24, num_layers=2, num_heads=3)


def t5_folder(folder: Path, weights: str = "model.safetensors", **config: object) -> Path:
    tensors = {name: torch.randn(shape) for name, shape in t5_shapes(T5).items()}
    tensors |= {"decoder.final_layer_norm.weight": torch.ones(12), "lm_head.weight": torch.ones(40, 12)}
    content = asdict(T5) | {"model_type": "t5", "feed_forward_proj": "gated-gelu"} | config
    (folder / "config.json").write_text(json.dumps(content))
    Tokenizer(models.WordLevel({"<unk>": 0, "cat": 39}, unk_token="<unk>")).save(str(folder / "tokenizer.json"))
    save = save_file if weights.endswith("safetensors") else torch.save
    save(tensors, folder / weights)
    return folder


def test_t5_shapes_are_those_of_the_module() -> None:
    module = T5Encoder(T5).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in module.items()} == t5_shapes(T5)


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_a_whole_t5_gives_its_encoder(tmp_path: Path, weights: str) -> None:
    source, config, tokenizer = open_t5(t5_folder(tmp_path, weights))
    assert config == T5
    assert tokenizer == tmp_path / "tokenizer.json"
    assert source.load("shared.weight").shape == (40, 12)


def test_bad_text_folders_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(CascadeError, match="is not a folder"):
        open_t5(tmp_path / "nowhere")
    with pytest.raises(CascadeError, match=r"no file .*config\.json"):
        open_t5(tmp_path)
    t5_folder(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(CascadeError, match=r"no tokenizer\.json: make one with .*AutoTokenizer"):
        open_t5(tmp_path)
    with pytest.raises(CascadeError, match=r"'relu': give a T5 v1\.1 or a flan-t5"):
        open_t5(t5_folder(tmp_path, feed_forward_proj="relu"))
    with pytest.raises(CascadeError, match="num_heads must be a positive whole number"):
        open_t5(t5_folder(tmp_path, num_heads="x"))
    with pytest.raises(CascadeError, match=r"encoder\.block\.2\.layer\.0"):
        open_t5(t5_folder(tmp_path, num_layers=3))
    (tmp_path / "config.json").write_text('{"hidden_size": 12}')
    with pytest.raises(CascadeError, match="is not a T5 config: it lacks vocab_size"):
        open_t5(tmp_path)


def rewritten(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


SHARED, TIED = "shared.weight", "encoder.embed_tokens.weight"


def test_the_table_of_embeddings_under_either_name(tmp_path: Path) -> None:
    """Or twice, if it is the same; never lm_head, which is another."""
    folder = t5_folder(tmp_path)
    table = load_file(folder / "model.safetensors")[SHARED]
    for change in (
        lambda t: t.update({TIED: t[SHARED].clone()}), lambda t: t.pop(SHARED),
        lambda t: [t.update({f"text_encoder.{name}": t.pop(name)}) for name in list(t)],
    ):  # fmt: skip
        source = open_t5(rewritten(folder, change))[0]
        assert torch.equal(source.load(SHARED), table) and TIED not in source
    t5_folder(tmp_path)
    with pytest.raises(CascadeError, match="two tables of embeddings that differ"):
        open_t5(rewritten(folder, lambda t: t.update({TIED: t[SHARED] + 1})))
    t5_folder(tmp_path)
    with pytest.raises(CascadeError, match=r"lacks the tensor shared\.weight"):
        open_t5(rewritten(folder, lambda t: t.pop(SHARED)))


@pytest.mark.parametrize(
    "config", [{}, {"model_type": None}, {"model_type": "umt5"}, {"architectures": ["UMT5EncoderModel"]}]
)
def test_a_umt5_is_no_t5(tmp_path: Path, config: dict) -> None:
    """By its config, and by the tables of positions that it has in each layer, be they all zero."""
    table = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
    folder = t5_folder(tmp_path, **config)
    rewritten(folder, lambda t: t.update({table.format(1): torch.zeros_like(t[table.format(0)])}))
    with pytest.raises(CascadeError, match=r"is a '.mt5'|is a 'UMT5|block\.1\..*, which would be left unread"):
        open_t5(folder)


def test_fewer_layers_in_the_config_leave_some_unread(tmp_path: Path) -> None:
    with pytest.raises(CascadeError, match=r"encoder\.block\.1\..*, which would be left unread"):
        open_t5(t5_folder(tmp_path, num_layers=1))
    with pytest.raises(CascadeError, match="fewer than the 1000000000 layers"):
        open_t5(t5_folder(tmp_path, num_layers=10**9))


DEFAULTED = ("layer_norm_epsilon", "relative_attention_max_distance", "relative_attention_num_buckets", "pad_token_id",
             "feed_forward_proj", "model_type", "architectures", "dense_act_fn", "is_gated_act")  # fmt: skip


@pytest.mark.parametrize("name", DEFAULTED)
def test_null_means_the_default(tmp_path: Path, name: str) -> None:
    assert open_t5(t5_folder(tmp_path, **{name: None}))[1] == T5


BAD_T5 = [
    ("layer_norm_epsilon", "1e-6"), ("layer_norm_epsilon", 5), ("layer_norm_epsilon", -1e-6), ("pad_token_id", [0]),
    ("pad_token_id", 40), ("pad_token_id", -1), ("pad_token_id", 1.0), ("pad_token_id", True), ("d_kv", None),
    ("relative_attention_max_distance", 8), ("relative_attention_max_distance", 0), ("vocab_size", 10**400),
    ("relative_attention_num_buckets", 3), ("relative_attention_max_distance", "far"), ("num_layers", 2.0),
    ("dense_act_fn", "silu"), ("is_gated_act", False), ("model_type", ["t5"]), ("feed_forward_proj", {"a": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD_T5)
def test_other_values_of_a_t5_config_are_sentences(tmp_path: Path, name: str, value: object) -> None:
    with pytest.raises(CascadeError) as caught:
        open_t5(t5_folder(tmp_path, **{name: value}))
    assert str(caught.value).isprintable()


def test_a_tokenizer_must_fit_the_encoder(tmp_path: Path) -> None:
    folder = t5_folder(tmp_path)
    Tokenizer(models.WordLevel({"<unk>": 0, "cat": 40}, unk_token="<unk>")).save(str(folder / "tokenizer.json"))
    with pytest.raises(CascadeError, match="ids up to 40, the text encoder 40 tokens"):
        open_t5(folder)
    for content, said in (("{}", "cannot be read"), ("version https://git-lfs.github.com/spec/v1\n", "LFS pointer")):
        (folder / "tokenizer.json").write_text(content)
        with pytest.raises(CascadeError, match=said):
            open_t5(folder)


# Of every part


def test_a_vq_keeps_nothing_to_itself(tmp_path: Path) -> None:
    """The encoder and what training left are known; anything else is refused, and so are quantised codes."""
    one = torch.ones(1)
    known = {"encoder.conv_in.weight": one.char(), "quant_conv.bias": one, "loss.logvar": one}
    assert open_vq(save_vq(tmp_path, SMALL, **known), {})[1] == SMALL
    with pytest.raises(CascadeError, match=r"decoder\.mid\.3\.norm\.weight, which would be left unread"):
        open_vq(save_vq(tmp_path, SMALL, **{"decoder.mid.3.norm.weight": torch.ones(64)}), {})
    codes = torch.ones(48, 4, dtype=torch.int8)
    with pytest.raises(CascadeError, match=r"holds int8 \(quantised\) weights: give fp32, fp16 or bf16"):
        open_vq(save_vq(tmp_path, SMALL, **{"quantize.embedding.weight": codes}), {})
    for name in ("decoder.conv_blocks.3000000.x", "decoder.conv_blocks.0.res.3000000.x"):
        with pytest.raises(CascadeError, match=r"lacks the tensors decoder\.conv_blocks"):
            open_vq(save_vq(tmp_path, SMALL, **{name: torch.ones(1)}), {})


def test_features_must_have_the_width_that_the_target_reads() -> None:
    check_text_matches(CONDITION, T5)
    with pytest.raises(CascadeError, match="features of 16, the checkpoint reads 12"):
        check_text_matches(CONDITION, replace(T5, d_model=16))
    with pytest.raises(CascadeError, match="draws classes"):
        check_text_matches(ConditionInfo("class", 1, classes=3), T5)
