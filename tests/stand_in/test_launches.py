"""How many kernels, copies and products a call is on `ort-cuda`, as an upper bound: a model has dozens of layers.
Counted on the stand-in for CUDA, by `benchmarks/launches.py`."""

from __future__ import annotations

import json
import os
import shutil
from typing import Any

import pytest

from cascade_trt.benchmarks.launches import FILE, KINDS, NODES, PRECISIONS, measure

MOST = {"fp16": 21, "fp32": 19, "bf16": 21}  # of a layer of the target

pytestmark = [
    pytest.mark.stand_in,
    pytest.mark.skipif("CASCADE_STAND_IN" not in os.environ, reason="CASCADE_STAND_IN names no folder of packages: see "
                       "make test-stand-in"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc to build the stand-in with"),
]  # fmt: skip


def total(row: dict[str, Any]) -> float:
    return sum(row[kind] for kind in KINDS)


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, Any]]:
    """Rows of the small models by precision and what they say."""
    rows = measure(tmp_path_factory.mktemp("launches"), list(MOST))["rows"]
    return {(row["precision"], row["what"]): row for row in rows}


@pytest.mark.parametrize("nodes", NODES)
@pytest.mark.parametrize("precision", MOST)
def test_a_layer_is_few_launches(counted: dict, precision: str, nodes: int) -> None:
    row = counted[precision, f"a layer, {nodes} nodes"]
    assert total(row) <= MOST[precision] and row["products"] == 4 and row["zeroings"] == 0
    assert row["copies"] <= (2 if nodes == 1 else 0)  # of one node, what a transposition moves is a copy


def test_calls_are_no_more_than_was_recorded(counted: dict) -> None:
    """Every row of the results that is here, too: layers, what is there once a call, drafts."""
    recorded = {(row["precision"], row["what"]): row for row in json.loads(FILE.read_text())["now"]["rows"]}
    shared = recorded.keys() & counted.keys()
    assert len(shared) == len(PRECISIONS) * (len(counted) // len(MOST))
    assert {key: total(counted[key]) for key in shared if total(counted[key]) > total(recorded[key])} == {}
