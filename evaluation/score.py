"""What the judge says of a set of images, and the figures that follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from .captions import Caption
from .judge import FeatureMaker, Judge, features_of
from .metrics import NEIGHBOURS, accuracy, frechet, precision_recall

QUESTIONS = ("concept", "concept_top5", "nearest", "style", "background")
HELD_OUT = "held-out"  # the group that is compared with held-out real images


@dataclass(frozen=True)
class Scores:
    """Answers for each of n images: 1 right, 0 wrong, NaN not asked (float32 [n]).

    `concept` is the classifier's answer, `nearest` that of the nearest real image in its feature space (Gallery).
    `features` float32 [n, F] serve the distances; None where they are made of other features than the judge's.
    """

    concept: np.ndarray
    concept_top5: np.ndarray
    nearest: np.ndarray
    style: np.ndarray
    background: np.ndarray
    groups: tuple[str | None, ...]
    features: np.ndarray | None


@dataclass(frozen=True)
class Reference:
    """Features of real images [n, F], and which of them are held-out ones (bool [n])."""

    features: np.ndarray
    held_out: np.ndarray


@dataclass(frozen=True)
class Gallery:
    """The judge's features of every real image [m, F], held-out ones included, and their concepts int [m].

    Held-out images are not trained on, and in another style than the one that is, the classifier may not know
    their concept. To find them again is easier: it asks only that like images lie close together.
    """

    features: np.ndarray
    concepts: np.ndarray


def score_images(
    images: Sequence[Image.Image], captions: Sequence[Caption], judge: Judge | None, maker: FeatureMaker | None,
    gallery: Gallery | None = None,
) -> Scores:  # fmt: skip
    """Scores of images against their captions; distances use `maker`'s features, or else the judge's."""
    own = None if judge is None else features_of(judge.features, images)
    used = features_of(maker, images) if maker is not None else own
    if judge is None or own is None:
        empty = np.full(len(images), np.nan, np.float32)
        return Scores(empty, empty, empty, empty, empty, tuple(c.group for c in captions), used)
    seen = [background_of(image, judge.config.backgrounds) for image in images]
    return score_features(own, seen, captions, judge, used, gallery)


def score_features(
    own: np.ndarray, seen: Sequence[str], captions: Sequence[Caption], judge: Judge, used: np.ndarray | None,
    gallery: Gallery | None = None,
) -> Scores:  # fmt: skip
    """Scores from the judge's features [n, F] and the backgrounds that were seen, one name for each image."""
    config = judge.config
    with torch.inference_mode():
        concepts, styles = judge.heads(torch.from_numpy(np.asarray(own, np.float32)))
    best = concepts.topk(min(5, len(config.concepts))).indices.numpy()
    concept = _labels([c.concept for c in captions], config.concepts)
    style = _labels([c.style for c in captions], config.styles)
    names = tuple(config.backgrounds)
    found = np.full(len(own), -1) if gallery is None else gallery.concepts[(own @ gallery.features.T).argmax(1)]
    return Scores(
        nearest=_right(np.where(found >= 0, concept, -1), found == concept),
        concept=_right(concept, best[:, 0] == concept),
        concept_top5=_right(concept, (best == concept[:, None]).any(1)),
        style=_right(style, styles.argmax(1).numpy() == style),
        background=_right(
            _labels([c.background for c in captions], names),
            np.array([name == c.background for name, c in zip(seen, captions, strict=True)], bool),
        ),
        groups=tuple(c.group for c in captions),
        features=used,
    )


def _labels(wanted: Sequence[str | None], names: Sequence[str]) -> np.ndarray:
    """Index of each wanted label, -1 where none is asked for or the judge has none."""
    index = {name: i for i, name in enumerate(names)}
    return np.array([-1 if label is None else index.get(label, -1) for label in wanted], np.int64)


def _right(asked: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.where(asked >= 0, right.astype(np.float32), np.float32("nan"))


def background_of(image: Image.Image, colours: dict[str, tuple[int, int, int]]) -> str:
    """The named colour nearest to the median of the image's two outermost rows and columns."""
    pixels = np.asarray(image.convert("RGB"), np.float32)
    rim = np.concatenate([pixels[:2].reshape(-1, 3), pixels[-2:].reshape(-1, 3),
                          pixels[2:-2, :2].reshape(-1, 3), pixels[2:-2, -2:].reshape(-1, 3)])  # fmt: skip
    table = np.array(list(colours.values()), np.float32)
    return list(colours)[int(np.square(table - np.median(rim, axis=0)).sum(1).argmin())]


def figures(scores: Scores, reference: Reference | None) -> dict[str, Any]:
    """Plain numbers for JSON; None where a figure cannot be had (nothing asked, no reference, too few images)."""
    groups = sorted({group for group in scores.groups if group is not None})
    member = {group: np.array([g == group for g in scores.groups], bool) for group in groups}
    content: dict[str, Any] = {
        "images": len(scores.groups),
        **{question: accuracy(getattr(scores, question)) for question in QUESTIONS},
        "groups": {
            group: {"images": int(of.sum())} | {q: accuracy(getattr(scores, q)[of]) for q in QUESTIONS}
            for group, of in member.items()
        },
    }  # fmt: skip
    held = member.get(HELD_OUT, np.zeros(len(scores.groups), bool))
    return content | _distances(scores.features, held, reference)


def _distances(features: np.ndarray | None, held: np.ndarray, reference: Reference | None) -> dict[str, float | None]:
    content: dict[str, float | None] = dict.fromkeys(("frechet", "frechet_held_out", "precision", "recall"))
    if features is None or reference is None:
        return content
    if min(len(features), len(reference.features)) > NEIGHBOURS:
        content["frechet"] = frechet(reference.features, features)
        content["precision"], content["recall"] = precision_recall(reference.features, features)
    if min(held.sum(), reference.held_out.sum()) > NEIGHBOURS:
        content["frechet_held_out"] = frechet(reference.features[reference.held_out], features[held])
    return content
