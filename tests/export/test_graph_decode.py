"""The `decode` graph against the PyTorch decoder, and against the original code's image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cascade_trt.export.graphs.decode import build_decode, latent_table
from cascade_trt.export.models.vq import VQConfig, VQModel

# Relative to the largest value. fp16 rounds every map between two convolutions.
TOLERANCES = [("fp32", 1.2e-5), ("fp16", 8e-3)]
SMALL = VQConfig(codebook_size=40, ch=32)
CONFIGS = {
    "vq16-like": (replace(SMALL, z_channels=24), 3),
    "vq8-like": (replace(SMALL, z_channels=16, ch_mult=(1, 2, 2, 4)), 4),
    "one-block": (replace(SMALL, z_channels=8, codebook_dim=4, ch_mult=(1, 2), num_res_blocks=1), 5),
    "few-groups": (replace(SMALL, ch=16, z_channels=8, ch_mult=(2, 1), groups=8), 4),
    "no-upsample": (replace(SMALL, ch=64, z_channels=8, ch_mult=(1,)), 4),
    "oblong": (replace(SMALL, z_channels=16, ch_mult=(1, 2, 2)), (3, 5)),
}


def random_model(config: VQConfig) -> VQModel:
    """Norm weights and biases too are random, so that each of them matters."""
    torch.manual_seed(0)
    model = VQModel(config, with_encoder=False).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.quantize.embedding.weight.data.normal_()
    return model


@pytest.mark.parametrize(("precision", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("name", CONFIGS)
def test_random_decoders(export_graph, name, precision, tolerance):
    config, grid = CONFIGS[name]
    rows, columns = grid if isinstance(grid, tuple) else (grid, grid)
    model = random_model(config)
    graph = export_graph(build_decode, model.state_dict(), config, rows, columns, precision=precision)
    reference = model.double()  # a group of few values can be ill-conditioned: float32 PyTorch is 2e-5 off too
    for prompts in (1, 3):
        codes = torch.randint(0, config.codebook_size, (prompts, rows * columns))
        with torch.no_grad():
            expected = reference.decode_codes(codes, rows).numpy()
        image = graph(codes=codes.numpy())
        assert image.dtype == np.float32
        assert image.shape == (prompts, 3, rows * config.factor, columns * config.factor)
        assert np.abs(image - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("fp16", 2e-3)])
def test_fixture_image(export_graph, llamagen_fixture, precision, tolerance):
    """The original code's image of the fixture's greedy tokens."""
    tensors = torch.load(llamagen_fixture / "vq.pt", weights_only=True)["model"]
    golden = np.load(llamagen_fixture / "golden.npz")
    config = VQConfig(codebook_size=512, z_channels=64, ch_mult=(1, 1))
    graph = export_graph(build_decode, tensors, config, 8, 8, precision=precision)
    codes = golden["greedy_tokens"].astype(np.int64)
    assert np.abs(graph(codes=codes[:1]) - golden["image"]).max() <= tolerance
    assert np.abs(graph(codes=codes)[:1] - golden["image"]).max() <= tolerance


def test_images_of_a_batch_do_not_mix(export_graph):
    config, grid = CONFIGS["vq8-like"]
    graph = export_graph(build_decode, random_model(config).state_dict(), config, grid, grid)
    codes = np.random.default_rng(0).integers(0, config.codebook_size, (4, grid * grid))
    one_by_one = np.concatenate([graph(codes=codes[i : i + 1]) for i in range(4)])
    assert np.abs(graph(codes=codes) - one_by_one).max() <= 1e-5 * np.abs(one_by_one).max()


def test_latent_table_is_the_lookup_and_the_convolution(memory_source):
    """Scaling a codebook row changes nothing: rows are normalised."""
    config, _ = CONFIGS["vq8-like"]
    tensors = random_model(config).state_dict()
    scaled = {**tensors, "quantize.embedding.weight": tensors["quantize.embedding.weight"] * 5}
    row = torch.nn.functional.normalize(tensors["quantize.embedding.weight"], dim=-1)
    weight, bias = tensors["post_quant_conv.weight"], tensors["post_quant_conv.bias"]
    expected = torch.nn.functional.conv2d(row[:, :, None, None], weight, bias).flatten(1).numpy()
    assert np.abs(latent_table(memory_source(tensors)) - expected).max() <= 1e-6
    assert np.abs(latent_table(memory_source(scaled)) - expected).max() <= 1e-6
