"""`make`: what a user writes reaches the command as it was written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMMAND = f"""#!{sys.executable}
import json, pathlib, sys
with open({{log!r}}, "a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project that is set up, with a command that writes down how it was called."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    script = tmp_path / ".venv" / "bin" / "cascade-trt"
    script.write_text(COMMAND.format(log=str(tmp_path / "log")))
    script.chmod(0o755)
    for stamp in (".venv/.base", ".venv/.export"):
        (tmp_path / stamp).touch()
    (tmp_path / "build" / "emoji").mkdir(parents=True)
    (tmp_path / "build" / "emoji" / "manifest.json").touch()
    return tmp_path


def make(project: Path, *arguments: str) -> list[str]:
    """The newest call of the command."""
    result = subprocess.run(["make", *arguments], cwd=project, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads((project / "log").read_text().splitlines()[-1])


@pytest.mark.parametrize(
    "prompt",
    ["a red apple", 'a `date` "cup" $HOME', "it's $(touch made) $$ ${HOME}", "a \\ b; touch made & true | #1, 100 %",
     "--help", "$(shell touch made)", "яблоко", "two\nlines", "~ * ? [a] <b> !"],
)  # fmt: skip
def test_the_prompt_as_written(project: Path, prompt: str) -> None:
    assert make(project, "generate", f"PROMPT={prompt}")[-2:] == ["--", prompt]
    assert not (project / "made").exists()


def test_rule_seed_and_bundle(project: Path) -> None:
    plain = make(project, "generate", "PROMPT=x")
    assert plain == ["generate", "--seed", "0", "--bundle", "build/emoji", "--", "x"]
    rule = "cascade:tau_pos=0.9,tau_seq=off"
    called = make(project, "generate", "PROMPT=x", f"RULE={rule}", "SEED=7", "OUT=an 'odd' place")
    assert called == ["generate", "--seed", "7", "--bundle", "an 'odd' place", "--rule", rule, "--", "x"]
    assert make(project, "generate", "PROMPT=x", "RULE=`date` $HOME")[-4:] == ["--rule", "`date` $HOME", "--", "x"]


def test_paths_of_a_build(project: Path) -> None:
    called = make(project, "engines", "MODEL=llamagen", "CKPT=it's here/a `date`.pt", "VQ=v, q.pt", "TREE=a b")
    assert called[called.index("--checkpoint") + 1] == "it's here/a `date`.pt"
    assert called[called.index("--vq") + 1] == "v, q.pt"
    assert [called[i + 1] for i, word in enumerate(called) if word == "--tree"] == ["a", "b"]
