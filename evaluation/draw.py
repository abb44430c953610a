"""Draws a set of images into a folder; what is there already, from the same bundle and settings, is kept."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..runtime.bundle import MANIFEST
from ..runtime.images import save_png
from ..runtime.pipeline import Output, Pipeline
from ..runtime.rules import Cause
from ..runtime.rules.registry import PLAIN
from .captions import Caption, write_captions
from .paired import interval

OTHER_SEED = 1 << 20  # added for a second set of plain decoding: how far apart equal settings lie
_COUNTS = ("tokens", "codes", "rounds", "relaxed", "target_calls", "total_seconds")


@dataclass(frozen=True)
class Drawing:
    """One set to draw: a rule as `Pipeline.generate` takes it, a tree (None: the bundle's first), the first seed.

    Image i shows caption i, from the first again after the last, and uses seed + i.
    """

    rule: str
    tree: str | None
    seed: int
    name: str

    @property
    def folder_name(self) -> str:
        tree = f"-{self.tree}" if self.tree and self.rule != PLAIN else ""
        return re.sub(r"[^A-Za-z0-9.=_+-]+", "-", f"{self.rule}{tree}-seed{self.seed}").strip("-")


def draw(
    pipe: Pipeline, drawing: Drawing, captions: Sequence[Caption], folder: Path, advance: Callable[[int], None]
) -> list[Image.Image]:
    """The set's images, one for each caption; missing ones are drawn and written to `folder` as they are done.

    advance gets the number of tokens that are done. After Ctrl-C it raises KeyboardInterrupt; finished images are
    in the folder, and the next call goes on from them.
    """
    wanted = [_text(pipe, drawing, caption, i) for i, caption in enumerate(captions)]
    files = [folder / f"{i:05d}.png" for i in range(len(captions))]
    missing = [i for i, (file, text) in enumerate(zip(files, wanted, strict=True)) if not _is_kept(file, text)]
    tokens, kept = pipe.manifest.model.plan.length, len(captions) - len(missing)
    advance(kept * tokens)
    if missing:
        outputs = pipe.stream(
            [captions[i].prompt for i in missing], seed=[drawing.seed + i for i in missing], rule=drawing.rule,
            tree=None if drawing.rule == PLAIN else drawing.tree,
            callback=lambda done, _total: advance(kept * tokens + done),
        )  # fmt: skip
        for output in outputs:
            for number, (place, image) in enumerate(zip(output.places, output.images, strict=True)):
                i = missing[place]
                save_png(image, files[i], wanted[i] | _counts(output, number))
    write_captions(folder / "captions.jsonl", (_with_file(c, f.name) for c, f in zip(captions, files, strict=True)))
    return [open_image(file) for file in files]


def speed(images: Sequence[Image.Image]) -> dict[str, Any]:
    """Figures from what the images' files say: tokens per target call with their 95 % bootstrap interval, the share
    of relaxed tokens, images per second."""
    counts = {name: np.array([float(_info(image).get(name, 0)) for image in images]) for name in _COUNTS}
    sums = {name: float(values.sum()) for name, values in counts.items()}
    found: dict[str, Any] = {
        "tau": None, "tau_interval": None, "relaxed_share": None,
        "images_per_second": len(images) / sums["total_seconds"] if sums["total_seconds"] else None,
    }  # fmt: skip
    if sums["rounds"]:
        # Images being equally long, the mean of rounds a token is 1 / tau.
        low, high = interval(counts["rounds"] / counts["tokens"], np.mean)
        found |= {"tau": sums["tokens"] / sums["rounds"], "tau_interval": [1 / high, 1 / low],
                  "relaxed_share": sums["relaxed"] / (sums["codes"] or sums["tokens"] + len(images))}  # fmt: skip
    return found


def open_image(file: Path) -> Image.Image:
    """The image, loaded, its text chunk in `info`. Raises OSError when the file is missing or damaged."""
    image = Image.open(file)
    image.load()
    return image


def _text(pipe: Pipeline, drawing: Drawing, caption: Caption, number: int) -> dict[str, str]:
    """What an image's file says of how it was made; the bundle by its manifest, so that any rebuild counts."""
    made_by = hashlib.sha256((pipe.folder / MANIFEST).read_bytes()).hexdigest()[:16]
    tree = pipe.tree_for(drawing.rule, drawing.tree) or ""
    return {"prompt": caption.prompt, "seed": str(drawing.seed + number), "rule": drawing.rule, "tree": tree,
            "model": pipe.manifest.name, "bundle": made_by}  # fmt: skip


def _counts(output: Output, number: int) -> dict[str, str]:
    """One image's own tokens and rounds, and its share of its output's calls and time."""
    stats, rounds = output.stats, int(output.rounds[number])
    count = len(output.images)
    own = {"tokens": stats.tokens / count, "rounds": rounds, "relaxed": _relaxed(output.causes[number]),
           "codes": output.codes.shape[1]}  # fmt: skip
    shared = {name: getattr(stats, name) / count for name in ("target_calls", "total_seconds")}
    return {name: repr(value) for name, value in (own | shared).items()}


def _relaxed(causes: np.ndarray) -> int:
    """How many of an image's tokens only a relaxation let pass."""
    return int(sum((causes == cause).sum() for cause in Cause if cause.relaxed))


def _is_kept(file: Path, wanted: dict[str, str]) -> bool:
    try:
        return wanted.items() <= _info(open_image(file)).items()
    except (OSError, ValueError, SyntaxError):  # missing or damaged, as Pillow's reader says it
        return False


def _info(image: Image.Image) -> dict[str, str]:
    return {name: str(value) for name, value in image.info.items() if isinstance(name, str)}


def _with_file(caption: Caption, name: str) -> Caption:
    return Caption(caption.prompt, name, caption.concept, caption.style, caption.background, caption.group)
