"""`build --target` over an older bundle: engines that stay the same are taken over, and failures change nothing."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from support import save_checkpoints

from cascade_trt.cli import cli
from cascade_trt.engines import compile
from cascade_trt.engines.cache import plan_damage
from cascade_trt.engines.publish import amend_bundle
from cascade_trt.export.build import BuildOptions, build_bundle
from cascade_trt.export.open import open_parts
from cascade_trt.export.request import BuildRequest
from cascade_trt.runtime.backends.kernels.info import KernelInfo, kernel_source
from cascade_trt.runtime.bundle import Manifest, read_manifest
from cascade_trt.runtime.files import check_files
from cascade_trt.runtime.tree import get_tree


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


def test_other_trees_drop_only_what_they_are_called_with(tmp_path: Path, fake_worker: list[str]) -> None:
    """And the order of trees decides nothing."""
    checkpoints, out = save_checkpoints(tmp_path / "c"), tmp_path / "b"

    def build(*options: str) -> str:
        command = ["build", *map(str, checkpoints), "--out", str(out), *options]
        result = CliRunner().invoke(cli, command, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return " ".join(result.output.split())

    def held() -> set[str]:
        return {plan.engine for plan in read_manifest(out).plans}

    build("--tree", "small_9", "--tree", "mixed_8", "--target", "rtx:sm89")
    assert len(held()) == 6
    said = build("--tree", "small_9", "--tree", "mixed_8", "--max-nodes", "33")
    assert "dropped" not in said and len(held()) == 6
    said = build("--tree", "mixed_8", "--tree", "small_9", "--target", "rtx:sm89")
    assert "all 6 TensorRT engines are up to date" in said and len(fake_worker) == 6
    again = f"compile {out} --target rtx:sm89`)"
    shapes = "(the new bundle calls them with other shapes, those of its trees and its batch: run `"
    said = build("--tree", "small_9", "--tree", "mixed_12")
    assert held() == {"condition", "decode"}
    assert f"for rtx:sm89 of target, embed, draft.small_9, draft.chain_1 {shapes}" in said and said.count(again) == 1
    build("--tree", "small_9", "--target", "rtx:sm89")
    said = build("--tree", "jacobi_8")
    assert held() == {"condition", "decode"} and said.count(again) == 1
    assert f"of target, embed {shapes}" in said
    assert "of draft.small_9 (no tree of the new bundle needs them)" in said


def test_a_build_without_targets_keeps_what_was_compiled(tmp_path: Path, fake_worker: list[str]) -> None:
    """Also one that is not of the command line, which compiles nothing."""
    checkpoints, out = save_checkpoints(tmp_path / "c"), tmp_path / "b"
    command = ["build", *map(str, checkpoints), "--tree", "small_9", "--target", "rtx:sm89", "--out", str(out)]
    assert CliRunner().invoke(cli, command, catch_exceptions=False).exit_code == 0
    plans = read_manifest(out).plans
    digest = hashlib.sha256(b"code").hexdigest()
    kernels = KernelInfo("kernels/a.cubin", "sm90", "nvrtc 13.5", kernel_source(), 4, digest)

    def add(stage: Path, manifest: Manifest) -> Manifest:
        (stage / "kernels").mkdir()
        (stage / kernels.file).write_bytes(b"code")
        return replace(manifest, kernels=[kernels])

    amend_bundle(out, add)
    given = {str(name)[2:]: path for name, path in zip(checkpoints[1::2], checkpoints[2::2], strict=True)}
    parts, sampling = open_parts(BuildRequest("llamagen", **given))  # type: ignore[arg-type]
    told: list[str] = []

    def build_again() -> Manifest:
        options = BuildOptions(out, (get_tree("small_9"),), sampling)
        return build_bundle(parts, options, lambda *_: None, tell=told.append)

    manifest = build_again()
    assert (manifest.plans, manifest.kernels, told, len(fake_worker)) == (plans, [kernels], [], 5)
    check_files(out, manifest, thorough=True)
    assert all(plan_damage(out, plan, thorough=True) is None for plan in manifest.plans)
    (out / plans[0].file).write_bytes(b"short")
    (out / kernels.file).write_bytes(b"edoc")
    manifest = build_again()
    assert manifest.plans == plans[1:] and manifest.kernels == []
    first, second = told
    assert f"of {plans[0].engine} (a file has 5 bytes instead of {plans[0].bytes}: run `" in first
    assert "the kernels for sm90 (their file is missing or has changed: run `" in second


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


def test_files_of_the_user_stay_whatever_they_are_called(tmp_path: Path, fake_worker: list[str]) -> None:
    """Also where engines are compiled; one whose name the new bundle needs is told."""
    checkpoints, out = save_checkpoints(tmp_path / "c"), tmp_path / "b"
    command = ["build", *map(str, checkpoints), "--out", str(out)]

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return " ".join(result.output.split())

    run(*command, "--tree", "small_9", "--target", "rtx:sm89")
    own = {"house.plan", "notes.layers.json", "below/tensorrt-rtx/sm89/x.plan"}
    for name in own:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine")
    (out / "draft.small_6.onnx").write_text("mine")
    said = run(*command, "--tree", "small_9", "--tree", "small_6", "--target", "rtx:sm89")
    assert all(name in said.partition("kept of the bundle before: ")[2] for name in own)
    assert "dropped of the bundle before: draft.small_6.onnx (the new bundle has a file of that name)" in said
    run("compile", str(out), "--target", "rtx:sm120")
    assert all((out / name).read_text() == "mine" for name in own) and len(fake_worker) > 10
    (out / "tensorrt-rtx/sm86").mkdir()
    (out / "tensorrt-rtx/sm86/target.plan").write_text("mine")
    result = CliRunner().invoke(cli, ["compile", str(out), "--target", "rtx:sm86"])
    assert result.exit_code == 2 and "sm86/target.plan was not written by it: move it away" in result.output
    assert (out / "tensorrt-rtx/sm86/target.plan").read_text() == "mine"
    (out / "tensorrt-rtx").rename(tmp_path / "away")
    (out / "tensorrt-rtx").write_text("mine")
    result = CliRunner().invoke(cli, ["compile", str(out), "--target", "rtx:sm89"])
    assert result.exit_code == 2 and "has a file in the place of its folder tensorrt-rtx/sm89" in result.output


def test_one_plan_of_several_gpus_stays_for_those_that_have_no_other(tmp_path: Path, fake_worker: list[str]) -> None:
    checkpoints, out = save_checkpoints(tmp_path / "c"), tmp_path / "b"
    command = ["build", *map(str, checkpoints), "--tree", "small_9", "--out", str(out)]
    both = ("--target", "rtx:sm89", "--target", "rtx:sm120", "--one-plan")
    for options in (both, ("--target", "rtx:sm89"), ()):
        result = CliRunner().invoke(cli, [*command, *options], catch_exceptions=False)
        assert result.exit_code == 0 and "dropped" not in result.output, result.output
    assert sorted(plan.target for plan in read_manifest(out).plans) == ["rtx:sm120"] * 5 + ["rtx:sm89"] * 5
    assert len(fake_worker) == 10
