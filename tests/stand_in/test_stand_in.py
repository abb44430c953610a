"""`ort-cuda` without a GPU: the real onnxruntime-gpu on a stand-in for CUDA's libraries (stand_in.h).

This shows which nodes CUDA takes, what is called in which order, addresses and copies. It shows nothing about numbers,
speed, or what a real driver refuses: kernels do nothing here. The tests of the contract that compute are left out.

onnxruntime-gpu is a quarter of a gigabyte and cannot live beside onnxruntime. So it is installed into a folder of its
own, which CASCADE_STAND_IN names, and the modules `inside_*.py` run with it in a process of their own: `make
test-stand-in` does both.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from stand_in.build import build as build_libraries
from support import FIXTURE, build

HERE, ROOT = Path(__file__).parent, Path(__file__).parent.parent.parent
FOLDER = os.environ.get("CASCADE_STAND_IN")
TREES = ("mc_sim_7b_63", "eagle2_60", "chain_2")

pytestmark = [
    pytest.mark.stand_in,
    pytest.mark.skipif(FOLDER is None, reason="CASCADE_STAND_IN names no folder of packages: see make test-stand-in"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc to build the stand-in with"),
]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of a process that finds the stand-in's libraries, and onnxruntime-gpu in the place of onnxruntime."""
    libraries = tmp_path_factory.mktemp("libraries")
    build_libraries(libraries)
    path = os.pathsep.join(filter(None, (FOLDER, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "LD_LIBRARY_PATH": str(libraries), "PYTHONPATH": path}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The fixture's bundle in every precision, and the demo's."""
    folder = tmp_path_factory.mktemp("bundles")
    trees = [part for name in TREES for part in ("--tree", name)]
    files = {"--checkpoint": "gpt_t2i.pt", "--vq": "vq.pt", "--drafter": "drafter.pt", "--config": "config.json"}
    given = [part for option, name in files.items() for part in (option, FIXTURE / name)]
    for precision in ("fp32", "fp16", "bf16"):
        build("llamagen", *given, "--batch", 3, *trees, "--precision", precision, "--out", folder / precision)
    build("emoji", "--out", folder / "emoji")
    return os.pathsep.join(str(folder / name) for name in ("fp32", "fp16", "bf16", "emoji"))


def run(module: str, environment: dict[str, str], *options: str) -> None:
    """The tests of a module in a process of their own, all of which must pass."""
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", *options]
    place = ["-c", ROOT / "pyproject.toml", HERE / module]
    result = subprocess.run([*command, *map(str, place)], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{result.stdout[-8000:]}\n{result.stderr[-2000:]}"
    assert " passed" in result.stdout


def test_the_contract_where_it_needs_no_numbers(environment: dict[str, str]) -> None:
    run("inside_contract.py", environment, "-m", "not computes")


def test_memory(environment: dict[str, str]) -> None:
    run("inside_memory.py", environment)


def test_graphs_and_rounds(environment: dict[str, str], bundles: str) -> None:
    run("inside_rounds.py", {**environment, "CASCADE_STAND_IN_BUNDLES": bundles})


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ to compile the kernels for the CPU")
def test_rounds_on_the_device(environment: dict[str, str], bundles: str, tmp_path: Path) -> None:
    given = {"CASCADE_STAND_IN_BUNDLES": bundles, "CASCADE_STAND_IN_FOLDER": str(tmp_path)}
    run("inside_device_rounds.py", {**environment, **given})
