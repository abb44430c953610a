"""Contact sheets with captions: what was asked for under every image, and what the judge says around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..runtime.images import save_png

_SIDE, _FRAME, _GAP, _LINES, _COLUMNS = 112, 3, 8, 3, 8
_LINE, _TITLE = 12, 26
_COLOURS = {1.0: "#2a9d4a", 0.0: "#d43d3d"}  # concept right, wrong; none where it was not asked


@dataclass(frozen=True)
class Section:
    """A titled set of images with their captions; `right` float [n] is 1, 0 or NaN (not judged)."""

    title: str
    images: Sequence[Image.Image]
    captions: Sequence[str]
    right: np.ndarray


def write_sheet(file: Path, sections: Sequence[Section], most: int) -> None:
    """A PNG of the sections one below the other, the first `most` images of each, eight in a row.

    Raises CascadeError when the file cannot be written.
    """
    tiles = [_section(section, most) for section in sections if len(section.images)]
    if not tiles:
        return
    sheet = Image.new("RGB", (max(t.width for t in tiles), sum(t.height for t in tiles)), "white")
    top = 0
    for tile in tiles:
        sheet.paste(tile, (0, top))
        top += tile.height
    save_png(sheet, file, {"title": "; ".join(section.title for section in sections)})


def _section(section: Section, most: int) -> Image.Image:
    count = min(most, len(section.images))
    width, height = _SIDE + 2 * _FRAME + _GAP, _SIDE + 2 * _FRAME + _GAP + _LINES * _LINE
    columns, rows = min(_COLUMNS, count), -(-count // _COLUMNS)
    tile = Image.new("RGB", (max(columns * width + _GAP, 420), _TITLE + rows * height + _GAP), "white")
    pen = ImageDraw.Draw(tile)
    pen.text((_GAP, 6), section.title, "black", ImageFont.load_default(15))
    small = ImageFont.load_default(10)
    for i in range(count):
        x, y = _GAP + i % _COLUMNS * width, _TITLE + i // _COLUMNS * height
        colour = _COLOURS.get(float(section.right[i]), "#cccccc")
        pen.rectangle((x, y, x + _SIDE + 2 * _FRAME - 1, y + _SIDE + 2 * _FRAME - 1), colour)
        image = section.images[i].convert("RGB")
        scaled = image.resize((_SIDE, _SIDE), Image.Resampling.NEAREST if image.width < _SIDE else Image.Resampling.BOX)
        tile.paste(scaled, (x + _FRAME, y + _FRAME))
        for number, line in enumerate(wrap(section.captions[i], small, _SIDE + 2 * _FRAME)):
            pen.text((x, y + _SIDE + 2 * _FRAME + 1 + number * _LINE), line, "#333333", small)
    return tile


def wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """The text in at most three lines of `width` pixels; what does not fit ends in an ellipsis."""
    lines, words = [""], text.split()
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        elif len(lines) < _LINES:
            lines.append(word)
        else:
            lines[-1] += "…"
            break
    return lines
