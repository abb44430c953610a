"""Model families of other installed packages: a folder on the path with an entry point, as pip makes it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from synthetic import model as m
from synthetic.family import FAMILY, save_checkpoints

from cascade_trt.cli import cli
from cascade_trt.export.families import get_family, names, register
from cascade_trt.export.open import open_parts
from cascade_trt.export.request import BuildRequest
from cascade_trt.runtime.errors import CascadeError

TESTS = Path(__file__).parent


def install(folder: Path, package: str, entries: dict[str, str], **modules: str) -> Path:
    """A package with families by their entry points, installed in `folder`; returns that."""
    about = folder / f"{package.replace('-', '_')}-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    listed = "\n".join(f"{name} = {value}" for name, value in entries.items())
    (about / "entry_points.txt").write_text(f"[cascade_trt.families]\n{listed}\n")
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def run(*arguments: object, path: Path, where: Path, code: int = 0) -> str:
    """Our command in a process of its own, from another folder; what it says."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (path, TESTS)))}
    done = subprocess.run(
        [sys.executable, "-m", "cascade_trt", *map(str, arguments)], cwd=where, env=environment, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_an_installed_family_is_listed_built_and_drawn(tmp_path: Path) -> None:
    """Nobody calls `register`, and nothing of ours names it."""
    site = install(tmp_path / "site", "their-models", {"synthetic": "synthetic.family:FAMILY"})
    said = run("models", path=site, where=tmp_path)
    assert "their-models" in said and "from its checkpoint" in said and "janus-pro-7b" in said
    listed = json.loads(run("models", "--json", path=site, where=tmp_path))
    assert {"name": "synthetic", "family": "synthetic", "package": "their-models", "published": None} in listed
    files = save_checkpoints(tmp_path / "checkpoints")
    given = ("--checkpoint", files.checkpoint, "--vq", files.vq, "--drafter", files.drafter)
    run("build", "synthetic", *given, "--tree", "small_6", "--out", "bundle", path=site, where=tmp_path)
    assert json.loads((tmp_path / "bundle" / "manifest.json").read_text())["model"]["family"] == "synthetic"
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "features.npz", features=rng.normal(size=(m.PREFIX, m.CAPTION)).astype(np.float32))
    images = []
    for rule in ("ar", "exact"):
        how = ("--bundle", "bundle", "--features", "features.npz", "--rule", rule, "--out", f"{rule}.png")
        run("generate", *how, path=site, where=tmp_path)
        with Image.open(tmp_path / f"{rule}.png") as image:
            images.append(np.asarray(image))
    np.testing.assert_array_equal(*images)
    without = run("build", "synthetic", *given, path=tmp_path / "none", where=tmp_path, code=2)
    assert without.startswith("Error: unknown model 'synthetic'")


BROKEN = {
    "its module is not there": ("absent:FAMILY", "", "ModuleNotFoundError: No module named 'absent'"),
    "its module has no such name": ("theirs:FAMILY", "", "AttributeError: module 'theirs' has no attribute"),
    "its module raises": ("theirs:FAMILY", "raise RuntimeError('no\\nway')", "RuntimeError: no"),
    "its module does not parse": ("theirs:FAMILY", "def", "SyntaxError"),
    "its module exits": ("theirs:FAMILY", "import sys\nsys.exit(3)", "SystemExit: 3"),
    "it is something else": ("theirs:FAMILY", "FAMILY = 3", "promises a Family called 'mine', and brings int"),
    "it has another name": (
        "theirs:FAMILY", "from synthetic.family import FAMILY", "and brings a Family called 'synthetic'"
    ),
    "its entry is no place": ("- - -", "", "cannot be imported ("),
}  # fmt: skip


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [*map(str, arguments)], catch_exceptions=False)


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_plugin_is_one_sentence(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names family and package; nothing else suffers from it."""
    sys.modules.pop("theirs", None)  # that of another test
    value, module, said = BROKEN[kind]
    monkeypatch.syspath_prepend(str(install(tmp_path, "their-models", {"mine": value}, theirs=module)))
    built = invoke("build", "mine", "--checkpoint", tmp_path)
    assert built.exit_code == 2
    (sentence,) = built.stderr.splitlines()
    assert said in sentence and "mine" in sentence
    assert sentence.endswith("mend or uninstall their-models.")
    listed = invoke("models")
    assert listed.exit_code == 0 and "anole-7b" in listed.stdout
    assert listed.stderr.startswith("Warning: ") and listed.stderr.count("\n") == 1 and said in listed.stderr
    assert len(json.loads(invoke("models", "--json").stdout)) > 10
    assert invoke("build", "janus-pro", "--checkpoint", tmp_path / "none").stderr.count("\n") == 1
    assert "mine" not in invoke("build", "janus-pro", "--checkpoint", tmp_path / "none").stderr


FAMILY_THAT = """
import sys
from cascade_trt.export.families import Family

print("a banner")

def fails(*given):
    print("at work")
    {}

FAMILY = Family("mine", fails, frozenset({{"mine-b"}}), fails)
"""
FAILURES = {
    "raises": ("raise KeyError('blocks.0')", "KeyError: 'blocks.0'"),
    "needs another package": ("import absent_package", "ModuleNotFoundError: No module named 'absent_package'"),
    "exits": ("sys.exit(5)", "SystemExit: 5"),
}


@pytest.mark.parametrize("how", FAILURES)
def test_a_plugin_that_fails_at_work_is_one_sentence(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In `open` and in `dummy`. What it prints is no part of an answer; the traceback hangs on the error's cause."""
    sys.modules.pop("theirs", None)
    code, said = FAILURES[how]
    site = install(tmp_path / "site", "their-models", {"mine": "theirs:FAMILY"}, theirs=FAMILY_THAT.format(code))
    monkeypatch.syspath_prepend(str(site))
    for model, options in (("mine", ("--checkpoint", tmp_path)), ("mine-b", ("--dummy-weights",))):
        built = invoke("build", model, *options, "--out", tmp_path / "out")
        *printed, sentence = built.stderr.splitlines()
        assert (built.exit_code, built.stdout) == (2, "") and printed[-1] == "at work"
        assert sentence.startswith("Error: the model family mine of the package their-models cannot open this model (")
        assert said in sentence and sentence.endswith("mend or uninstall their-models.")
    with pytest.raises(CascadeError) as caught:
        open_parts(BuildRequest("mine", checkpoint=tmp_path))
    assert caught.value.__cause__ is not None
    sys.modules.pop("theirs")
    listed = invoke("models", "--json")
    assert listed.stderr == "a banner\n" and json.loads(listed.stdout)[-1]["name"] == "mine-b"


def test_what_a_plugin_refuses_itself_stays_as_it_said_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sys.modules.pop("theirs", None)
    code = "from cascade_trt import CascadeError; raise CascadeError('give another.')"
    site = install(tmp_path, "their-models", {"mine": "theirs:FAMILY"}, theirs=FAMILY_THAT.format(code))
    monkeypatch.syspath_prepend(str(site))
    with pytest.raises(CascadeError, match=r"^give another\.$"):
        open_parts(BuildRequest("mine", checkpoint=tmp_path))


def test_two_of_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("one", "two"):
        install(tmp_path, package, {"mine": "synthetic.family:FAMILY", "llamagen": "synthetic.family:FAMILY"})
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(CascadeError, match=r"two packages bring a model family mine \(one and two\): uninstall one"):
        get_family("mine")
    with pytest.raises(CascadeError, match="one and two brings a model family 'llamagen', which is the name of one"):
        get_family("llamagen")
    assert get_family("anole").name == "anole"


def test_what_is_registered_and_installed_is_one_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(install(tmp_path, "theirs", {"synthetic": "synthetic.family:FAMILY"})))
    register(FAMILY)
    assert get_family("synthetic") is FAMILY and names().count("synthetic") == 1


def test_a_plugin_is_imported_when_it_is_asked_for(tmp_path: Path) -> None:
    """Neither our import nor the list of names does it; and a plugin whose package lacks PyTorch says so."""
    site = install(tmp_path / "site", "their-models", {"mine": "theirs:FAMILY"}, theirs="import torch, nothing")
    code = (
        "import sys, cascade_trt\n"
        "from cascade_trt.export.families import names\n"
        "assert 'mine' in names()\n"
        "assert not {'theirs', 'torch', 'onnx'} & set(sys.modules)\n"
        "sys.modules['torch'] = None\n"
        "from cascade_trt.cli import main\n"
        "sys.argv = ['cascade-trt', 'models']\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(site)}, cwd=tmp_path, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("Warning: the model family mine of their-models needs torch: run `")
    assert "cascade-trt[export]" in done.stderr and "anole-7b" in done.stdout
