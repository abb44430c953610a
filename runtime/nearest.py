"""What a misspelt name was meant to be."""

from __future__ import annotations

from collections.abc import Iterable


def meant(word: str, known: Iterable[str]) -> str:
    """For a sentence on an unknown `word`: " (did you mean 'cascade'?)", or nothing where no known name is near."""
    from difflib import get_close_matches  # only those who misspell pay for it

    names = {name.lower(): name for name in known}
    found = get_close_matches(word.lower(), names, n=1)
    return f" (did you mean {names[found[0]]!r}?)" if found else ""
