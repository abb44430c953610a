"""Prompts with what they ask for: read from JSON lines, CSV or plain text, or understood from the words."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..runtime.errors import CascadeError
from ..runtime.schema import without_doubles
from ..runtime.staging import write_file
from .judge import JudgeConfig

_FIELDS = ("prompt", "file", "concept", "style", "background", "group")


@dataclass(frozen=True)
class Caption:
    """A prompt, the image's file where there is one, and what the judge should see (None: not asked).

    `group` names a part of the prompts that is also reported by itself, such as "held-out".
    """

    prompt: str
    file: str | None = None
    concept: str | None = None
    style: str | None = None
    background: str | None = None
    group: str | None = None


def read_captions(file: Path, with_files: bool = False) -> list[Caption]:
    """Captions of a .jsonl (an object on each line), .csv (with a header) or .txt file (a prompt on each line).

    Raises CascadeError for a file that is missing, empty or malformed, or lacks `file` entries where asked for.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise CascadeError(f"{file} cannot be read ({reason}): give a .jsonl, .csv or .txt file of prompts.") from None
    captions = [_caption(file, number, entry) for number, entry in _entries(file, text)]
    if not captions:
        raise CascadeError(f"{file} holds no prompts: write one on each line.")
    nameless = [number for number, caption in enumerate(captions, start=1) if not caption.file]
    if with_files and nameless:
        raise CascadeError(f"{file}: entry {nameless[0]} names no image: give `file` and `prompt` for each.")
    return captions


def _entries(file: Path, text: str) -> Iterable[tuple[int, Any]]:
    lines = text.splitlines()
    if file.suffix.lower() == ".csv":
        yield from enumerate(csv.DictReader(lines), start=2)
        return
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if file.suffix.lower() == ".txt":
            yield number, {"prompt": line.strip()}
            continue
        try:
            entry = json.loads(line, object_pairs_hook=without_doubles)
        except (ValueError, RecursionError) as error:
            broken = isinstance(error, json.JSONDecodeError | RecursionError)
            reason = "is not JSON" if broken else f"is wrong ({error})"
            raise CascadeError(f"{file}: line {number} {reason}: write one object on each line.") from None
        yield number, entry


def _caption(file: Path, number: int, entry: Any) -> Caption:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("prompt"), str) or not entry["prompt"].strip():
        raise CascadeError(f"{file}: line {number} has no `prompt`: give each entry one.")
    given = {name: entry[name] for name in _FIELDS if entry.get(name)}
    wrong = [name for name, value in given.items() if not isinstance(value, str)]
    if wrong:
        raise CascadeError(f"{file}: line {number}: `{wrong[0]}` must be a text.")
    return Caption(**given)


def write_captions(file: Path, captions: Iterable[Caption]) -> None:
    """JSON lines; fields that are None are left out."""
    lines = (json.dumps({k: v for k, v in asdict(caption).items() if v is not None}) for caption in captions)
    write_file(file, "".join(line + "\n" for line in lines).encode())


def understand(captions: Iterable[Caption], config: JudgeConfig) -> list[Caption]:
    """Fills what is not given from the prompt's words, as far as the judge has a label for it.

    The concept is the longest label among the words; a style counts as asked for where "<style> style" stands, a
    background where "<colour> background" does.
    """
    concepts = sorted(((_words(label), label) for label in config.concepts), key=lambda pair: -len(pair[0]))
    return [_understand(caption, concepts, config) for caption in captions]


def _understand(caption: Caption, concepts: list[tuple[str, str]], config: JudgeConfig) -> Caption:
    words = f" {_words(caption.prompt)} "
    named = [label for text, label in concepts if f" {text} " in words] if caption.concept is None else []
    styles = [style for style in config.styles if f" {_words(style)} style " in words]
    colours = [name for name in config.backgrounds if f" {_words(name)} background " in words]
    return replace(
        caption,
        concept=caption.concept or next(iter(named), None),
        style=caption.style or next(iter(styles), None),
        background=caption.background or next(iter(sorted(colours, key=len, reverse=True)), None),
    )


def _words(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", text.lower()))
