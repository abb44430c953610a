"""The `condition` graph against LlamaGen's own conditioning modules."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cascade_trt.export.checkpoints.source import DummySource, TensorSource
from cascade_trt.export.families.llamagen.family import target_model
from cascade_trt.export.families.llamagen.model import CaptionEmbedder, LabelEmbedder, LlamaGenConfig
from cascade_trt.export.families.llamagen.reader import llamagen_shapes
from cascade_trt.export.graphs.builder import GraphBuilder
from cascade_trt.export.graphs.condition import build_condition

CONFIG = {"dim": 48, "n_layer": 1, "n_head": 2, "ffn_dim": 64, "vocab_size": 32, "grid": 4}
TOLERANCES = [("fp32", np.float32, 2e-6), ("fp16", np.float16, 4e-3)]  # relative to the largest output


class Merged(DummySource):
    """A transformer of random weights, its conditioning tensors those of a test."""

    def __init__(self, conditioning: TensorSource, config: LlamaGenConfig) -> None:
        super().__init__(llamagen_shapes(config))
        self._conditioning = conditioning

    def load(self, name: str) -> torch.Tensor:
        return self._conditioning.load(name) if name in self._conditioning else super().load(name)


def build_llamagen(g: GraphBuilder, conditioning: TensorSource, config: LlamaGenConfig) -> None:
    model = target_model(Merged(conditioning, config), config, "test")
    build_condition(g, model.weights, model.conditioner, config.dim)


def tensors_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {f"cls_embedding.{name}": tensor for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize(("precision", "dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("null_slots", [10, 16], ids=["exact", "longer-null"])
def test_caption_prefix(export_graph, precision, dtype, tolerance, null_slots):
    """Conditional rows, null rows and zeroed slots; a null caption longer than the prefix is cut."""
    torch.manual_seed(0)
    config = LlamaGenConfig(**CONFIG, prefix_len=10, condition="text", caption_dim=40)
    module = CaptionEmbedder(config)
    tensors = tensors_of(module)
    tail = torch.randn(null_slots - 10, 40)
    tensors["cls_embedding.uncond_embedding"] = torch.cat([module.uncond_embedding.detach(), tail])
    graph = export_graph(build_llamagen, tensors, config, precision=precision)
    for rows in (1, 2, 6):
        features = torch.randn(rows, 10, 40)
        features[:, :3] = 0
        uncond = torch.arange(rows) >= (rows + 1) // 2
        prefix = graph(features=features.numpy().astype(dtype), uncond=uncond.numpy())
        expected = module(features, uncond).detach().numpy()
        assert prefix.dtype == dtype
        assert np.abs(prefix - expected).max() <= tolerance * np.abs(expected).max()
        assert not prefix[~uncond.numpy(), :3].any()


def test_large_features_stay_finite_in_half_precision(export_graph):
    """The tanh form of GELU cubes its input, which must not happen in fp16."""
    config = LlamaGenConfig(**CONFIG, prefix_len=2, condition="text", caption_dim=40)
    module = CaptionEmbedder(config)
    torch.nn.init.constant_(module.cap_proj.fc1.weight, 2.0)
    graph = export_graph(build_llamagen, tensors_of(module), config, precision="fp16")
    features = torch.ones(1, 2, 40)
    uncond = torch.zeros(1, dtype=torch.bool)
    prefix = graph(features=features.numpy().astype(np.float16), uncond=uncond.numpy())
    expected = module(features, uncond).detach().numpy()
    assert np.abs(prefix - expected).max() <= 4e-3 * np.abs(expected).max()


@pytest.mark.parametrize(("precision", "dtype", "tolerance"), TOLERANCES)
def test_class_prefix(export_graph, precision, dtype, tolerance):
    torch.manual_seed(0)
    config = LlamaGenConfig(**CONFIG, prefix_len=1, condition="class", num_classes=11)
    module = LabelEmbedder(config)
    graph = export_graph(build_llamagen, tensors_of(module), config, precision=precision)
    for rows in (1, 2, 6):
        class_ids = torch.randint(0, 11, (rows,))
        uncond = torch.arange(rows) >= (rows + 1) // 2
        prefix = graph(class_ids=class_ids.numpy(), uncond=uncond.numpy())
        expected = module(class_ids, uncond).detach().numpy()
        assert prefix.dtype == dtype
        assert prefix.shape == (rows, 1, 48)
        assert np.abs(prefix - expected).max() <= tolerance * np.abs(expected).max()
