"""What `generate` draws: prompts, classes or text features from a file, and how the images' files are called."""

from __future__ import annotations

import math
import os
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np

from ..runtime.arrays import outline
from ..runtime.errors import CascadeError
from .counts import MOST_IMAGES

_LONGEST = 100  # bytes of a prompt in a file's name; names have 255, on some systems 143
_MOST_BYTES = 1 << 30  # of features: a thousand prompts' of the largest encoder
_MOST_REPEATED = 4 << 30  # bytes of features, once for each image
_ARRAYS = ("features", "mask")
_UNREADABLE = (OSError, EOFError, BadZipFile, ValueError, KeyError, NotImplementedError)


@dataclass(frozen=True)
class Inputs:
    """One entry of `labels` for each image; `given` is what `Pipeline.stream` takes."""

    labels: list[str]
    given: dict[str, Any]
    kind: str  # what the labels are in a PNG's text: "prompt", "class_id" or "features"

    @property
    def slugs(self) -> list[str]:
        """The labels as parts of files' names."""
        return list(map(_slug, self.labels))


def choose(prompts: Sequence[str], class_ids: Sequence[int], features: Path | None, count: int) -> Inputs:
    """`count` images of each. Raises CascadeError unless one kind is given, and for a file that cannot be read."""
    kinds = sum(map(bool, (prompts, class_ids, features)))
    if kinds == 0:
        raise CascadeError('say what to draw: cascade-trt generate "a red apple".')
    if kinds > 1:
        raise CascadeError("give prompts, --class-id or --features, not both.")
    if (images := count * (len(prompts) or len(class_ids) or 1)) > MOST_IMAGES:
        raise CascadeError(f"these are {images} images, more than {MOST_IMAGES}: draw them with several commands.")
    if features is not None:
        values, mask = read_features(features)
        if values.nbytes * count > _MOST_REPEATED:
            raise CascadeError(
                f"{count} images of each of {features} need features of more than {_MOST_REPEATED >> 30} GiB: draw "
                "them with several commands, each with another --seed."
            )
        values = np.repeat(values, count, axis=0)
        mask = None if mask is None else np.repeat(mask, count, axis=0)
        stem = os.fsencode(features.stem).decode(errors="replace")
        several = len(values) > count
        labels = [f"{stem}-{i // count}" if several else stem for i in range(len(values))]
        return Inputs(labels, {"features": values, "features_mask": mask}, "features")
    if prompts:
        texts = [_text(prompt) for prompt in prompts for _ in range(count)]
        return Inputs(texts, {"prompts": texts}, "prompt")
    ids = [one for one in class_ids for _ in range(count)]
    return Inputs([str(one) for one in ids], {"class_ids": ids}, "class_id")


def read_features(file: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """`features` [P, T, C] of an .npz file, where they may also be [T, C], and its `mask` [P, T], if it has one.

    Raises CascadeError for a file that cannot be read, lacks `features`, or holds anything else.
    """
    try:
        if not file.is_file():
            raise ValueError("there is no such file")
        with ZipFile(file) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            if len(set(names)) < len(names):
                raise ValueError("it names an array twice")
            for name in names:
                _check_header(archive, name)
        if "features" not in names or not set(names) <= set(_ARRAYS):
            raise ValueError(f"it holds {', '.join(names) or 'nothing'}")
        with np.load(file, allow_pickle=False) as arrays:
            features, mask = arrays["features"], arrays["mask"] if "mask" in names else None
    except _UNREADABLE as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise CascadeError(
            f"{file} cannot be read ({reason}): give an .npz file with the array features, [T, C] or [P, T, C], and "
            "perhaps mask, [T] or [P, T]."
        ) from None
    if features.ndim == 2:
        features, mask = features[None], None if mask is None else mask[None]
    if features.ndim != 3 or (mask is not None and mask.shape != features.shape[:2]):
        shown = "" if mask is None else f" and mask {list(mask.shape)}"
        raise CascadeError(
            f"{file} holds features {list(features.shape)}{shown}: give features [T, C] or [P, T, C], and mask [T] or "
            "[P, T]."
        )
    return features, mask


def _check_header(archive: ZipFile, name: str) -> None:
    """Raises ValueError for an array whose data have another size than its header says, or too large a one."""
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as member:
        try:
            shape, dtype = outline(member, info.file_size)
        except ValueError:
            raise ValueError(f"{name} is cut off, or no array of numbers") from None
    if dtype.kind not in "fiub":
        raise ValueError(f"{name} is cut off, or no array of numbers")
    if math.prod(shape) * dtype.itemsize > _MOST_BYTES:
        raise ValueError(f"{name} has more than {_MOST_BYTES >> 30} GiB")


def _text(given: str) -> str:
    """An argument as text: where the locale's encoding lacks its letters, Python hands over their bytes (PEP 383)."""
    try:
        return os.fsencode(given).decode()
    except UnicodeError:
        return given


def _slug(label: str) -> str:
    """A label as a part of a file's name: letters and digits of every script, `-` for all else."""
    text = unicodedata.normalize("NFC", label).lower()
    letters = "".join(letter if unicodedata.category(letter)[0] in "LMN" else " " for letter in text)
    encoding = sys.getfilesystemencoding()  # as a rule UTF-8
    name = "-".join(letters.split()).encode(encoding, "ignore")[:_LONGEST].decode(encoding, "ignore").strip("-")
    return name or "image"
