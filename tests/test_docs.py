"""What documents say that a machine can check: links, commands, options, rules, trees, files and tests by name."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path

import click
import numpy as np
import pytest

from cascade_trt.cli import cli
from cascade_trt.engines.bundle_kernels import split_targets
from cascade_trt.export.families import names
from cascade_trt.export.families.llamagen.presets import get_preset
from cascade_trt.runtime.errors import CascadeError
from cascade_trt.runtime.rules import RULE_NAMES, get_rule
from cascade_trt.runtime.rules.registry import PLAIN
from cascade_trt.runtime.rules.states import StateTable
from cascade_trt.runtime.tree import AUTO, get_tree

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "examples/**/*.md") for path in sorted(ROOT.glob(pattern))
]  # fmt: skip
LEFT_OPEN = re.compile(r"\.\.\.|\$|[A-Z]{4}")  # of a value: "...", a loop's variable, a name in capitals
MADE = ("build", "outputs")  # folders that commands write
ENDINGS = (".py", ".md", ".json", ".jsonl", ".toml", ".npz", ".npy", ".png", ".sh", ".safetensors")
TABLES = np.zeros((1, 1), np.int64), StateTable(np.ones((1, 1), np.float16), np.ones(1, np.float32))


@dataclass(frozen=True)
class Document:
    """A Markdown file in parts: `blocks` are lines of code (continued ones joined), `spans` what stands in backticks,
    `prose` the rest."""

    path: Path
    blocks: list[str]
    spans: list[str]
    prose: str


@cache
def read(name: str) -> Document:
    blocks, text, fenced = [], [], False
    for line in (ROOT / name).read_text().splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            blocks.append(line.strip())
        else:
            text.append(line)
    code = "\n".join(blocks).replace("\\\n", " ").splitlines()
    prose = "\n".join(text)
    spans = [re.sub(r"\s+", " ", span) for span in re.findall(r"`([^`]+)`", prose)]
    return Document(ROOT / name, code, spans, re.sub(r"`[^`]+`", "", prose))


documents = pytest.mark.parametrize("name", DOCUMENTS)


# links ----------------------------------------------------------------------------------------------------------
def anchors(path: Path) -> set[str]:
    """The names that GitHub gives a document's headings."""
    found: Counter[str] = Counter()
    slugs = set()
    for heading in re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        slugs.add(slug if not found[slug] else f"{slug}-{found[slug]}")
        found[slug] += 1
    return slugs


@documents
def test_links(name: str) -> None:
    document = read(name)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", document.prose):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        path = (document.path.parent / file).resolve() if file else document.path
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(link)
    assert broken == []


# commands -------------------------------------------------------------------------------------------------------
def shell(lines: Sequence[str], starts: tuple[str, ...]) -> Iterator[list[str]]:
    """The words of every command in `lines` that begins with one of `starts`, variables set before it put in."""
    known: dict[str, str] = {}
    for line in lines:
        if not re.search(r"\b(cascade[-_]trt|make|pytest)\b|^[A-Z]+=", line):
            continue
        for words in commands(line):
            while words and (given := re.fullmatch(r"([A-Za-z_]+)=(.*)", words[0])):
                known[given[1]] = put_in(given[2], known)
                words = words[1:]
            words = [put_in(word, known) for word in words if word != "do"]
            if words and (words[0] in starts or " ".join(words[:2]) in starts):
                yield words


def commands(line: str) -> Iterator[list[str]]:
    """What stands between `;`, `&&`, `|` and brackets."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError:  # a line of Python, or of output
        return
    command: list[str] = []
    for word in [*words, ";"]:
        if set(word) <= set(";&|()<>"):
            yield command
            command = []
        else:
            command.append(word)


def put_in(word: str, known: dict[str, str]) -> str:
    return re.sub(r"\$\{?(\w+)\}?", lambda found: known.get(found[1], found[0]), word)


def check(command: click.Command, arguments: Sequence[str], whole: bool) -> None:
    """Parses a command line as click does, without running it. `whole`: nothing that is required may be missing.

    Raises click.UsageError, or CascadeError for the name of no rule, tree, target or model.
    """
    context, given = click.Context(command), [word for word in arguments if whole or word != "..."]
    while isinstance(command, click.Group):
        if not given or given[0].startswith("-"):
            break
        found = command.get_command(context, given[0])
        if found is None:
            raise click.UsageError(f"there is no command {given[0]!r}")
        command, given, context = found, given[1:], click.Context(found, parent=context)
    try:
        values = command.make_context(command.name, given, parent=context).params
    except click.exceptions.Exit:  # --help, --version
        return
    except (click.MissingParameter, click.BadOptionUsage):  # the latter for an option without its value
        if whole:
            raise
        return
    for option, read_value in {"rule": a_rule, "tree": a_tree, "target": a_target}.items():
        for value in (values.get(option) or (), *(values.get(f"{option}s") or ())):
            if value and not LEFT_OPEN.search(value):
                read_value(value)
    if command.name == "build" and values["model"] not in (*names(), "emoji"):
        get_preset(values["model"])


def a_rule(spelt: str) -> None:
    if spelt != PLAIN:
        get_rule(spelt, *TABLES)


def a_target(spelt: str) -> None:
    split_targets([spelt])


def a_tree(spelt: str) -> None:
    if spelt != AUTO and not spelt.endswith(".json"):
        get_tree(spelt)


def errors(lines: Sequence[str], whole: bool) -> list[str]:
    """What is wrong with the commands in `lines`."""
    found = []
    for words in shell(lines, ("cascade-trt", "python -m")):
        module = words[2] if words[0] == "python" else None
        if words == ["cascade-trt"] or (module is not None and not module.startswith("cascade_trt.")):
            continue
        try:
            check(cli if module is None else main_of(module), words[1 if module is None else 3 :], whole)
        except (click.UsageError, CascadeError, ImportError) as error:
            message = error.format_message() if isinstance(error, click.UsageError) else error
            found.append(f"{' '.join(words)}: {message}")
    return found


def main_of(module: str) -> click.Command:
    """The command that `python -m module` runs. Raises ImportError for a module that is not there."""
    package = (ROOT / module.removeprefix("cascade_trt.").replace(".", "/")).is_dir()
    return import_module(f"{module}.__main__" if package else module).main


@documents
def test_commands(name: str) -> None:
    document = read(name)
    assert errors(document.blocks, whole=True) + errors(document.spans, whole=False) == []


@documents
def test_options(name: str) -> None:
    """Options in backticks, such as `--max-nodes 7`, are some command's."""
    known = {option for command in every_command(cli) for option in options_of(command)}
    known |= {option for module in MODULES for option in options_of(main_of(module))}
    asked = {span.split()[0].rstrip(",") for span in read(name).spans if span.startswith("--")}
    assert asked - known == set()


MODULES = ("cascade_trt.examples.emoji", "cascade_trt.benchmarks.lossless", "cascade_trt.benchmarks.seeds")


def every_command(group: click.Group) -> Iterator[click.Command]:
    for command in group.commands.values():
        yield command
        if isinstance(command, click.Group):
            yield from every_command(command)


def options_of(command: click.Command) -> set[str]:
    return {spelt for option in command.params for spelt in (*option.opts, *option.secondary_opts)}


@documents
def test_make(name: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    variables = set(re.findall(r"\$[({](?:value )?([A-Z]+)[)}]", makefile)) | {"VENV", "PYTHON"}
    wrong = []
    for words in shell([*read(name).blocks, *read(name).spans], ("make",)):
        given = {word.partition("=")[0] for word in words[1:] if "=" in word}
        asked = {word for word in words[1:] if "=" not in word}
        if not asked <= targets or not given <= variables:
            wrong.append(" ".join(words))
    assert wrong == []


# names in backticks ---------------------------------------------------------------------------------------------
@documents
def test_rules(name: str) -> None:
    """Rules with settings, such as `cascade:tau_pos=0.9`."""
    wrong = []
    for span in read(name).spans:
        kind, colon, settings = span.partition(":")
        if kind in RULE_NAMES and colon and "=" in settings and not LEFT_OPEN.search(span):
            try:
                a_rule(span)
            except CascadeError as error:
                wrong.append(str(error))
    assert wrong == []


@documents
def test_files(name: str) -> None:
    """Files and folders, from the repository's root or from the document."""
    document = read(name)
    top = {path.name for path in ROOT.iterdir()} - set(MADE)
    missing = []
    for span in document.spans:
        first, slash, rest = span.partition("/")
        if not slash or first in MADE or not re.fullmatch(r"[\w.+*/-]+", span):
            continue
        named = (first in top and rest) or span.endswith(ENDINGS)
        if named and not (is_there(ROOT, span) or is_there(document.path.parent, span)):
            missing.append(span)
    assert missing == []


def is_there(folder: Path, spelt: str) -> bool:
    """Whether `spelt`, perhaps with a `*`, is a file or folder seen from `folder`."""
    return any(folder.glob(spelt)) if "*" in spelt else (folder / spelt).exists()


@documents
def test_tests(name: str) -> None:
    """Tests that documents name, and what they give to pytest."""
    sources = {path.name: path.read_text() for path in (ROOT / "tests").rglob("*.py")}
    defined = {found for text in sources.values() for found in re.findall(r"^ *def (test_\w+)", text, re.MULTILINE)}
    document = read(name)
    missing = [span for span in document.spans if re.fullmatch(r"test_\w+", span) and span not in defined]
    missing += [span for span in document.spans if re.fullmatch(r"test_\w+\.py", span) and span not in sources]
    for words in shell([*document.blocks, *document.spans], ("pytest", "python -m")):
        if "pytest" in words:
            missing += [word for word in words if word.startswith("tests/") and not (ROOT / word).exists()]
    assert missing == []


# the checks themselves ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "line",
    [
        "cascade-trt drw x", "cascade-trt generate x --rul exact", "cascade-trt calibrate cost", "cascade-trt compile",
        "cascade-trt generate x --rule exat", "D=cascade:tau_draw=1; cascade-trt generate x --rule $D",
        "for t in a b; do cascade-trt build emoji --tree chain_x --out $t; done", "cascade-trt build llamagem",
        "FOO=1 cascade-trt compile build/x --target rtx:sm1 && true", "python -m cascade_trt.benchmarks.lossles",
        "python -m cascade_trt.benchmarks.lossless --bundl x", "cascade-trt generate x --seed one",
    ],
)  # fmt: skip
def test_wrong_commands_are_found(line: str) -> None:
    assert errors([line], whole=True)


def test_right_commands_are_read() -> None:
    lines = ["D=swap:tau_draw=0.7", "for t in a b; do cascade-trt generate x --rule $D,balance=0.2 --tree $t; done # x"]
    assert errors(lines, whole=True) == []
    assert next(shell(lines, ("cascade-trt",)))[4] == "swap:tau_draw=0.7,balance=0.2"
    assert errors(["cascade-trt info", "cascade-trt compile ... --target rtx:sm89"], whole=False) == []
