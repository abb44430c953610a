"""Checks of what a caller asks for, before any engine runs. Every refusal says what to do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .bundle import Manifest
from .errors import CascadeError
from .sampling import Sampling

_MAX_SEED = 2**63


@dataclass(frozen=True)
class Conditioning:
    """What to draw: prompts, their token ids int64 [P, T], text features [P, T, C], or class ids [P].

    Token ids and features come with their mask bool [P, T].
    """

    prompts: Sequence[str] | None = None
    ids: np.ndarray | None = None
    features: np.ndarray | None = None
    mask: np.ndarray | None = None
    class_ids: np.ndarray | None = None

    def __len__(self) -> int:
        for given in (self.prompts, self.ids, self.features, self.class_ids):
            if given is not None:
                return len(given)
        return 0

    def part(self, part: slice) -> Conditioning:
        return Conditioning(
            None if self.prompts is None else self.prompts[part],
            None if self.ids is None else self.ids[part],
            None if self.features is None else self.features[part],
            None if self.mask is None else self.mask[part],
            None if self.class_ids is None else self.class_ids[part],
        )


def check_conditioning(
    manifest: Manifest,
    prompts: Sequence[str] | str | None,
    features: np.ndarray | None,
    features_mask: np.ndarray | None,
    class_ids: Sequence[int] | None,
) -> Conditioning:
    """Exactly one kind of conditioning, of the kind the model takes."""
    model = manifest.model
    if sum(given is not None for given in (prompts, features, class_ids)) != 1:
        raise CascadeError("give exactly one of prompts, features and class_ids.")
    if features_mask is not None and features is None:
        raise CascadeError("features_mask belongs to features: leave it out with prompts and class_ids.")
    if model.condition == "class":
        if class_ids is None:
            raise CascadeError(
                f"{manifest.name} draws classes: give class_ids from 0 to {(model.num_classes or 0) - 1}."
            )
        return Conditioning(class_ids=_check_class_ids(class_ids, model.num_classes or 0))
    if class_ids is not None:
        raise CascadeError(f"{manifest.name} draws from text: give prompts, not class_ids.")
    if prompts is not None:
        return Conditioning(prompts=_check_prompts(manifest, prompts))
    return _check_features(manifest, np.asarray(features), features_mask)


def _check_prompts(manifest: Manifest, prompts: Sequence[str] | str) -> list[str]:
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise CascadeError("prompts must be a non-empty list of texts.")
    for number, prompt in enumerate(prompts, start=1):
        if not prompt.strip():
            raise CascadeError(f"prompt {number} is empty: say what to draw.")
        if not prompt.isascii() and any("\ud800" <= letter <= "\udfff" for letter in prompt):
            raise CascadeError(f"prompt {number} is not valid Unicode text: give it in UTF-8.")
    if manifest.text is None:
        raise CascadeError(
            f"bundle {manifest.name} was built with --text none: give features, or build it with a text encoder."
        )
    return prompts


def _check_class_ids(class_ids: Sequence[int], classes: int) -> np.ndarray:
    ids = np.asarray(class_ids)
    if ids.ndim != 1 or not len(ids) or not np.issubdtype(ids.dtype, np.integer):
        raise CascadeError("class_ids must be a non-empty list of integers.")
    if ids.min() < 0 or ids.max() >= classes:
        raise CascadeError(f"class_ids must lie between 0 and {classes - 1}.")
    return ids.astype(np.int64)


def _check_features(manifest: Manifest, features: np.ndarray, mask: np.ndarray | None) -> Conditioning:
    length, width = manifest.model.prefix_len, manifest.model.caption_dim
    if features.ndim != 3 or features.shape[1:] != (length, width) or not len(features):
        raise CascadeError(
            f"features must have the shape [P, {length}, {width}], not {list(features.shape)}."
        )
    if mask is None:
        mask = np.ones(features.shape[:2], bool)
    mask = np.asarray(mask).astype(bool)
    if mask.shape != features.shape[:2]:
        raise CascadeError(
            f"features_mask must have the shape {list(features.shape[:2])}, not {list(mask.shape)}."
        )
    if not mask.any(axis=1).all():
        raise CascadeError("features_mask hides every slot of a prompt: mark the slots that hold features.")
    if not np.isfinite(features[mask]).all():
        raise CascadeError("features hold NaN or infinite values.")
    # LlamaGen moves the valid slots to the end, whichever side the caller padded, and zeroes the others.
    order = np.argsort(mask, axis=1, kind="stable")
    mask = np.take_along_axis(mask, order, axis=1)
    features = np.take_along_axis(features, order[:, :, None], axis=1)
    return Conditioning(features=np.where(mask[:, :, None], features, 0), mask=mask)


def check_seeds(seed: int | Sequence[int], count: int) -> list[int]:
    """Seeds of `count` pictures: seed + i, or the given ones."""
    given = [seed] if isinstance(seed, (int, np.integer)) else seed
    if not isinstance(given, (Sequence, np.ndarray)) or not all(
        isinstance(s, (int, np.integer)) and not isinstance(s, bool) for s in given
    ):
        raise CascadeError("a seed must be a whole number, or a list of one for each picture.")
    seeds = [int(seed) + i for i in range(count)] if given is not seed else [int(s) for s in given]  # type: ignore[arg-type]
    if len(seeds) != count:
        raise CascadeError(f"there are {len(seeds)} seeds for {count} pictures: give one each, or one in all.")
    if any(not 0 <= s < _MAX_SEED for s in seeds):
        raise CascadeError("a seed must lie between 0 and 2**63 - 1.")
    return seeds


def check_sampling(
    manifest: Manifest,
    guidance_scale: float | None,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
) -> Sampling:
    """The caller's settings over the bundle's defaults."""
    defaults = manifest.sampling
    sampling = Sampling(
        defaults.guidance_scale if guidance_scale is None else float(guidance_scale),
        defaults.temperature if temperature is None else float(temperature),
        defaults.top_k if top_k is None else int(top_k),
        defaults.top_p if top_p is None else float(top_p),
    )
    kept, most, vocab = manifest.target.top_k, manifest.target.max_top_k, manifest.model.vocab_size
    if not math.isfinite(sampling.guidance_scale) or sampling.guidance_scale < 0:
        raise CascadeError("guidance_scale must be a number of at least 0 (1 switches guidance off).")
    if not math.isfinite(sampling.temperature) or not (sampling.temperature == 0 or sampling.temperature >= 1e-3):
        raise CascadeError("temperature must be 0 (greedy) or a number of at least 0.001.")
    if not 0 < sampling.top_p <= 1:
        raise CascadeError("top_p must lie above 0 and at most at 1 (1 switches it off).")
    if sampling.top_k < 0:
        raise CascadeError("top_k must be at least 0 (0 switches it off).")
    if sampling.top_k > most or (sampling.top_k == 0 and kept < vocab and not sampling.greedy):
        asked = "no top_k" if sampling.top_k == 0 else f"top_k {sampling.top_k}"
        raise CascadeError(
            f"{asked} asks for more logits than the {most} that this bundle was built for: "
            f"lower it, or build again with --max-top-k {sampling.top_k or vocab}."
        )
    return sampling
