"""Counts that commands are given: refused at once where they are none, or so large that nobody would see the end."""

from __future__ import annotations

from ..runtime.errors import CascadeError

MOST_IMAGES = 100_000  # of one command: what is asked for is held in memory, and checked before the first is drawn


def check_count(option: str, count: int, most: int = MOST_IMAGES) -> None:
    """Raises CascadeError for a number that is not from 1 to `most`."""
    if count < 1:
        raise CascadeError(f"{option} must be at least 1, not {count}.")
    if count > most:
        raise CascadeError(f"{option} must be at most {most}, not {count}.")
