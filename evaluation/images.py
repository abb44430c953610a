"""Images from folders, as a viewer shows them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..runtime.errors import CascadeError
from .captions import Caption

_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_BACKGROUND = "white"  # behind what is transparent


def read_images(folder: Path, captions: Sequence[Caption]) -> list[Image.Image]:
    """The images that the captions name, in their order, in RGB. Raises CascadeError for one that cannot be read."""
    return [_open(folder / (caption.file or "")) for caption in captions]


def read_folder(folder: Path) -> list[Image.Image]:
    """All images of a folder, by name, in RGB; hidden files, such as macOS's ._a.png, are none.

    Raises CascadeError when there are none, and for one that cannot be read.
    """
    files = sorted(file for file in folder.glob("*") if _is_image(file)) if folder.is_dir() else []
    if not files:
        raise CascadeError(f"there are no images in {folder}: give a folder of {', '.join(_ENDINGS)} files.")
    return [_open(file) for file in files]


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in _ENDINGS and not file.name.startswith(".") and file.is_file()


def _open(file: Path) -> Image.Image:
    try:
        if not file.is_file():
            raise ValueError("there is no such file")
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                image.load()
                return _to_rgb(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        reason = f"it has more than {Image.MAX_IMAGE_PIXELS} pixels"
    except MemoryError:
        reason = "there is no memory for it"
    except Exception as error:  # a damaged file may raise anything in Pillow's readers
        reason = error.strerror if isinstance(error, OSError) and error.strerror else f"{error}".rstrip(".")
    raise CascadeError(f"{file} cannot be read ({reason or 'it is no whole image'}): mend its entry or the file.")


def _to_rgb(image: Image.Image) -> Image.Image:
    """Upright, 8 bits a channel, on white where it is transparent."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("its pixels are floats, of no known range")
    if image.mode.startswith("I"):
        return _from_16_bits(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    flat = Image.new("RGBA", image.size, _BACKGROUND)
    return Image.alpha_composite(flat, image).convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits; Pillow's own conversion would cut it off at 255."""
    grey, clear = np.asarray(image).astype(np.int64), image.info.get("transparency")
    if grey.min() < 0 or grey.max() > 65535:
        raise ValueError("its pixels are no grey of 16 bits")
    scaled = ((grey * 255 + 32767) // 65535).astype(np.uint8)
    if isinstance(clear, int):
        scaled[grey == clear] = 255  # white, as everything transparent
    return Image.fromarray(scaled).convert("RGB")
