"""LANTERN's table against a plain sort of all distances, and in a bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cascade_trt.export.neighbours import neighbour_table
from cascade_trt.runtime.pipeline import Pipeline


class Codebook:
    def __init__(self, codes: torch.Tensor) -> None:
        self._codes = codes

    def load(self, name: str) -> torch.Tensor:
        assert name == "quantize.embedding.weight"
        return self._codes


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize(("vocab", "count"), [(1, 0), (2, 1), (40, 39), (1500, 1024)])
def test_nearest_first(vocab: int, count: int, normalised: bool) -> None:
    codes = torch.randn(vocab, 4, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 5, vocab)[:, None]
    table = neighbour_table(Codebook(codes), normalised)  # type: ignore[arg-type]
    assert table.shape == (vocab, count)
    assert table.dtype == np.uint16
    seen = torch.nn.functional.normalize(codes.double(), dim=-1) if normalised else codes.double()
    distances = torch.cdist(seen, seen).fill_diagonal_(torch.inf).numpy()
    picked = np.take_along_axis(distances, table.astype(np.int64), axis=1)
    np.testing.assert_allclose(picked, np.sort(distances, axis=1)[:, :count], atol=1e-7)
    assert all(row not in table[row] for row in range(vocab))


def test_ties_go_to_the_smaller_id() -> None:
    table = neighbour_table(Codebook(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [0.0, 2.0]])))  # type: ignore[arg-type]
    assert table[0].tolist() == [1, 2, 3]
    assert table[1].tolist() == [3, 0, 2]


def test_the_bundle_carries_it(small_vocabulary: Pipeline) -> None:
    manifest = small_vocabulary.manifest
    assert manifest.neighbours is not None
    table = np.load(Path(small_vocabulary.folder) / manifest.neighbours)
    assert table.shape == (8, 7)
    assert manifest.neighbours in manifest.files
