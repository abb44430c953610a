"""Images: from the decoder's floats to PIL, contact sheets, and PNG files that know how they were made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from .model_info import DOWN, NEAREST
from .staging import write_file


def to_images(pixels: np.ndarray, rounding: str = NEAREST) -> list[Image.Image]:
    """float32 [P, 3, H, W] with a nominal range of [-1, 1] to PIL images.

    255 (x + 1) / 2, clamped, becomes the nearest whole number (LlamaGen: 127.5 x + 128, cut), or with "down" the next
    lower one (Janus, Chameleon).
    """
    scaled = (pixels + 1.0) / 2.0 * 255.0 if rounding == DOWN else 127.5 * pixels + 128.0
    bytes_ = np.clip(scaled, 0, 255).astype(np.uint8)
    return [Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))) for image in bytes_]


def grid(images: Sequence[Image.Image], columns: int | None = None, gap: int = 4) -> Image.Image:
    """A contact sheet on white; as square as possible unless `columns` is given."""
    columns = columns or int(np.ceil(np.sqrt(len(images))))
    rows = -(-len(images) // columns)
    width, height = images[0].size
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for index, image in enumerate(images):
        sheet.paste(image, ((index % columns) * (width + gap), (index // columns) * (height + gap)))
    return sheet


def save_png(image: Image.Image, path: Path, settings: Mapping[str, object]) -> None:
    """Writes a PNG whose text chunk holds `settings`, in the place of what is there; no partial file is ever left.

    Raises CascadeError when the place cannot be written.
    """
    write_file(path, to_png(image, settings))


def to_png(image: Image.Image, settings: Mapping[str, object]) -> bytes:
    """A PNG file whose text chunk holds `settings`."""
    info, file = PngImagePlugin.PngInfo(), BytesIO()
    for name, value in settings.items():
        info.add_itxt(name, str(value))
    image.save(file, format="PNG", pnginfo=info)
    return file.getvalue()
