"""Adding engines to a bundle: what is kept, what is built again, and that failures leave the bundle alone."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest_trt import TARGET, TARGETS, quiet

from cascade_trt import __version__
from cascade_trt.cli import cli
from cascade_trt.engines import cache, compile
from cascade_trt.engines.compile import add_plans
from cascade_trt.engines.publish import staged_bundle
from cascade_trt.engines.tensorrt.attention import AttentionForm
from cascade_trt.engines.tensorrt.build import builder_options
from cascade_trt.engines.tensorrt.target import parse_target
from cascade_trt.export.support import backend_support
from cascade_trt.runtime.bundle import MANIFEST, read_manifest
from cascade_trt.runtime.errors import CascadeError
from cascade_trt.runtime.files import check_files

SM86, SM89 = (parse_target(f"rtx:sm{number}") for number in (86, 89))
OPTIONS = builder_options(AttentionForm.DOUBLED, "fixed_nodes", 9)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def bundle(plain_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain_bundle, tmp_path / "bundle"))


def test_what_is_up_to_date_is_kept(bundle: Path, fake_worker: list[str]) -> None:
    first = add_plans(bundle, [SM89], quiet)
    assert (first.built, first.kept) == (5, 0)
    before, start = everything(bundle), time.perf_counter()
    again = add_plans(bundle, [SM89], quiet)
    assert (again.built, again.kept) == (0, 5) and time.perf_counter() - start < 1
    assert everything(bundle) == before and len(fake_worker) == 5
    assert add_plans(bundle, [SM89, SM86], quiet).built == 5
    assert {plan.target for plan in read_manifest(bundle).plans} == {"rtx:sm89", "rtx:sm86"}
    assert add_plans(bundle, [SM89, SM86], quiet, plain_attention=True).built == 4  # targets and drafters
    check_files(bundle, read_manifest(bundle), thorough=True)


def test_targets_share_one_plan(bundle: Path, fake_worker: list[str]) -> None:
    """One copy of the weights for several GPUs; what nobody names any more is removed."""
    assert add_plans(bundle, [SM89], quiet).built == 5
    added = add_plans(bundle, [SM89, SM86], quiet, one_plan=True)
    assert (added.built, added.kept) == (5, 0)
    assert "rtx:sm86 rtx:sm89 target" in fake_worker
    files = {(plan.target, plan.engine): plan.file for plan in added.manifest.plans}
    assert files["rtx:sm86", "target"] == files["rtx:sm89", "target"] == "tensorrt-rtx/sm86-sm89/target.plan"
    assert {str(path.relative_to(bundle)) for path in bundle.rglob("*.plan")} == set(files.values())
    assert not (bundle / "tensorrt-rtx" / "sm89").exists()
    assert add_plans(bundle, [SM89, SM86], quiet, one_plan=True).built == 0
    (bundle / files["rtx:sm89", "embed"]).unlink()
    assert add_plans(bundle, [SM89, SM86], quiet, one_plan=True).built == 1
    # Its layers suit the oldest GPU, so a plan for one GPU alone is another plan.
    assert add_plans(bundle, [SM89], quiet).built == 5
    assert {path.parent.name for path in bundle.rglob("*.plan")} == {"sm86-sm89", "sm89"}


def test_ampere_gets_one_number_of_nodes(bundle: Path, fake_worker: list[str]) -> None:
    """The most of a call, in every profile of the target and where users of the manifest look; drafters, of pairs."""
    added = add_plans(bundle, [SM89, SM86], quiet)
    plans = {plan.target: plan for plan in added.manifest.plans if plan.engine == "target"}
    assert plans["rtx:sm86"].fixed_nodes == 33
    assert plans["rtx:sm86"].profiles == [{"P": 1, "R": 2, "G": 2, "N": 33, "L": 33}]
    assert plans["rtx:sm89"].fixed_nodes is None and len(plans["rtx:sm89"].profiles) == 4
    assert {plan.fixed_nodes for plan in added.manifest.plans if plan.engine != "target"} == {None}
    drafters = {plan.target: plan for plan in added.manifest.plans if plan.engine == "draft.small_9"}
    assert drafters["rtx:sm86"].fixed_pairs == 5 and drafters["rtx:sm89"].fixed_pairs is None
    assert [profile["M"] for profile in drafters["rtx:sm86"].profiles] == [5, 5]
    assert {plan.fixed_pairs for plan in added.manifest.plans if not plan.engine.startswith("draft.")} == {None}
    shared = add_plans(bundle, [SM89, SM86], quiet, one_plan=True).manifest.plans
    assert {plan.fixed_nodes for plan in shared if plan.engine == "target"} == {33}
    plain = add_plans(bundle, [SM86], quiet, plain_attention=True).manifest.plans
    assert {len(plan.profiles) for plan in plain if (plan.target, plan.engine) == ("rtx:sm86", "target")} == {4}
    assert fake_worker.count("rtx:sm86 target") == 2 and fake_worker.count("rtx:sm86 rtx:sm89 target") == 1


def test_a_large_plan_is_hashed_only_when_it_was_touched(
    bundle: Path, fake_worker: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_HASHED_ALWAYS", 0)
    plan = add_plans(bundle, [SM89], quiet).manifest.plans[0]
    path, reads = bundle / plan.file, []
    real = hashlib.file_digest
    monkeypatch.setattr(cache.hashlib, "file_digest", lambda *given: (reads.append(given), real(*given))[1])
    assert add_plans(bundle, [SM89], quiet).built == 0 and not reads
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(0, (bundle / MANIFEST).stat().st_mtime_ns + 1))
    assert add_plans(bundle, [SM89], quiet).built == 1 and reads
    assert len(fake_worker) == 6


def test_a_damaged_or_missing_plan_is_built_again(bundle: Path, fake_worker: list[str]) -> None:
    plans = {plan.engine: plan for plan in add_plans(bundle, [SM89], quiet).manifest.plans}
    (bundle / plans["decode"].file).write_bytes(b"short")
    (bundle / plans["embed"].file).unlink()
    path = bundle / plans["target"].file  # of the same size, with another byte
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    added = add_plans(bundle, [SM89], quiet)
    assert (added.built, added.kept) == (3, 2)
    assert fake_worker[-3:] == ["rtx:sm89 target", "rtx:sm89 embed", "rtx:sm89 decode"]
    assert all(cache.plan_damage(bundle, plan, thorough=True) is None for plan in added.manifest.plans)


def test_the_key_covers_everything_that_goes_in(plain_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = read_manifest(plain_bundle)

    def key(m: object = manifest, target: object = SM89, version: str = "1.7.1.116", sm: str = "8.9",
            options: dict[str, Any] = OPTIONS) -> str:  # fmt: skip
        return cache.plan_key(m, "target", target, version, sm, options)  # type: ignore[arg-type]

    base = key()
    assert key() == base
    assert key(replace(manifest, trees=[replace(manifest.trees[0], name="renamed")])) == base
    files = dict(manifest.files)
    files["target.data"] = replace(files["target.data"], sha256="0" * 64)
    tree = replace(manifest.trees[0], name="other", parents=[-1, 0, 0], sources=[])
    engines = {name: replace(info, precision="bf16") for name, info in manifest.engines.items()}
    changed = [
        key(replace(manifest, files=files)), key(replace(manifest, trees=[tree])),
        key(replace(manifest, engines=engines)), key(replace(manifest, batch=2)),
        key(target=parse_target("tensorrt")), key(version="1.7.1.117"), key(sm="8.6"), key(sm="8.6+8.9"),
        key(options={**OPTIONS, "tf32": True}),
        key(options=builder_options(AttentionForm.PLAIN, "fixed_nodes", 9)),
        key(options=builder_options(AttentionForm.NODES, "fixed_nodes", 9)),
        key(options=builder_options(AttentionForm.NODES, "fixed_nodes", 8)),
    ]  # fmt: skip
    monkeypatch.setattr(cache, "this_platform", lambda: "win32-amd64")
    changed.append(key())
    assert base not in changed and len(set(changed)) == len(changed)


def fails(bundle: Path, match: str, target: str = TARGET) -> None:
    """The command ends with one sentence and exit code 2, and the bundle is as it was."""
    before = everything(bundle)
    result = CliRunner().invoke(cli, ["compile", str(bundle), "--target", target], catch_exceptions=False)
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.strip().splitlines() if not line.endswith(" so far")]  # a slow machine
    assert len(lines) == 1 and match in lines[0], result.stderr
    assert everything(bundle) == before
    assert [path for path in bundle.parent.iterdir() if path.suffix == ".part"] == []


def test_more_logits_than_tensorrt_sorts(bundle: Path) -> None:
    """Told when the bundle is built, and again before anything is compiled."""
    assert backend_support(64, "fp16", 3840)["tensorrt-rtx"] == "yes"
    problem = backend_support(64, "fp16", 16384)["tensorrt-rtx"]
    assert "build it with --max-top-k 3840" in problem
    manifest = read_manifest(bundle)
    short = replace(manifest, backends={**manifest.backends, "tensorrt-rtx": problem})
    with pytest.raises(CascadeError, match="^tensorrt-rtx cannot take this bundle: it sorts at most 3840 logits"):
        compile._groups(short, [SM89], False)
    assert compile._groups(manifest, [SM89], False) == [(SM89,)]


def test_no_package(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile, "installed_version", lambda _: None)
    fails(bundle, "pip install 'cascade-trt[rtx]'`")


def test_a_full_disk(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/full answers every write with "no space left"; the real worker meets it."""
    from conftest_trt import require_rtx

    require_rtx()
    monkeypatch.setattr(compile, "plan_path", lambda *_: Path("/dev/full"))
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
    fails(bundle, "cannot write the engine (No space left on device): free space")


def test_a_full_disk_while_publishing(bundle: Path, fake_worker: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compile, "write_new", full)
    fails(bundle, "No space left on device")
    assert fake_worker


@pytest.mark.parametrize(
    ("code", "match"),
    [("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "most likely because memory ran out"),
     ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "TensorRT ended with SIGSEGV"),
     ("raise RuntimeError('odd')", "RuntimeError: odd"),
     ("print('{\"error\": \"a sentence.\"}')", "a sentence.")],
)  # fmt: skip
def test_a_build_process_that_dies(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, code: str, match: str
) -> None:
    real = subprocess.Popen
    monkeypatch.setattr(compile, "installed_version", lambda _: "1.7.1.116")
    monkeypatch.setattr(compile.subprocess, "Popen", lambda _, **how: real([sys.executable, "-c", code], **how))
    fails(bundle, match)


def test_two_builds_at_once_do_not_collide(bundle: Path, fake_worker: list[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        fails_locked_then_stops(bundle)
    assert fake_worker == []
    assert add_plans(bundle, [SM89], quiet).built == 5


def fails_locked_then_stops(bundle: Path) -> None:
    with staged_bundle(bundle):
        with pytest.raises(CascadeError, match="another build of"):
            add_plans(bundle, [SM89], quiet)
        raise KeyboardInterrupt


def test_ctrl_c_leaves_the_old_bundle(bundle: Path, tmp_path: Path) -> None:
    """A real Ctrl-C while the build process is inside TensorRT (here: asleep)."""
    before = everything(bundle)
    (tmp_path / "slow.py").write_text(
        "import subprocess, sys\n"
        "from cascade_trt.engines import compile\n"
        "real = subprocess.Popen\n"
        "sleep = [sys.executable, '-c', 'import time, signal; signal.signal(2, signal.SIG_IGN); time.sleep(60)']\n"
        "compile.subprocess.Popen = lambda _, **how: (real(sleep, **how), print('started', flush=True))[0]\n"
        "compile.installed_version = lambda _: '1.7.1.116'\n"
        "from cascade_trt.cli import main\n"
        f"sys.argv = ['cascade-trt', 'compile', {str(bundle)!r}, '--target', 'rtx:sm89']\n"
        "main()\n"
    )
    process = subprocess.Popen([sys.executable, tmp_path / "slow.py"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    os.kill(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130 and b"Interrupted" in stderr
    assert everything(bundle) == before
    assert [path.name for path in bundle.parent.iterdir() if path.suffix == ".part"] == []


def test_tensorrt_without_a_gpu_leaves_a_script(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile, "find_gpu", lambda: None)
    for version in (None, "11.4.0.106"):
        monkeypatch.setattr(compile, "installed_version", lambda _, version=version: version)
        result = CliRunner().invoke(cli, ["compile", str(bundle), "--target", "tensorrt"])
        assert result.exit_code == 2 and "build_on_target.sh" in result.stderr
        script = bundle / "build_on_target.sh"
        assert os.access(script, os.X_OK) and "cascade-trt compile --target tensorrt ." in script.read_text()
        assert subprocess.run(["sh", "-n", script], check=False).returncode == 0
    # On a machine without cascade-trt it says how to get it, and the package is on no index.
    told = subprocess.run(["/bin/sh", script], env={"PATH": ""}, capture_output=True, text=True, check=False)
    assert told.returncode == 2 and f"as the head of {script} says" in told.stderr and not told.stdout
    assert "pip install 'cascade-trt" not in script.read_text()
    assert f"pip install './cascade_trt-{__version__}-py3-none-any.whl[tensorrt]'" in script.read_text()
    check_files(bundle, read_manifest(bundle), thorough=True)


def test_unknown_target_and_no_target(bundle: Path) -> None:
    fails(bundle, "unknown target 'rtx:sm91'", "rtx:sm91")
    result = CliRunner().invoke(cli, ["compile", str(bundle)])
    assert result.exit_code == 2 and "--target rtx:sm89" in result.stderr
    for target in ("tensorrt", "cuda"):
        result = CliRunner().invoke(cli, ["compile", str(bundle), "--target", target, "--one-plan"])
        assert result.exit_code == 2 and "--one-plan is for targets of TensorRT-RTX" in result.stderr


def test_the_worker_records_time_and_memory(compiled_bundle: Path) -> None:
    manifest = read_manifest(compiled_bundle)
    assert {plan.engine for plan in manifest.plans} == set(manifest.engines)
    capabilities = {plan.target: plan.compute_capability for plan in manifest.plans}
    assert capabilities == dict(zip(TARGETS, ("8.6", "8.9", "12.0"), strict=True))
    for plan in manifest.plans:
        assert plan.seconds > 0 and plan.peak_memory > 50 << 20
        assert plan.backend_version.count(".") == 3 and plan.compute_capability in ("8.6", "8.9", "12.0")
        assert (compiled_bundle / plan.file).stat().st_size == plan.bytes
    assert (compiled_bundle / MANIFEST).is_file()


def test_a_worker_that_is_killed(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel does when memory has run out."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nkill -9 $$\n")
    python.chmod(0o755)
    monkeypatch.setattr(compile.sys, "executable", str(python))
    before = (bundle / "manifest.json").read_bytes()
    with pytest.raises(CascadeError, match=r"^the build for rtx:sm89 was killed, most likely because memory ran out"):
        add_plans(bundle, [SM89], quiet)
    assert (bundle / "manifest.json").read_bytes() == before
