"""Profiles are the shapes that the runtime calls engines with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support import random_features

from cascade_trt.engines.tensorrt.profiles import engine_profiles
from cascade_trt.runtime.bundle import read_manifest
from cascade_trt.runtime.pipeline import Pipeline


def test_one_profile_for_each_shape(plain_bundle: Path) -> None:
    manifest = read_manifest(plain_bundle)
    assert engine_profiles(manifest, "target") == [{"P": 1, "R": 2, "N": n} for n in (9, 6, 1)]
    depth = manifest.trees[0].tree().depth
    assert engine_profiles(manifest, "draft.small_9") == [
        {"P": 1, "R": 2, "M": 6, "N_hidden": 6}, {"P": 1, "R": 2, "M": depth + 1, "N_hidden": 9},
    ]  # fmt: skip
    for engine in ("condition", "decode"):
        assert engine_profiles(manifest, engine) == [{"P": 1, "R": 2}]
    two = replace(manifest, batch=2)
    assert [p["R"] for p in engine_profiles(two, "decode")] == [2, 4]
    plain = replace(manifest, sampling=replace(manifest.sampling, guidance_scale=1.0))
    assert engine_profiles(plain, "decode") == [{"P": 1, "R": 1}]


@pytest.mark.parametrize("rule", ["ar", "exact"])
def test_the_runtime_binds_no_other_shape(plain_bundle: Path, rule: str) -> None:
    """Every shape that a drawing binds is in a profile of its engine."""
    pipe = Pipeline.load(plain_bundle, threads=1, warm=False)
    seen: dict[str, list[dict[str, np.ndarray]]] = {}

    class Spy:
        def __init__(self, name: str, engine: object) -> None:
            self.name, self.engine = name, engine

        def __getattr__(self, attribute: str) -> object:
            return getattr(self.engine, attribute)

        def bind(self, inputs: dict, outputs: dict) -> object:
            seen.setdefault(self.name, []).append(inputs)
            return self.engine.bind(inputs, outputs)  # type: ignore[attr-defined]

    engines = pipe._engines
    drafters = {tree: Spy(f"draft.{tree}", engine) for tree, engine in engines.draft.items()}
    pipe._engines = replace(
        engines, target=Spy("target", engines.target), embed=Spy("embed", engines.embed), draft=drafters
    )
    pipe.generate(**random_features(pipe, 1), rule=rule)
    assert "target" in seen
    manifest = read_manifest(plain_bundle)
    for name, calls in seen.items():
        profiles = engine_profiles(manifest, name)
        for inputs in calls:
            if name == "target":
                r, n = inputs["embeds"].shape[:2]
                assert {"P": 1, "R": r, "N": n} in profiles
            elif name == "embed":
                assert {"P": 1, "R": inputs["ids"].shape[0], "N": inputs["ids"].shape[1]} in profiles
            else:
                sizes = {"M": inputs["path"].shape[1], "N_hidden": inputs["hidden"].shape[1]}
                assert {"P": 1, "R": inputs["hidden"].shape[0], **sizes} in profiles
