"""The data set: three emoji styles from npm packages, rendered once, with names, tags and a split.

Artwork: @iconify-json/noto (Apache-2.0), @iconify-json/fluent-emoji-flat (MIT), @iconify-json/twemoji
(CC-BY-4.0); names, groups and tags from emojibase-data (MIT). Nothing of it is committed; see ATTRIBUTION.md.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tarfile
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ...runtime.errors import CascadeError
from .config import Recipe

PACKAGES = {
    "noto": "@iconify-json/noto@1.2.9",
    "fluent": "@iconify-json/fluent-emoji-flat@1.2.6",
    "twemoji": "@iconify-json/twemoji@1.2.5",
    "names": "emojibase-data@17.0.0",
}
_HELD_OUT = 0.05
_NOT_MIRRORED = (8, 9)  # symbols and flags hold text and directions


@dataclass(frozen=True)
class Emoji:
    """One image: what it shows, in which style, and how it may be used."""

    concept: str
    style: str
    group: int
    tags: tuple[str, ...]
    mirror: bool
    held_out: bool


@dataclass(frozen=True)
class DataSet:
    """rgba is uint8 [images, H, W, 4], in the order of `images`."""

    rgba: np.ndarray
    emoji: list[Emoji]

    def split(self, held_out: bool, groups: tuple[int, ...] | None = None) -> list[int]:
        """Indices of the images on one side of the split, of some groups only where asked."""
        return [
            i
            for i, image in enumerate(self.emoji)
            if image.held_out == held_out and (groups is None or image.group in groups)
        ]

    def save(self, out: Path) -> None:
        """Writes out/data.npz, staged and renamed."""
        out.mkdir(parents=True, exist_ok=True)
        staged = out / "data.part.npz"
        entries = json.dumps([asdict(image) for image in self.emoji])
        np.savez_compressed(staged, rgba=self.rgba, emoji=np.array(entries))
        staged.rename(out / "data.npz")


def build_data(recipe: Recipe, out: Path) -> DataSet:
    """Fetches the packages (npm), renders the recipe's images and writes `out`; does nothing when it is there."""
    if (out / "data.npz").is_file():
        return load_data(out)
    names = json.loads(_read(fetch("names", out), "package/en/data.json"))
    icons = {style: _icons(fetch(style, out)) for style in recipe.styles}
    data = render(recipe, names, icons)
    data.save(out)
    return data


def load_data(out: Path) -> DataSet:
    with np.load(out / "data.npz") as stored:
        entries = json.loads(str(stored["emoji"]))
        return DataSet(stored["rgba"], [Emoji(**(entry | {"tags": tuple(entry["tags"])})) for entry in entries])


def fetch(name: str, out: Path) -> Path:
    """The package's archive in out/packages, downloaded with npm when it is not there."""
    folder = out / "packages"
    folder.mkdir(parents=True, exist_ok=True)
    stem = PACKAGES[name].rsplit("@", 1)[0].lstrip("@").replace("/", "-")
    found = sorted(folder.glob(f"{stem}-*.tgz"))
    if found:
        return found[0]
    npm = shutil.which("npm")
    if npm is None:
        raise CascadeError(f"npm is needed to fetch {PACKAGES[name]}: install Node.js, or put its .tgz into {folder}.")
    result = subprocess.run([npm, "pack", PACKAGES[name]], cwd=folder, capture_output=True, text=True)
    found = sorted(folder.glob(f"{stem}-*.tgz"))
    if result.returncode or not found:
        reason = (result.stderr.strip().splitlines() or ["no file came"])[-1]
        raise CascadeError(f"npm could not fetch {PACKAGES[name]} ({reason}): put its .tgz into {folder}.")
    return found[0]


def _read(archive: Path, member: str) -> bytes:
    with tarfile.open(archive) as tar:
        file = tar.extractfile(member)
        if file is None:
            raise CascadeError(f"{archive} lacks {member}: delete it and run the step again.")
        return file.read()


def _icons(archive: Path) -> dict[str, Any]:
    """Icons of an Iconify package: character code -> (name, SVG text)."""
    content = json.loads(_read(archive, "package/icons.json"))
    codes = json.loads(_read(archive, "package/chars.json"))
    width, height = content.get("width", 16), content.get("height", 16)
    found = {}
    for code, name in codes.items():
        icon = content["icons"].get(name)
        if icon is not None:
            w, h = icon.get("width", width), icon.get("height", height)
            found[code.lower()] = (
                f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                f'viewBox="0 0 {w} {h}" width="{w}" height="{h}">{icon["body"]}</svg>'
            )
    return found


def render(recipe: Recipe, names: list[dict[str, Any]], icons: dict[str, dict[str, str]]) -> DataSet:
    """Renders every emoji of the recipe's groups that has artwork; skin-tone variants are not among `names`."""
    import resvg_py

    images, pixels = [], []
    wanted = [entry for entry in names if entry.get("group") in recipe.groups]
    for entry in tqdm(wanted, desc="rendering", unit="emoji"):
        concept = entry["label"].lower().replace("’", "'")
        codes = {entry["hexcode"].lower(), entry["hexcode"].lower().replace("-fe0f", "")}
        have = [style for style in recipe.styles if codes & icons[style].keys()]
        for style in have:
            svg = next(icons[style][code] for code in sorted(codes) if code in icons[style])
            png = resvg_py.svg_to_bytes(svg_string=svg, width=recipe.image_size, height=recipe.image_size)
            image = Image.open(BytesIO(bytes(png))).convert("RGBA").resize((recipe.image_size, recipe.image_size))
            pixels.append(np.asarray(image))
            images.append(
                Emoji(
                    concept, style, entry["group"], tuple(t.lower() for t in entry.get("tags", [])),
                    entry["group"] not in _NOT_MIRRORED, is_held_out(concept, style, have),
                )
            )  # fmt: skip
    if not pixels:
        raise CascadeError("no emoji of the recipe's groups has artwork in its styles.")
    return DataSet(np.stack(pixels), images)


def is_held_out(concept: str, style: str, styles: list[str]) -> bool:
    """5 % of (concept, style) pairs, never all styles of a concept; decided by a hash, so it never moves."""
    if len(styles) < 2:
        return False
    digests = {s: hashlib.sha256(f"{concept}|{s}".encode()).digest() for s in styles}
    drawn = {s: int.from_bytes(digest[:4], "big") / 2**32 for s, digest in digests.items()}
    return drawn[style] < _HELD_OUT and drawn[style] == min(drawn.values())
