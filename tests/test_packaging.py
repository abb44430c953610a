"""What is installed is what the tree holds: the wheel's files, its metadata, and commands that run from it alone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from email.message import Message
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from PIL import Image

import cascade_trt
from cascade_trt.runtime.backends.ort import LEAST_VERSION

ROOT = Path(cascade_trt.__file__).parent
PACKAGE = "cascade_trt"
PIP = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
MODULES = {"__init__.py", "__main__.py", "cli.py", "py.typed"}  # of the top level
NEW = "runtime/fresh/__init__.py", "runtime/fresh/kernels/walk.cu", "export/families/fresh/__init__.py"
LEFT = "build/lib/cascade_trt/gone.py", "build/emoji/manifest.json", "outputs/a.png", "runtime/__pycache__/gone.pyc"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout with packages that nobody listed, and with what builds and drawings leave behind."""
    folder = tmp_path_factory.mktemp("packaging") / "tree"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".*", "build", "outputs*", "__pycache__", "*.egg-info"))
    for name in NEW + LEFT:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    return folder


@pytest.fixture(scope="module")
def wheel(tree: Path) -> Path:
    subprocess.run([*PIP, "--wheel-dir", tree.parent / "wheel", tree], check=True)
    (file,) = (tree.parent / "wheel").iterdir()
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """A folder that holds the wheel's files, as one of site-packages does."""
    folder = wheel.parent.parent / "site"
    with ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def content(wheel: Path) -> set[str]:
    """The package's files in a wheel, by their place in the tree."""
    names = ZipFile(wheel).namelist()
    return {name.removeprefix(f"{PACKAGE}/") for name in names if name.startswith(f"{PACKAGE}/")}


def metadata(wheel: Path) -> Message:
    archive = ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(archive.read(name).decode())


def test_the_wheel_holds_the_packages_and_nothing_else(tree: Path, wheel: Path) -> None:
    packages = [init.parent for init in tree.glob("*/__init__.py") if init.parent.name != "tests"]
    expected = {path.relative_to(tree).as_posix() for package in packages for path in package.rglob("*")
                if path.is_file() and path.suffix != ".pyc"}  # fmt: skip
    assert content(wheel) == expected | MODULES
    assert expected.issuperset(NEW)
    others = [name for name in ZipFile(wheel).namelist() if not name.startswith(f"{PACKAGE}/")]
    assert all(re.match(rf"{PACKAGE}-[\d.]+\.dist-info/", name) for name in others)


def test_what_the_demo_and_the_judge_need_is_in_it(wheel: Path) -> None:
    needed = ["target.safetensors", "drafter.safetensors", "vq.safetensors", "states.npz", "text/tokenizer.json",
              "judge.safetensors", "judge.npz", "prompts.jsonl"]  # fmt: skip
    assert content(wheel).issuperset(f"examples/emoji/weights/{name}" for name in needed)


def test_the_source_distribution_makes_the_same_wheel(tree: Path, wheel: Path) -> None:
    script = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", script, tree.parent / "source"], cwd=tree, check=True, capture_output=True)
    (source,) = (tree.parent / "source").iterdir()
    subprocess.run([*PIP, "--wheel-dir", tree.parent / "again", source], check=True)
    (again,) = (tree.parent / "again").iterdir()
    assert content(again) == content(wheel)


def test_the_metadata(wheel: Path) -> None:
    found = metadata(wheel)
    assert found["Version"] == cascade_trt.__version__
    assert found["License-Expression"] == "Apache-2.0"
    archive = ZipFile(wheel)
    (licence,) = (name for name in archive.namelist() if name.endswith("/licenses/LICENSE"))
    assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(found.get_all("Provides-Extra", [])) == set(extras)


def test_the_two_onnx_runtimes_are_extras_that_are_new_enough() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    least = tuple(map(int, LEAST_VERSION.split(".")))
    for extra, name in (("cpu", "onnxruntime"), ("cuda", "onnxruntime-gpu")):
        (version,) = [one.split(">=")[1] for one in extras[extra] if one.split(">=")[0] == name]
        assert tuple(map(int, version.split("."))) >= least


def test_extras_that_sentences_name_can_be_installed_without_an_index() -> None:
    """pip reads the extras of the package that is installed, from a checkout or a wheel. With --upgrade or
    --force-reinstall it would look for the package itself, which no index has."""
    left_out = ("build", "tests", ".venv")
    sources = [path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0] not in left_out]
    text = "\n".join(re.sub(r'"\s*f?"', "", path.read_text()) for path in sources)
    commands = re.findall(r"pip install ([^`(]*)'cascade-trt\[([^\]]+)\]'", text)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert len(commands) > 10
    assert {options for options, _ in commands} == {""}
    assert {name for _, names in commands if "{" not in names for name in names.split(",")} <= set(extras)
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "--no-deps"]
    for extra in extras:
        subprocess.run([*pip, f"cascade-trt[{extra}]"], check=True, capture_output=True)


def run_installed(installed: Path, folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """`python -m cascade_trt` in `folder`, outside the checkout, with the wheel's files before the checkout's."""
    folder.mkdir(exist_ok=True)
    homes = {"HOME": str(folder / "home"), "XDG_CACHE_HOME": str(folder / "cache")}
    environment = os.environ | homes | {"PYTHONPATH": str(installed)}
    where = [sys.executable, "-c", f"import {PACKAGE}; print({PACKAGE}.__file__)"]
    used = subprocess.run(where, cwd=folder, env=environment, text=True, capture_output=True, check=True).stdout
    assert Path(used.strip()).is_relative_to(installed)
    command = [sys.executable, "-m", PACKAGE, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True)


def test_help_and_version(installed: Path, tmp_path: Path) -> None:
    result = run_installed(installed, tmp_path, "--help")
    assert result.returncode == 0 and "generate" in result.stdout
    assert cascade_trt.__version__ in run_installed(installed, tmp_path, "--version").stdout


def test_an_image_of_a_bundle(installed: Path, text_bundle: Path, tmp_path: Path) -> None:
    result = run_installed(installed, tmp_path, "generate", "a red apple", "--bundle", text_bundle, "--threads", 1)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / result.stdout.strip()).is_file()


@pytest.mark.slow
def test_the_demo_where_there_is_no_bundle(installed: Path, tmp_path: Path) -> None:
    """Its bundle is built once, in the user's cache, and draws an apple."""
    first = run_installed(installed, tmp_path, "generate", "a red apple", "--out", "apple.png")
    assert first.returncode == 0, first.stderr
    assert "is built now, once" in first.stderr and str(tmp_path / "cache" / "cascade-trt") in first.stderr
    assert first.stdout == "apple.png\n"
    pixels = np.asarray(Image.open(tmp_path / "apple.png").convert("RGB")).astype(int)
    red, green, blue = pixels[20:50, 16:48].reshape(-1, 3).mean(0)
    assert red > 1.3 * max(green, blue)
    second = run_installed(installed, tmp_path, "generate", "a red apple", "--out", "again.png")
    assert second.returncode == 0 and "is built now" not in second.stderr
    assert np.array_equal(np.asarray(Image.open(tmp_path / "again.png").convert("RGB")), pixels)
    (bundle,) = (tmp_path / "cache" / "cascade-trt").iterdir()  # neither a lock nor a stage is left
    assert bundle.name.startswith(f"emoji-{cascade_trt.__version__}-")
