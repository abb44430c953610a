"""The `embed` graph against torch's embedding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cascade_trt.export.graphs.builder import GraphBuilder
from cascade_trt.export.graphs.embed import build_embed
from cascade_trt.export.graphs.weights import PRECISIONS, WeightFile


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 0.0), ("fp16", 2e-3)])
def test_embed_looks_up_rows(export_graph, precision, tolerance):
    torch.manual_seed(0)
    table = torch.randn(50, 24)
    graph = export_graph(build_embed, {"embedding.weight": table}, precision=precision)
    for rows, nodes in [(1, 1), (2, 7), (4, 3)]:
        ids = torch.randint(0, 50, (rows, nodes))
        embeds = graph(ids=ids.numpy())
        assert embeds.shape == (rows, nodes, 24)
        assert np.abs(embeds - table[ids].numpy()).max() <= tolerance


def test_table_is_shared_with_the_target(memory_source, tmp_path):
    """A weight file that holds the table already is not written to again, nor is it copied to another."""
    source = memory_source({"embedding.weight": torch.ones(5, 4)})
    with WeightFile(tmp_path / "target.weights", PRECISIONS["fp32"]) as weights:
        build_embed(GraphBuilder("embed", weights), source)
        build_embed(GraphBuilder("embed", weights), source)
        with WeightFile(tmp_path / "drafter.weights", PRECISIONS["fp32"]) as others:
            build_embed(GraphBuilder("embed", others, weights.tensors), source)
    assert (len(weights.tensors), len(others.tensors)) == (1, 0)
    assert weights.path.stat().st_size == 5 * 4 * 4
