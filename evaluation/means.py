"""What images are judged with, and what is drawn for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..runtime.errors import CascadeError
from .captions import Caption, read_captions, understand
from .images import read_folder
from .judge import FeatureMaker, Judge, features_of, load_features, load_judge
from .real import judge_prompts, load_real
from .score import Gallery, Reference

_WEIGHTS = Path(__file__).resolve().parent.parent / "examples" / "emoji" / "weights"
DEFAULT_JUDGE = _WEIGHTS / "judge.safetensors"


@dataclass(frozen=True)
class Means:
    """What images are judged with: the judge, other features for the distances, features of real images."""

    judge: Judge | None
    maker: FeatureMaker | None
    reference: Reference | None
    gallery: Gallery | None
    judge_file: Path | None


def load_means(judge: str | None, features: Path | None = None, reference: Path | None = None) -> Means:
    """`judge` is a file, "none", or None for the demo's. Raises CascadeError for files that do not fit."""
    if judge == "none" and features is None:
        raise CascadeError("without a judge there is nothing to measure: leave --judge none away, or add --features.")
    file = None if judge == "none" else DEFAULT_JUDGE if judge is None else Path(judge)
    loaded = None if file is None else load_judge(file)
    maker = None if features is None else load_features(features)
    real = load_real(file) if file is not None else None
    gallery = real.gallery if real is not None else None
    if reference is not None:
        used = maker or (loaded.features if loaded is not None else None)
        assert used is not None  # one of both is there
        made = features_of(used, read_folder(reference))
        return Means(loaded, maker, Reference(made, np.zeros(len(made), bool)), gallery, file)
    return Means(loaded, maker, real.reference if real is not None and maker is None else None, gallery, file)


def captions_to_draw(file: Path | None, means: Means, count: int) -> list[Caption]:
    """`count` captions: the file's, or the judge's own, from the first again after the last."""
    if file is None and means.judge_file is None:
        raise CascadeError("without a judge there are no prompts: give a file with --prompts.")
    given = read_captions(file) if file is not None else judge_prompts(means.judge_file or DEFAULT_JUDGE)
    given = understand(given, means.judge.config) if means.judge is not None else given
    return [replace(given[i % len(given)], file=None) for i in range(count)]
