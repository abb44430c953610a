"""Real images as the judge sees them, shipped as features: so an evaluation needs no data set.

`judge.npz` beside the judge holds, in float16, a reference set (for distances), a gallery of all real
images (to find the nearest one) and one test row for every prompt of
`prompts.jsonl`: the real image that the prompt describes, its reconstruction by the tokenizer, and the one from the
codes that the target learns. Test rows are other views than the reference's.
"""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..runtime.errors import CascadeError
from .captions import Caption, read_captions
from .judge import Judge
from .score import Gallery, Reference, Scores, score_features

PROMPTS = "prompts.jsonl"
# Test sets by key in the file, and as they are called in reports.
SETS = {"real": "real images", "reconstruction": "reconstructions", "codes": "target's codes"}


@dataclass(frozen=True)
class RealFeatures:
    """The content of judge.npz. Test sets: features [prompts, F] and indices of the backgrounds seen [prompts]."""

    reference: Reference
    gallery: Gallery
    sets: dict[str, tuple[np.ndarray, np.ndarray]]


def save_real(file: Path, judge_file: Path, real: RealFeatures) -> None:
    """Writes judge.npz for the judge that made the features."""
    arrays = {
        "judge": np.array(_digest(judge_file)),
        "reference": real.reference.features.astype(np.float16),
        "reference_held_out": real.reference.held_out,
        "gallery": real.gallery.features.astype(np.float16),
        "gallery_concepts": real.gallery.concepts.astype(np.int16),
    }
    for name, (features, seen) in real.sets.items():
        arrays |= {name: features.astype(np.float16), f"{name}_background": seen.astype(np.uint8)}
    np.savez_compressed(file, allow_pickle=False, **arrays)


def load_real(judge_file: Path) -> RealFeatures | None:
    """The features beside the judge, None when there are none.

    Raises CascadeError when they are damaged or were made by another judge.
    """
    file = judge_file.with_suffix(".npz")
    if not file.is_file():
        return None
    try:
        with np.load(file) as stored:
            arrays = dict(stored)
        reference = Reference(arrays["reference"].astype(np.float32), arrays["reference_held_out"])
        gallery = Gallery(arrays["gallery"].astype(np.float32), arrays["gallery_concepts"].astype(np.int64))
        sets = {k: (arrays[k].astype(np.float32), arrays[f"{k}_background"]) for k in SETS if k in arrays}
        made_by = str(arrays["judge"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        raise CascadeError(f"{file} is damaged: run the recipe's step `judge` again.") from None
    if made_by != _digest(judge_file):
        raise CascadeError(f"{file} was made by another judge: run the recipe's step `judge` again.")
    return RealFeatures(reference, gallery, sets)


def real_scores(
    real: RealFeatures, captions: list[Caption], judge: Judge, count: int, distances: bool
) -> dict[str, Scores]:
    """Scores of the test sets by their names in reports: of the first `count` prompts, `captions` of prompts.jsonl.

    `distances` is False where other features than the judge's are compared.
    """
    names, scores = list(judge.config.backgrounds), {}
    for key, (features, seen) in real.sets.items():
        part, backgrounds = features[:count], [names[i] for i in seen[:count]]
        used = part if distances else None
        scores[SETS[key]] = score_features(part, backgrounds, captions[: len(part)], judge, used, real.gallery)
    return scores


def judge_prompts(judge_file: Path) -> list[Caption]:
    """The prompts beside the judge. Raises CascadeError when there are none."""
    file = judge_file.parent / PROMPTS
    if not file.is_file():
        raise CascadeError(f"there are no prompts in {file}: give a file with --prompts.")
    return read_captions(file)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]
