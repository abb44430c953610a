"""`benchmarks/gpu.py` on the CPU: what does not need a GPU's clock is the same there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cascade_trt.benchmarks import gpu, gpu_results

CPU = ("--backend", "ort-cpu")


@pytest.fixture
def entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(gpu_results, "FILE", tmp_path / "gpu.json")
    return lambda: json.loads(gpu_results.FILE.read_text())["entries"]


def run(*arguments: object) -> None:
    result = CliRunner().invoke(gpu.main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def test_parity_of_a_backend_with_itself(tiny_bundle: Path, entries: Any) -> None:
    run("parity", tiny_bundle, *CPU, "--images", 2)
    (found,) = entries()
    equal = {"images": 1.0, "tokens": 1.0}
    assert found["cpu"] == found["ar_in_batches"] == equal
    assert found["exact"] and all(tree == equal for tree in found["exact"].values())


def test_parts_stand_beside_each_other_and_replace_their_own(tiny_bundle: Path, entries: Any) -> None:
    for _ in range(2):
        run("speed", tiny_bundle, *CPU, "--slots", 2, "--tree", "jacobi_8", "--repeats", 1)
    run("calls", tiny_bundle, *CPU, "--slots", 1, "--bandwidth", 10)
    speed, calls = entries()
    plain, tree = speed["rows"]
    assert (plain["tree"], tree["tree"], plain["speed_up"], plain["tau"]) == ("none", "jacobi_8", 1.0, 1.0)
    assert tree["tau"] > 1 and tree["slots"] == 2
    (row,) = calls["rows"]
    assert len(row["ms"]) == len(row["nodes"]) and row["roofline_ms"] > 0


def test_rounds_of_the_host_are_an_entry_of_their_own(tiny_bundle: Path, entries: Any) -> None:
    for rounds in ("device", "host"):
        run("speed", tiny_bundle, *CPU, "--rounds", rounds, "--slots", 1, "--tree", "jacobi_8", "--repeats", 1)
    assert [entry["rounds"] for entry in entries()] == ["device", "host"]


def test_stages_add_up(tiny_bundle: Path, entries: Any) -> None:
    run("stages", tiny_bundle, *CPU, "--slots", 1, "--tree", "jacobi_8")
    (found,) = entries()
    assert found["clock"] == "the host's clock"
    for row in found["rows"]:
        assert set(row["ms_by_stage"]) == {"embed", "target"}
        assert sum(row["ms_by_stage"].values()) == pytest.approx(row["ms_a_round"] * (1 - row["gap"]))
        assert 0 < row["gap"] < 1 and row["target_gb_per_second"] > 0


def test_one_page_of_every_part(tiny_bundle: Path, entries: Any) -> None:
    run("parity", tiny_bundle, *CPU, "--images", 1)
    run("speed", tiny_bundle, *CPU, "--slots", 1, "--tree", "jacobi_8", "--repeats", 1)
    run("calls", tiny_bundle, *CPU, "--slots", 1, "--bandwidth", 10)
    run("stages", tiny_bundle, *CPU, "--slots", 1, "--tree", "jacobi_8")
    gpu_results.store("torch", "llamagen-t2i-b", "pytorch", {"torch": "2", "rows": [
        {"images": 1, "eager_ms": 3.25, "eager_in_a_graph_ms": 2.5, "compiled_ms": 1.75}]})  # fmt: skip
    run("page")
    page = gpu_results.FILE.with_suffix(".md").read_text()
    said = [line for line in page.splitlines() if line.startswith("### ")]
    assert [line.split()[1] for line in said] == ["parity:", "speed:", "calls:", "stages:", "torch:"]
    speed = next(entry for entry in entries() if entry["part"] == "speed")["rows"][1]
    assert f"Fastest alone: `jacobi_8`, {speed['speed_up']:.2f} times" in page or speed["speed_up"] < 1
    assert "| 1 | 3.25 | 2.50 | 1.75 |" in page and "100.0 % | 100.0 %" in page
