"""Every relaxed rule draws whole images through the pipeline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support import random_features

from cascade_trt.runtime.bundle import MANIFEST
from cascade_trt.runtime.errors import CascadeError
from cascade_trt.runtime.pipeline import Pipeline


@pytest.mark.parametrize(
    ("rule", "cause"),
    [
        ("cascade:tau_pos=0.0,tau_seq=off,guard=0.0,cap=0", "interchangeable"),
        ("cascade:tau_pos=off,tau_seq=0.0,guard=0.0,cap=0", "converged"),
        ("cascade:children=coupled,tau_pos=0.0,tau_seq=0.0,guard=0.0,cap=0", "converged"),
        ("lantern:delta=0.5", "relaxed"),
        ("lantern++:lambda=5", "relaxed"),
        ("gsd:size=4", "relaxed"),
        ("cool:delta=3", "relaxed"),
    ],
)
def test_every_relaxed_rule_draws(small_vocabulary: Pipeline, rule: str, cause: str) -> None:
    """More tokens a call than the strict rule, for the reason that is counted."""
    given = random_features(small_vocabulary, 3)
    base = "exact" if "coupled" in rule else "strict"
    strict = small_vocabulary.generate(**given, rule=base, tree="naive_extend_57")
    output = small_vocabulary.generate(**given, rule=rule, tree="naive_extend_57")
    assert output.stats.tau > strict.stats.tau
    assert output.stats.causes[cause] > 0
    assert sum(output.stats.causes.values()) == output.codes.size
    assert strict.stats.relaxed_share == 0 < output.stats.relaxed_share
    if "converged" in cause or "interchangeable" in cause:
        assert not np.isin(output.causes.reshape(3, 6, 6)[:, :, 0], (2, 3)).any()  # none at row starts


def test_temperature_zero_is_plain_decoding(small_vocabulary: Pipeline) -> None:
    given = random_features(small_vocabulary, 2)
    plain = small_vocabulary.generate(**given, temperature=0, rule="ar")
    for rule in ("cascade:tau_pos=0.0,tau_seq=0.0", "lantern:delta=0.9", "gsd", "cool:delta=9"):
        output = small_vocabulary.generate(**given, temperature=0, rule=rule, tree="small_9")
        np.testing.assert_array_equal(output.codes, plain.codes)


def test_a_bundle_without_a_table(small_vocabulary: Pipeline, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small_vocabulary.folder, tmp_path / "bundle"))
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["neighbours"] is not None
    (folder / MANIFEST).write_text(json.dumps(manifest | {"neighbours": None}))
    pipe = Pipeline.load(folder, threads=1, warm=False)
    with pytest.raises(CascadeError, match="neighbour table"):
        pipe.generate(**random_features(pipe, 1), rule="lantern")
