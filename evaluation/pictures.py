"""Pictures from folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ..runtime.errors import CascadeError
from .captions import Caption

_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def read_pictures(folder: Path, captions: Sequence[Caption]) -> list[Image.Image]:
    """The pictures that the captions name, in their order. Raises CascadeError for one that cannot be read."""
    return [_open(folder / (caption.file or "")) for caption in captions]


def read_folder(folder: Path) -> list[Image.Image]:
    """All pictures of a folder, by name. Raises CascadeError when there are none."""
    files = sorted(f for f in folder.glob("*") if f.suffix.lower() in _ENDINGS) if folder.is_dir() else []
    if not files:
        raise CascadeError(f"there are no pictures in {folder}: give a folder of {', '.join(_ENDINGS)} files.")
    return [_open(file) for file in files]


def _open(file: Path) -> Image.Image:
    try:
        image = Image.open(file)
        image.load()
    except OSError as error:
        reason = error.strerror or "it is no whole picture"
        raise CascadeError(f"{file} cannot be read ({reason}): mend its entry or the file.") from None
    return image.convert("RGB")
