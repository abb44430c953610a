"""Which TensorRT engines of a bundle a machine is told to use, or to compile."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import fake_trt
import pytest

from cascade_trt.engines.tensorrt.target import RTX_ARCHITECTURES, parse_target
from cascade_trt.runtime.errors import CascadeError
from cascade_trt.runtime.plans import RTX_CAPABILITIES, Here, Plans, capability_text, target_for


def test_every_card_is_told_a_target_that_can_be_compiled() -> None:
    known = {name: parse_target(f"rtx:{name}").compute_capability for name in RTX_ARCHITECTURES}
    assert {capability_text(capability) for capability in known.values() if capability} == set(RTX_CAPABILITIES)
    for name, capability in known.items():
        assert capability is not None and target_for(capability) == f"rtx:{name}"
    for capability in ((7, 5), (8, 0), (9, 0), (10, 0), (11, 0)):
        assert target_for(capability) == "tensorrt" and parse_target(target_for(capability)).backend == "tensorrt"


def test_the_reason_is_that_of_the_engines_for_this_card(tiny_bundle: Path, tmp_path: Path) -> None:
    """Though others are named before them; and each reason is one's own."""
    older, newer = tmp_path / "old", tmp_path / "new"
    older.mkdir()
    newer.mkdir()
    old = fake_trt.compiled(tiny_bundle, older, target="rtx:sm86", capability="8.6")
    plans = replace(old, entries=[*old.entries, *fake_trt.compiled(tiny_bundle, newer, version="1.8.0").entries])

    def here(capability: tuple[int, int], version: str = fake_trt.VERSION) -> Here:
        return replace(Here.look(("A card", capability)), versions={"tensorrt-rtx": version})

    assert {plan.target for plan in plans.fitting("tensorrt-rtx", here((8, 6))).values()} == {"rtx:sm86"}
    assert set(plans.fitting("tensorrt-rtx", here((8, 9), "1.8.0"))) == set(plans.graphs.values())
    reasons = {
        (8, 9): "^rtx:sm89 cannot be used here: built with tensorrt-rtx 1.8.0, this machine has 1.7.1.116: run ",
        (9, 0): "^rtx:sm86 cannot be used here: built for compute capability 8.6, .* has 9.0: .* --target tensorrt`",
    }
    for capability, reason in reasons.items():
        with pytest.raises(CascadeError, match=reason):
            plans.fitting("tensorrt-rtx", here(capability))
    with pytest.raises(CascadeError, match="^rtx:sm89 cannot be used here: .* this machine has 1.7.1.116"):
        plans.fitting("tensorrt-rtx", here((8, 6)), target="rtx:sm89")
    with pytest.raises(CascadeError, match="needs tensorrt-rtx .*, which is not installed: run `pip install"):
        plans.fitting("tensorrt-rtx", replace(here((8, 6)), versions={}))
    with pytest.raises(CascadeError, match="there is no GPU here"):
        plans.fitting("tensorrt-rtx", replace(here((8, 6)), gpu=None))
    assert not plans.has("tensorrt") and isinstance(plans, Plans)
