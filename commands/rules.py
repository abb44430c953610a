"""`cascade-trt rules`: the acceptance rules, their settings, and what a bundle makes of them."""

from __future__ import annotations

import re
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from ..runtime.bundle import Manifest, read_manifest
from ..runtime.errors import CascadeError
from ..runtime.files import check_files
from ..runtime.options import DrawOptions, check_sampling
from ..runtime.rulebook import Rulebook
from ..runtime.rules import RULE_NAMES, Rule, get_rule
from ..runtime.rules.registry import PLAIN
from ..runtime.rules.states import StateTable
from .output import print_json
from .tables import Rows

# What is out of every range, and no word of any list: a rule's answer says what would be in it.
_STRANGE = ("-1e30", "1e30", "-1000000000", "?")


@dataclass(frozen=True)
class Setting:
    """A setting of a rule, `default` as it is spelt, `allowed` in words (empty: the rule does not say)."""

    name: str
    default: str
    allowed: str


@dataclass(frozen=True)
class Known:
    """A rule by name. `says` is what it does in a sentence. For a bundle: what the bare name means there, the tree that
    it draws with by itself, and why it cannot be used (None: it can)."""

    name: str
    says: str
    settings: list[Setting]
    means: str | None = None
    tree: str | None = None
    problem: str | None = None


def run(bundle: Path | None, as_json: bool) -> None:
    manifest = None if bundle is None else read_manifest(bundle)
    if bundle is not None and manifest is not None:
        check_files(bundle, manifest)
    known = [describe(name) if bundle is None or manifest is None else in_bundle(name, bundle, manifest)
             for name in RULE_NAMES]  # fmt: skip
    if as_json:
        print_json([asdict(rule) for rule in known])
        return
    console = Console(highlight=False, markup=False)
    table = Rows(("rule", "what it does"))
    for rule in known:
        table.add(rule.name, rule.says)
    table.print(console)
    table = Rows(("rule", "setting", "default", "allowed"))
    for rule in known:
        for number, setting in enumerate(rule.settings):
            table.add(rule.name if number == 0 else "", setting.name, setting.default, setting.allowed)
        table.add_rule()
    table.print(console)
    if manifest is not None:
        table = Rows(("rule", "in this bundle"))
        for rule in known:
            table.add(rule.name, rule.problem or f"means {rule.means}, tree: {rule.tree or 'none'}")
        table.print(console)
    example = next(rule for rule in known if rule.settings)
    first, second = example.settings[:2]
    console.print(f"with settings: --rule {example.name}:{first.name}={first.default},{second.name}={second.default}")


def in_bundle(name: str, folder: Path, manifest: Manifest) -> Known:
    """A rule as a bundle has it."""
    known, book = describe(name), Rulebook(folder, manifest)
    try:
        chosen = book.choose(name, None, check_sampling(manifest, DrawOptions()))
    except CascadeError as error:
        return Known(known.name, known.says, known.settings, problem=str(error))
    means = name if chosen.rule is None else chosen.rule.name
    return Known(known.name, known.says, known.settings, means, chosen.tree)


def describe(name: str) -> Known:
    """What a rule says of itself: its sentence in its module's docstring, its fields, and what it answers to strange
    values."""
    if name == PLAIN:
        return Known(name, "Plain decoding: a token in each call, no guesses.", [])
    rule = _made(name)
    text = (sys.modules[type(rule).__module__].__doc__ or "").partition("\n\n")[0]
    found = re.search(rf"`{re.escape(name)}`: (.+?[.])(?=\s|$)", text, re.DOTALL)
    says = re.sub(r"\s+", " ", found[1] if found else text)
    return Known(name, says[:1].upper() + says[1:], _settings(name, rule))


def _settings(name: str, rule: Rule) -> list[Setting]:
    """The fields that may be spelt behind the rule's name."""
    found = []
    for field in fields(rule) if hasattr(rule, "__dataclass_fields__") else ():  # type: ignore[arg-type]
        word, default = field.name.rstrip("_"), _spelt(field.default)
        if field.compare and _answer(name, word, default) is None:
            found.append(Setting(word, default, _allowed(name, word, default)))
    return found


def _allowed(name: str, setting: str, default: str) -> str:
    """What a setting may be, by the rule's answers to what it may not."""
    answers = [answer for value in _STRANGE if (answer := _answer(name, setting, value))]
    said = [found[1] for answer in answers if (found := re.search(rf"{setting} must (?:lie |be )?(.+?), not ", answer))]
    words = next((words for words in said if words not in ("a number", "a whole number")), next(iter(said), ""))
    may_be_off = default == "off" or _answer(name, setting, "off") is None
    return f"{words}, or off" if words and may_be_off and "off" not in words else words


def _answer(name: str, setting: str, value: str) -> str | None:
    """What the rule says to a value; None where it takes it."""
    try:
        _made(f"{name}:{setting}={value}")
    except CascadeError as error:
        return str(error)
    return None


def _made(spelt: str) -> Rule:
    """The rule, with tables of one token."""
    return get_rule(spelt, np.zeros((1, 1), np.int64), StateTable(np.ones((1, 1), np.float16), np.ones(1, np.float32)))


def _spelt(default: Any) -> str:
    return "off" if default is None or default is False else "on" if default is True else f"{default}"
