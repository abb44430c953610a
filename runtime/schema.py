"""From a JSON file that nobody vouches for to dataclasses: types, ranges and lengths, checked before anything is made
of them."""

from __future__ import annotations

import dataclasses
import json
import reprlib
import stat
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from .errors import CascadeError

_LARGEST_FILE = 4 << 20  # bytes; a manifest with the engines of ten GPUs has some 100 kB
_DEEPEST = 16  # lists and objects inside each other
_LONGEST_TEXT = 4096
_LARGEST = 1 << 62  # of whole numbers that have no range of their own


@dataclass(frozen=True)
class Within:
    """In `Annotated`: what a number, or the number of entries of a list or an object, must not leave."""

    low: float
    high: float


@dataclass(frozen=True)
class Escaped:
    """In `Annotated`: a text that may hold line breaks. They are escaped once more in the file, all of whose texts can
    be printed."""


Count = Annotated[int, Within(0, _LARGEST)]


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises FileNotFoundError (or NotADirectoryError) without one, CascadeError for what
    is no regular file, too large, too deep, no JSON, names an entry twice or holds text that cannot be printed."""
    try:
        mode = path.stat()
        if not stat.S_ISREG(mode.st_mode):
            raise ValueError("it is no regular file")
        if mode.st_size > _LARGEST_FILE:
            raise ValueError(f"it has more than {_LARGEST_FILE >> 20} MiB")
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=without_doubles)
        _check_content(content)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except RecursionError:
        raise CascadeError(f"{path} cannot be read (it is too deep): build the bundle again.") from None
    except (ValueError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CascadeError(f"{path} cannot be read ({reason}): build the bundle again.") from None
    return content


def without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads(object_pairs_hook=)`: JSON leaves open which of two entries of one name counts, so they are a
    ValueError."""
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("it names an entry twice")
    return entries


def _check_content(content: Any) -> None:
    """Raises ValueError for what is too deep to be walked through later, and for texts that no terminal should get."""
    level = [content]
    for _ in range(_DEEPEST):
        texts = [item for item in level if isinstance(item, str)]
        texts += [name for item in level if isinstance(item, dict) for name in item]
        for text in texts:
            if len(text) > _LONGEST_TEXT or not printable(text):
                raise ValueError(f"it holds the text {short(text)}, which is too long or cannot be printed")
        nested = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)]
        level = [item for items in nested for item in items]
    if level:
        raise ValueError("it is too deep")


def printable(text: str) -> bool:
    """Whether a terminal may get the text: no control characters, no bytes that are no letters."""
    return not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text)


def short(value: object) -> str:
    """A value in a sentence, however large or odd it is: on one line, cut in the middle."""
    try:
        return " ".join(reprlib.repr(value).split())
    except ValueError:  # Python writes no whole number of more than 4300 digits
        return f"a very large {type(value).__name__}"


def build(kind: Any, value: Any, where: str) -> Any:
    """Reads `value` (parsed JSON) as the dataclass, container or scalar `kind`.

    Raises CascadeError, which says `where`, for missing and unknown entries, other types and what leaves its range.
    """
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        made = build(args[0], value, where)
        if isinstance(args[1], Escaped):
            return _unescaped(made, where)
        _check_range(args[1], made, where)
        return made
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, where)
    if origin is dict:
        entries = _expect(Mapping, "an object", value, where)
        return {name: build(args[1], item, f"{where}.{name}") for name, item in entries.items()}
    if origin is list:
        return [build(args[0], item, where) for item in _expect(list, "a list", value, where)]
    if origin is UnionType:
        return None if value is None else build(args[0], value, where)
    if kind is float and type(value) is int and abs(value) < _LARGEST:
        return float(value)
    if kind is Any:
        return value
    if type(value) is not kind:
        raise CascadeError(f"{where} must be {kind.__name__}, not {short(value)}: build the bundle again.")
    if kind is int and abs(value) > _LARGEST:
        raise CascadeError(f"{where} is a number out of all bounds: build the bundle again.")
    return value


def plain(value: Any) -> Any:
    """What `build` reads as `value`: dataclasses as dicts of JSON's types."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = get_type_hints(type(value), include_extras=True)
        entries = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {name: _escaped(item) if _is_escaped(hints[name]) else plain(item) for name, item in entries.items()}
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def _is_escaped(hint: Any) -> bool:
    return get_origin(hint) is Annotated and isinstance(get_args(hint)[1], Escaped)


def _escaped(text: str) -> str:
    letters = json.dumps(text, ensure_ascii=False)[1:-1]
    return "".join(letter if printable(letter) else f"\\u{ord(letter):04x}" for letter in letters)  # JSON leaves DEL


def _unescaped(text: str, where: str) -> str:
    try:
        return json.loads(f'"{text}"')
    except ValueError:
        raise CascadeError(f"{where} is no text with escaped line breaks: build the bundle again.") from None


def _expect(kind: type, name: str, value: Any, where: str) -> Any:
    if not isinstance(value, kind):
        raise CascadeError(f"{where} must be {name}, not {short(value)}: build the bundle again.")
    return value


def _build_dataclass(kind: Any, value: Any, where: str) -> Any:
    entries, hints = _expect(Mapping, "an object", value, where), get_type_hints(kind, include_extras=True)
    required = {
        f.name
        for f in dataclasses.fields(kind)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    missing, unknown = required - set(entries), set(entries) - set(hints)
    if missing or unknown:
        what = f"lacks {sorted(missing)}" if missing else f"has unknown entries {short(sorted(unknown))}"
        raise CascadeError(f"{where} {what}: build the bundle again with this version.")
    return kind(**{name: build(hints[name], item, f"{where}.{name}") for name, item in entries.items()})


def _check_range(bounds: Within, value: Any, where: str) -> None:
    counted = isinstance(value, list | dict)
    if value is None or bounds.low <= (len(value) if counted else value) <= bounds.high:
        return
    found = f"have {bounds.low:g} to {bounds.high:g} entries, not {len(value)}" if counted else (
        f"lie between {bounds.low:g} and {bounds.high:g}, not be {short(value)}"
    )  # fmt: skip
    raise CascadeError(f"{where} must {found}: build the bundle again.")
