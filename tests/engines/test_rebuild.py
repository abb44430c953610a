"""`build --target` over an older bundle: engines that stay the same are taken over, and failures change nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from support import save_checkpoints

from cascade_trt.cli import cli
from cascade_trt.engines import compile
from cascade_trt.engines.cache import plan_damage
from cascade_trt.runtime.bundle import read_manifest
from cascade_trt.runtime.files import check_files


def test_only_what_changed_is_compiled_again(tmp_path: Path, fake_worker: list[str]) -> None:
    checkpoints, out = save_checkpoints(tmp_path / "c"), tmp_path / "b"

    def build(*options: str) -> str:
        command = ["build", *map(str, checkpoints), "--tree", "small_9", "--out", str(out), *options]
        result = CliRunner().invoke(cli, command, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        manifest = read_manifest(out)
        check_files(out, manifest, thorough=True)
        assert all(plan_damage(out, plan, thorough=True) is None for plan in manifest.plans)
        named = {plan.file for plan in manifest.plans}
        assert {str(path.relative_to(out)) for path in out.rglob("*.plan")} == named
        return result.output

    both = ("--target", "rtx:sm89", "--target", "rtx:sm120", "--one-plan")
    assert "5 TensorRT engines compiled" in build(*both) and len(fake_worker) == 5
    assert "all 5 TensorRT engines are up to date" in build(*both) and len(fake_worker) == 5
    # Another head: the target's graph changes, and so does no other.
    assert "1 TensorRT engines compiled, 4 kept" in build("--max-top-k", "9", *both)
    assert fake_worker[5:] == ["rtx:sm89 rtx:sm120 target"]
    # Without targets nothing is compiled; what still fits stays, what does not goes.
    build("--max-top-k", "9")
    assert len(read_manifest(out).plans) == 10
    build("--max-top-k", "8")
    assert {plan.engine for plan in read_manifest(out).plans} == {"embed", "condition", "decode", "draft.small_9"}
    build("--max-top-k", "8", "--precision", "fp16")
    assert read_manifest(out).plans == [] and len(fake_worker) == 6


@pytest.mark.usefixtures("fake_worker")
def test_what_a_target_cannot_take_is_told_before_the_export(tmp_path: Path) -> None:
    command = ["build", "llamagen-c2i-3b-384", "--dummy-weights", "--target", "rtx:sm89", "--out", str(tmp_path / "b")]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 2 and "no attention kernel for head_dim 100" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("fake_worker")
@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_failure_while_compiling_leaves_the_old_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    command = ["build", *map(str, save_checkpoints(tmp_path / "c")), "--tree", "small_9", "--target", "rtx:sm89",
               "--out", str(tmp_path / "b")]  # fmt: skip
    assert CliRunner().invoke(cli, command).exit_code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "b").rglob("*") if path.is_file()}

    def fails(*_: object) -> None:
        raise failure

    monkeypatch.setattr(compile, "_worker", fails)
    result = CliRunner().invoke(cli, [*command, "--precision", "fp16"])
    assert result.exit_code == (1 if isinstance(failure, KeyboardInterrupt) else 2)
    assert {path: path.read_bytes() for path in (tmp_path / "b").rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "c"]
    monkeypatch.setattr(compile, "installed_version", lambda _: None)
    result = CliRunner().invoke(cli, [*command, "--precision", "fp16"])
    assert result.exit_code == 2 and "tensorrt-rtx is not installed" in result.stderr
