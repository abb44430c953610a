"""Commands in sentences, as this user can type them: without an activated environment they are not on the path."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import click

_NAME = "cascade-trt"


def program() -> str:
    """What starts this program in a shell: `cascade-trt` where that is on the path, else its place."""
    asked, beside = Path(sys.argv[0]), Path(sys.executable).parent / _NAME
    for script in (asked, beside):
        if script.stem == _NAME and script.is_file():
            return _typed(script, _NAME)
    return f"{python()} -m cascade_trt"


def python() -> str:
    """What starts this program's Python in a shell."""
    return _typed(Path(sys.executable), "python")


def usable(sentence: str) -> str:
    """The sentence with the commands of cascade-trt and `pip install` as this user has to type them."""
    context = click.get_current_context(silent=True)
    group = None if context is None else context.find_root().command
    words = "|".join(map(re.escape, getattr(group, "commands", ())))
    sentence = re.sub(rf"(?<![\w./-]){_NAME} (?=({words})\b)", lambda _: f"{program()} ", sentence)
    return re.sub(r"(?<!-m )(?<![\w./-])pip install\b", lambda _: f"{python()} -m pip install", sentence)


def _typed(file: Path, name: str) -> str:
    """`name` where the shell would find this file under it, else the file's path, the shorter of the two forms."""
    place = os.path.abspath(file)  # links are kept: those of an environment decide what is imported
    found = shutil.which(name)
    if found is not None and os.path.abspath(found) == place:
        return name
    try:
        below = os.path.relpath(place)
    except FileNotFoundError:  # the working directory is gone
        return shlex.quote(place)
    if below.startswith(os.pardir):
        return shlex.quote(place)
    return shlex.quote(below if os.sep in below else os.path.join(os.curdir, below))
