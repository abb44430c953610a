"""A build that is killed: its build process ends with it, and the next build clears what it left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest_trt import TARGET, require_rtx

from cascade_trt.engines.publish import amend_bundle
from cascade_trt.runtime.bundle import read_manifest
from cascade_trt.runtime.files import check_files

PARENT = """
import os, subprocess, sys
child = "import sys, time; from cascade_trt.engines.tensorrt.worker import end_with; end_with(int(sys.argv[1]));" \\
        "print('ready', flush=True); time.sleep(60)"
process = subprocess.Popen([sys.executable, "-c", child, str(os.getpid() + int(sys.argv[1]))], stdout=subprocess.PIPE)
print(process.pid, process.stdout.readline().decode().strip(), flush=True)
process.wait()
"""


def runs(process: int) -> bool:
    """Whether a process is there, and not only waits to be noticed."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except FileNotFoundError:
        return False


def wait_until(done, seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.01)
    return done()


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_a_process_that_ends_with_its_parent() -> None:
    """However the parent ends, and where it ended before it was asked for."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT, "0"], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child, ready = parent.stdout.readline().split()
    assert ready == "ready"
    assert runs(int(child))
    parent.kill()
    parent.communicate()
    assert wait_until(lambda: not runs(int(child)), 5)
    late = subprocess.run([sys.executable, "-c", PARENT, "1"], capture_output=True, text=True, timeout=30, check=True)
    assert "ready" not in late.stdout


def children(process: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except FileNotFoundError:
        return []


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_the_build_process_ends_with_a_killed_compile(plain_bundle: Path, tmp_path: Path) -> None:
    require_rtx()
    bundle = Path(shutil.copytree(plain_bundle, tmp_path / "bundle"))
    before = (bundle / "manifest.json").read_bytes()
    command = [sys.executable, "-m", "cascade_trt", "compile", bundle, "--target", TARGET]
    parent = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert wait_until(lambda: bool(children(parent.pid)))
    (worker,) = children(parent.pid)
    assert wait_until(lambda: any(tmp_path.glob(".bundle.*.part/tensorrt-rtx/*/*.plan")))  # it is at work
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert wait_until(lambda: not runs(worker), 5)
    assert any(tmp_path.glob(".bundle.*.part"))
    check_files(bundle, read_manifest(bundle), thorough=True)
    assert (bundle / "manifest.json").read_bytes() == before
    amend_bundle(bundle, lambda _, manifest: manifest)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
