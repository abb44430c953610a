"""Tables that fit the terminal, or 80 columns where there is none: words stay whole, what is too wide goes below."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

_LONG = 16  # letters; longer words may be parted behind commas and the like


@dataclass
class Rows:
    """A table as it grows. `keys`: how many of the first columns say what a row is; they are repeated in each part of a
    table that is too wide. `styles` are those of rows by their numbers, `rules` the rows with a line above them."""

    columns: Sequence[str]
    title: str | None = None
    keys: int = 1
    rows: list[Sequence[str]] = field(default_factory=list)
    styles: dict[int, str] = field(default_factory=dict)
    rules: list[int] = field(default_factory=list)

    def add(self, *cells: str, style: str | None = None) -> None:
        if style is not None:
            self.styles[len(self.rows)] = style
        self.rows.append(cells)

    def add_rule(self) -> None:
        self.rules.append(len(self.rows))

    def print(self, console: Console | None = None) -> None:
        """On stdout, or on `console`."""
        console = console or Console(highlight=False)
        columns = [[name, *(row[at] for row in self.rows)] for at, name in enumerate(self.columns)]
        least = [min(max(map(_least, cells)), console.width // 2) for cells in columns]
        most = [max(cell_len(line) for cell in cells for line in cell.split("\n")) for cells in columns]
        everything = list(range(len(columns)))
        for style in (box.HEAVY_HEAD, box.SIMPLE_HEAD):
            if _width(least, style) <= console.width:
                parts = [everything]
                break
        else:
            style, parts = box.HEAVY_HEAD, _parts(least, self.keys, console.width)
        for number, part in enumerate(parts):
            room = console.width - _around(len(part), style)
            widths = _share([least[at] for at in part], [most[at] for at in part], room)
            padding = (0, 1) if style is box.HEAVY_HEAD else (0, 1, 0, 0)
            title = Text(self.title) if self.title is not None and number == 0 else None
            table = Table(box=style, padding=padding, title=title, title_justify="left")
            for at, width in zip(part, widths, strict=True):
                table.add_column(Text(wrapped(self.columns[at], width)), width=width, overflow="fold")
            for index, row in enumerate(self.rows):
                if index in self.rules:
                    table.add_section()
                cells = (Text(wrapped(row[at], width)) for at, width in zip(part, widths, strict=True))
                table.add_row(*cells, style=self.styles.get(index))
            console.print(table)


def _around(columns: int, style: box.Box) -> int:
    """What lines and spaces take beside so many columns."""
    return 3 * columns + 1 if style is box.HEAVY_HEAD else 2 * columns + 1


def _width(widths: Sequence[int], style: box.Box) -> int:
    return sum(widths) + _around(len(widths), style)


def _parts(least: Sequence[int], keys: int, room: int) -> list[list[int]]:
    """The columns of each part of a table that is wider than `room`."""
    key = list(range(keys))
    parts: list[list[int]] = [[*key]]
    for at in range(keys, len(least)):
        longer = [*parts[-1], at]
        if len(parts[-1]) > keys and _width([least[i] for i in longer], box.HEAVY_HEAD) > room:
            longer = [*key, at]
            parts.append(longer)
        parts[-1] = longer
    return parts


def _share(least: Sequence[int], most: Sequence[int], room: int) -> list[int]:
    """Widths of columns: as wide as their texts where there is room, else the widest become narrower."""
    for level in range(max(most), 0, -1):
        widths = [max(low, min(high, level)) for low, high in zip(least, most, strict=True)]
        if sum(widths) <= room:
            return widths
    return list(least)


def _pieces(text: str) -> list[str]:
    """A line's words, and parts of long ones."""
    found: list[str] = []
    for word in re.findall(r"\S+(?: %(?!\S))?\s*", text):
        found += re.findall(r"[^,;:/&]+[,;:/&]*\s*|[,;:/&]+\s*", word) if cell_len(word) > _LONG else [word]
    return found


def _least(text: str) -> int:
    """The width of the longest piece."""
    return max((cell_len(piece.rstrip()) for line in text.split("\n") for piece in _pieces(line)), default=0)


def wrapped(text: str, width: int) -> str:
    """The text in lines of `width` cells, broken between pieces."""
    lines = []
    for line in text.split("\n"):
        lines.append("")
        for piece in _pieces(line):
            if lines[-1] and cell_len(lines[-1] + piece.rstrip()) > width:
                lines.append("")
            lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)
