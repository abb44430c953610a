"""Checks of places to write to, before any work is done."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from ..runtime.errors import CascadeError


def check_writable(folder: Path) -> None:
    """Makes the folder if need be. Raises CascadeError when nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise CascadeError(f"cannot write to {folder} ({reason}): choose another place.") from None
