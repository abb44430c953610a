"""What was calibrated in a bundle is kept when it is built again with the same target, or told by name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from support import build, save_checkpoints

from cascade_trt.commands.calibrate_states import write_table
from cascade_trt.commands.calibrate_thresholds import write_rule
from cascade_trt.engines.origin import point_images
from cascade_trt.engines.publish import amend_bundle
from cascade_trt.runtime.bundle import CostInfo, Manifest, read_manifest
from cascade_trt.runtime.files import check_files
from cascade_trt.runtime.pipeline import Pipeline
from cascade_trt.runtime.rules.states import StateTable

COSTS = CostInfo("ort-cpu", "1.32.0", "a laptop", 2, [1], [1, 9], [[1.0, 2.0]], {"draft.pair_4": [0.5]}, 0.1, 0.0,
                 {"pair_4": 1.5}, 4)  # fmt: skip
RULE = "swap:tau_draw=0.5"
VOCAB, DIM = 8, 64


def table(first: int) -> StateTable:
    return StateTable(np.roll(np.eye(VOCAB, DIM, dtype=np.float16), first, 1), np.full(VOCAB, 1 / VOCAB, np.float32))


def said(output: str) -> str:
    return " ".join(output.split())


@pytest.fixture
def calibrated(tmp_path: Path) -> tuple[list[object], Path]:
    """What builds a bundle, and the bundle after all calibrations, with a file of the user's."""
    arguments, out = save_checkpoints(tmp_path / "c", vocab=VOCAB), tmp_path / "b"
    build(*arguments, "--tree", "pair_4", "--out", out)
    write_table(out, table(1))
    write_rule(out, RULE, 500)
    amend_bundle(out, lambda _, manifest: dataclasses.replace(manifest, costs=[COSTS]))
    (out / "notes.txt").write_text("mine")
    return arguments, out


def check(out: Path) -> Manifest:
    manifest = read_manifest(out)
    check_files(out, manifest, thorough=True)
    assert (out / "notes.txt").read_text() == "mine"
    assert all((out / name).is_file() for name in manifest.files)
    return manifest


def test_it_is_kept_while_the_target_is_the_same(calibrated: tuple[list[object], Path]) -> None:
    """Also with other trees and another number of slots, whose weight files differ; and the next time again."""
    arguments, out = calibrated
    for options in (("--tree", "pair_4", "--max-nodes", 50), ("--tree", "pair_4", "--tree", "chain_2", "--batch", 2)):
        output = said(build(*arguments, *options, "--out", out))
        assert f"kept of the bundle before: the table of states, rule `swap` as {RULE}, costs on a laptop" in output
        assert "notes.txt" in output
        assert "dropped" not in output
        manifest = check(out)
        assert manifest.rules == {"swap": RULE}
        assert point_images(manifest, "swap") == 500
        assert manifest.costs == [COSTS]
        assert manifest.states is not None
        np.testing.assert_array_equal(StateTable.load(out / manifest.states).rows, table(1).rows)
    assert "without draft.chain_2: run `" in output and "cascade-trt calibrate costs` again" in output
    assert Pipeline.load(out, threads=1).rule("swap").name == RULE


def test_what_belongs_to_another_target_is_told_by_name(calibrated: tuple[list[object], Path], tmp_path: Path) -> None:
    _, out = calibrated
    other = save_checkpoints(tmp_path / "other", vocab=VOCAB, seed=1)
    output = said(build(*other, "--tree", "pair_4", "--out", out))
    for what in ("the table of states (it belongs to another target", f"rule `swap` as {RULE} (it belongs to",
                 "costs on a laptop with 2 threads (it belongs to another target"):  # fmt: skip
        assert f"dropped of the bundle before: {what}" in output
    assert "kept of the bundle before: notes.txt" in output
    manifest = check(out)
    assert (manifest.states, manifest.rules, manifest.costs) == (None, {}, [])
    assert not (out / "states.npz").exists()
    assert "dropped" not in build(*other, "--tree", "pair_4", "--out", out)


def test_costs_are_of_a_drafter_and_a_precision(calibrated: tuple[list[object], Path]) -> None:
    arguments, out = calibrated
    output = said(build(*arguments, "--tree", "pair_4", "--precision", "fp16", "--out", out))
    assert "costs on a laptop with 2 threads (it was measured in another precision" in output
    manifest = check(out)
    assert manifest.costs == []
    assert manifest.rules == {"swap": RULE}
    amend_bundle(out, lambda _, manifest: dataclasses.replace(manifest, costs=[COSTS]))
    at = arguments.index("--drafter")
    output = said(build(*arguments[:at], *arguments[at + 2 :], "--precision", "fp16", "--out", out))
    assert "costs on a laptop with 2 threads (it was measured with another drafter" in output
    assert check(out).rules == {"swap": RULE}


def test_what_came_with_the_checkpoint_goes_with_it(tmp_path: Path) -> None:
    """A new config replaces what an old one brought, and nothing that was calibrated since."""
    arguments, out = save_checkpoints(tmp_path / "c", vocab=VOCAB), tmp_path / "b"
    config = tmp_path / "c" / "model.json"
    settings = json.loads(config.read_text())

    def bring(first: int, tau: float) -> tuple[str, str]:
        rule = f"swap:tau_draw={tau}"
        table(first).save(config.parent / "states.npz")
        config.write_text(json.dumps(settings | {"states": "states.npz", "rules": {"swap": rule}}))
        return rule, said(build(*arguments, "--tree", "pair_4", "--out", out))

    def held() -> tuple[str, int]:
        manifest = read_manifest(out)
        check_files(out, manifest, thorough=True)
        assert manifest.states is not None
        return manifest.rules["swap"], int(StateTable.load(out / manifest.states).rows[0].argmax())

    bring(1, 0.1)
    rule, output = bring(2, 0.2)
    assert "of the bundle before" not in output
    assert held() == (rule, 2)
    write_rule(out, RULE, 500)
    rule, output = bring(3, 0.3)
    assert f"kept of the bundle before: rule `swap` as {RULE}" in output
    assert held() == (RULE, 3)
    write_table(out, table(4))
    bring(5, 0.4)
    assert held() == (RULE, 4)
    (out / "states.npz").write_bytes(b"damaged")
    _, output = bring(6, 0.4)
    assert "the table of states (its file is damaged" in output
    assert held() == (RULE, 6)


def test_a_manifest_that_cannot_be_read_is_told(calibrated: tuple[list[object], Path]) -> None:
    arguments, out = calibrated
    content = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps(content | {"schema": 1}))
    output = said(build(*arguments, "--tree", "pair_4", "--out", out))
    assert "kept of the bundle before: notes.txt" in output
    assert "dropped of the bundle before: what was calibrated, if anything, for its manifest cannot be read" in output
    assert check(out).rules == {}
