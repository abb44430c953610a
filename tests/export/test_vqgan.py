"""Chameleon's VQGAN, under the names of taming-transformers: sizes from tensors, pixels of the original decoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cascade_trt.export.checkpoints.source import load_module
from cascade_trt.export.checkpoints.vq import open_vqgan, vq_shapes
from cascade_trt.export.graphs.decode import build_decode
from cascade_trt.export.models.vq import VQConfig, VQModel
from cascade_trt.runtime.errors import CascadeError

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
SIZES = {"anole": ((1, 2), 8), "lumina": ((1, 1, 1, 1, 1), 6)}


@pytest.fixture(params=sorted(SIZES))
def vqgan(request: pytest.FixtureRequest) -> tuple[str, Path]:
    return request.param, FIXTURES / f"{request.param}-tiny" / "tokenizer" / "vqgan.ckpt"


def test_sizes_come_from_the_tensors(vqgan: tuple[str, Path]) -> None:
    name, path = vqgan
    source, config = open_vqgan(path)
    assert config == VQConfig(8192, 16, 32, 32, SIZES[name][0], 2, attention=False, normalised=False)
    assert set(source.names()) == set(vq_shapes(config))  # neither the encoder nor the loss


def test_the_original_image(vqgan: tuple[str, Path], export_graph) -> None:
    """The graph and the PyTorch module, whose codes are not normalised and whose levels run the other way."""
    name, path = vqgan
    source, config = open_vqgan(path)
    golden = np.load(FIXTURES / f"{name}-tiny" / "golden.npz")
    codes, wanted, side = golden["greedy_codes"].astype(np.int64), golden["image"], SIZES[name][1]
    module = load_module(VQModel(config, with_encoder=False), source)
    with torch.inference_mode():
        assert np.abs(module.decode_codes(torch.from_numpy(codes)).numpy() - wanted).max() <= 2e-4
    graph = export_graph(build_decode, {key: source.load(key).float() for key in source.names()}, config, side, side)
    assert np.abs(graph(codes=codes) - wanted).max() <= 2e-4


def test_attention_in_the_lowest_level_is_read(tmp_path: Path) -> None:
    """As with attn_resolutions [16] in other VQGANs; attention in any other level would be left unread."""
    config = VQConfig(48, 4, 16, 32, (1, 2), 1, normalised=False)
    names = {"mid.0": "mid.block_1", "mid.1": "mid.attn_1", "mid.2": "mid.block_2", "conv_blocks.0.res": "up.1.block",
             "conv_blocks.1.res": "up.0.block", "conv_blocks.0": "up.1"}  # fmt: skip
    tensors = {}
    for name, shape in vq_shapes(config).items():
        for ours, theirs in names.items():
            name = name.replace(f"decoder.{ours}.", f"decoder.{theirs}.")
        tensors[name] = torch.zeros(1).expand(shape)
    torch.save({"state_dict": tensors}, tmp_path / "vqgan.ckpt")
    assert open_vqgan(tmp_path / "vqgan.ckpt")[1] == config
    torch.save(tensors | {"decoder.up.0.attn.0.q.bias": torch.zeros(64)}, tmp_path / "more.ckpt")
    with pytest.raises(CascadeError, match=r"conv_blocks\.1\.attn\.0\.q\.bias, which would be left unread"):
        open_vqgan(tmp_path / "more.ckpt")


def test_a_tensor_under_two_names_is_refused(tmp_path: Path) -> None:
    tensors = torch.load(FIXTURES / "anole-tiny" / "tokenizer" / "vqgan.ckpt", weights_only=True)["state_dict"]
    torch.save(tensors | {"decoder.mid.0.norm1.bias": torch.zeros(64)}, tmp_path / "vqgan.ckpt")
    with pytest.raises(CascadeError, match="both taming's names and LlamaGen's"):
        open_vqgan(tmp_path / "vqgan.ckpt")


def test_other_files_are_sentences(llamagen_fixture: Path, tmp_path: Path) -> None:
    with pytest.raises(CascadeError, match="not a VQGAN as Chameleon's"):
        open_vqgan(llamagen_fixture / "vq.pt")
    with pytest.raises(CascadeError, match="not a VQ tokenizer but a transformer"):
        open_vqgan(llamagen_fixture / "gpt_t2i.pt")
    (tmp_path / "vqgan.ckpt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(CascadeError, match="is a Git LFS pointer"):
        open_vqgan(tmp_path / "vqgan.ckpt")
