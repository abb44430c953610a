"""The `text` graph against the PyTorch T5 encoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cascade_trt.export.graphs.text import build_text
from cascade_trt.export.models.t5 import T5Config, T5Encoder

LENGTH = 20
CONFIG = T5Config(vocab_size=100, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
TOLERANCES = [("fp32", 1e-5), ("fp16", 1e-2)]  # absolute; the features' scale is 1 to 3


def random_encoder(feed_forward: float = 1.0) -> T5Encoder:
    """Weights of unit gain, times `feed_forward` in the feed-forward layers."""
    torch.manual_seed(0)
    model = T5Encoder(CONFIG).eval()
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            weight.data = 1 + 0.1 * torch.randn_like(weight)
        elif "shared" in name or "relative_attention_bias" in name:
            weight.data.normal_()
        else:
            gain = feed_forward if "Dense" in name else 0.7
            weight.data.normal_(0, gain * weight.shape[1] ** -0.5)
    return model


def left_padded(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(0, CONFIG.vocab_size, (len(lengths), LENGTH))
    return ids, torch.arange(LENGTH) >= LENGTH - torch.tensor(lengths)[:, None]


def expected_features(model: T5Encoder, ids: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return (model(ids, mask) * mask[..., None]).numpy()


@pytest.mark.parametrize(("precision", "tolerance"), TOLERANCES)
def test_features(export_graph, precision, tolerance):
    model = random_encoder()
    graph = export_graph(build_text, model.state_dict(), CONFIG, LENGTH, precision=precision)
    for lengths in ([20], [13, 1], [5, 20, 7]):
        ids, mask = left_padded(lengths)
        features = graph(ids=ids.numpy(), mask=mask.numpy())
        assert np.abs(features - expected_features(model, ids, mask)).max() <= tolerance
        assert not features[~mask.numpy()].any()


def test_padding_side_does_not_matter(export_graph):
    """The features of the prompt's tokens are those of the prompt alone, wherever it stands."""
    graph = export_graph(build_text, random_encoder().state_dict(), CONFIG, LENGTH)
    ids, mask = left_padded([12])
    left = graph(ids=ids.numpy(), mask=mask.numpy())[0, -12:]
    right = graph(ids=ids.roll(12, 1).numpy(), mask=mask.roll(12, 1).numpy())[0, :12]
    assert np.abs(left - right).max() <= 1e-5


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_empty_prompt_is_all_zeros(export_graph, precision):
    """No NaN from a softmax over nothing."""
    graph = export_graph(build_text, random_encoder().state_dict(), CONFIG, LENGTH, precision=precision)
    ids, mask = left_padded([0, 4])
    features = graph(ids=ids.numpy(), mask=mask.numpy())
    assert np.isfinite(features).all()
    assert not features[0].any()


def test_large_activations_fit_half_precision(export_graph):
    """The feed-forward's output passes fp16's largest number, as in the large T5 models."""
    model = random_encoder(feed_forward=50.0)
    ids, mask = left_padded([20, 9])
    largest = []
    hook = lambda module, inputs, output: largest.append(float(output.abs().max()))  # noqa: E731, ARG005
    handles = [m.register_forward_hook(hook) for n, m in model.named_modules() if n.endswith("wo")]
    expected = expected_features(model, ids, mask)
    assert len(handles) == CONFIG.num_layers
    assert max(largest) > 65504
    graph = export_graph(build_text, model.state_dict(), CONFIG, LENGTH, precision="fp16")
    assert np.abs(graph(ids=ids.numpy(), mask=mask.numpy()) - expected).max() <= 4e-3 * np.abs(expected).max()
