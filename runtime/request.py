"""Checks of what a caller asks for, before any engine runs. Every refusal says what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .bundle import CLASS, TOKENS, Manifest
from .errors import CascadeError
from .options import DrawOptions, check_sampling
from .prompts import PromptEncoder
from .rulebook import Rulebook
from .rules import Rule
from .sampling import Sampling
from .schema import short
from .tree import AUTO

_MAX_SEED = 2**63


@dataclass(frozen=True)
class Request:
    """One image: exactly one of a prompt, text features [T, C] (with their mask bool [T]) and a class id."""

    prompt: str | None = None
    features: np.ndarray | None = None
    features_mask: np.ndarray | None = None
    class_id: int | None = None
    seed: int = 0
    options: DrawOptions = field(default_factory=DrawOptions)


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

    def one(self, index: int) -> Conditioning:
        """That of one image, P = 1."""
        part = slice(index, index + 1)
        return Conditioning(
            None if self.prompts is None else self.prompts[part],
            None if self.ids is None else self.ids[part],
            None if self.features is None else self.features[part],
            None if self.mask is None else self.mask[part],
            None if self.class_ids is None else self.class_ids[part],
        )


@dataclass(frozen=True)
class Drawing:
    """A checked request of one image: `conditioning` has P = 1; `rule` None is plain decoding."""

    conditioning: Conditioning
    seed: int
    sampling: Sampling
    rule: Rule | None
    tree: str | None
    why: str = ""  # this tree
    timeout: float | None = None
    warnings: tuple[str, ...] = ()

    @property
    def bound(self) -> str | None:
        """The tree that this image has to be drawn with; None where any will do."""
        return None if self.tree == AUTO else self.tree


@dataclass(frozen=True)
class Checker:
    """Turns what a caller asks for into drawings; raises CascadeError before any engine runs."""

    manifest: Manifest
    rulebook: Rulebook
    encoder: PromptEncoder | None

    def one(self, request: Request) -> Drawing:
        """A single image."""
        features, mask = request.features, request.features_mask
        return self.all(
            None if request.prompt is None else [request.prompt],
            None if features is None else _numbers("features", features)[None],
            None if mask is None else _numbers("features_mask", mask)[None],
            None if request.class_id is None else [request.class_id],
            [request.seed], request.options,
        )[0]  # fmt: skip

    def all(
        self, prompts: Sequence[str] | str | None, features: np.ndarray | None, features_mask: np.ndarray | None,
        class_ids: Sequence[int] | None, seed: int | Sequence[int], options: DrawOptions,
    ) -> list[Drawing]:  # fmt: skip
        """One drawing for each prompt, row of features or class id, with the same options."""
        conditioning = check_conditioning(self.manifest, prompts, features, features_mask, class_ids)
        seeds = check_seeds(seed, len(conditioning))
        sampling = check_sampling(self.manifest, options)
        chosen = self.rulebook.choose(options.rule, options.tree, sampling)
        warnings: list[tuple[str, ...]] = [()] * len(conditioning)
        if conditioning.prompts is not None and self.encoder is not None:
            encoded = self.encoder.encode(conditioning.prompts)
            _check_ids(self.manifest, encoded.ids)
            conditioning, warnings = Conditioning(ids=encoded.ids, mask=encoded.mask), encoded.warnings
        return [
            Drawing(conditioning.one(i), seed, sampling, chosen.rule, chosen.tree, chosen.why, options.timeout, said)
            for i, (seed, said) in enumerate(zip(seeds, warnings, strict=True))
        ]


def check_conditioning(
    manifest: Manifest,
    prompts: Sequence[str] | str | None,
    features: np.ndarray | None,
    features_mask: np.ndarray | None,
    class_ids: Sequence[int] | None,
) -> Conditioning:
    """Exactly one kind of conditioning, of the kind the model takes."""
    condition = manifest.model.condition
    if sum(given is not None for given in (prompts, features, class_ids)) != 1:
        raise CascadeError("give exactly one of prompts, features and class_ids.")
    if features_mask is not None and features is None:
        raise CascadeError("features_mask belongs to features: leave it out with prompts and class_ids.")
    if condition.kind == CLASS:
        if class_ids is None:
            raise CascadeError(f"{manifest.name} draws classes: give class_ids from 0 to {condition.classes - 1}.")
        return Conditioning(class_ids=_check_class_ids(class_ids, condition.classes))
    if class_ids is not None:
        raise CascadeError(f"{manifest.name} draws from text: give prompts, not class_ids.")
    if features is not None and condition.kind == TOKENS:
        raise CascadeError(f"{manifest.name} reads prompts as token ids: give prompts, not features.")
    if prompts is not None:
        return Conditioning(prompts=_check_prompts(manifest, prompts))
    return _check_features(manifest, features, features_mask)


def _check_prompts(manifest: Manifest, prompts: Sequence[str] | str) -> list[str]:
    if not isinstance(prompts, Sequence):
        raise CascadeError(f"prompts must be a text or a list of texts, not {short(prompts)}.")
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise CascadeError("prompts must be a non-empty list of texts.")
    for number, prompt in enumerate(prompts, start=1):
        if not prompt.strip() and manifest.model.condition.kind != TOKENS:
            raise CascadeError(f"prompt {number} is empty: say what to draw.")
        if not prompt.isascii() and any("\ud800" <= letter <= "\udfff" for letter in prompt):
            raise CascadeError(f"prompt {number} is not valid Unicode text: give it in UTF-8.")
    if manifest.text is None:
        bench = " (or see with `cascade-trt bench` what it costs: its weights are random)" * manifest.dummy_weights
        raise CascadeError(
            f"bundle {manifest.name} has no text encoder: give features{bench}, or build it with `--text FOLDER`."
        )
    return prompts


def _check_ids(manifest: Manifest, ids: np.ndarray) -> None:
    """Raises CascadeError where the tokenizer knows more than the model."""
    condition = manifest.model.condition
    if condition.kind == TOKENS and ids.max() >= condition.vocabulary:
        raise CascadeError(
            f"the tokenizer of bundle {manifest.name} makes the token {ids.max()} of a prompt, the model knows "
            f"{condition.vocabulary}: build the bundle again with its own tokenizer."
        )


def _check_class_ids(class_ids: Sequence[int], classes: int) -> np.ndarray:
    ids = _numbers("class_ids", class_ids)
    if ids.ndim != 1 or not len(ids) or not np.issubdtype(ids.dtype, np.integer):
        raise CascadeError("class_ids must be a non-empty list of integers.")
    if ids.min() < 0 or ids.max() >= classes:
        raise CascadeError(f"class_ids must lie between 0 and {classes - 1}.")
    return ids.astype(np.int64)


def _check_features(manifest: Manifest, given: object, mask: np.ndarray | None) -> Conditioning:
    length, width = manifest.model.condition.length, manifest.model.condition.width
    features = _numbers("features", given)
    if features.ndim != 3 or features.shape[1:] != (length, width) or not len(features):
        raise CascadeError(
            f"features must have the shape [P, {length}, {width}], not {list(features.shape)}: a prefix has {length} "
            "slots, so pad shorter features, and let the mask hide the padding."
        )
    shown = _check_mask(mask, features.shape[:2])
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
        features = features.astype(np.float32)
    if not np.isfinite(features[shown]).all():
        raise CascadeError("features hold NaN or infinite values, or values that float32 cannot hold.")
    # LlamaGen moves the valid slots to the end, whichever side the caller padded, and zeroes the others.
    order = np.argsort(shown, axis=1, kind="stable")
    shown = np.take_along_axis(shown, order, axis=1)
    features = np.take_along_axis(features, order[:, :, None], axis=1)
    return Conditioning(features=np.where(shown[:, :, None], features, 0), mask=shown)


def _check_mask(given: object, shape: tuple[int, ...]) -> np.ndarray:
    """bool [P, T]; None shows every slot."""
    if given is None:
        return np.ones(shape, bool)
    mask = _numbers("features_mask", given)
    if mask.shape != shape:
        raise CascadeError(f"features_mask must have the shape {list(shape)}, not {list(mask.shape)}.")
    if not ((mask == 0) | (mask == 1)).all():  # such as 0 and -inf, which are added to scores elsewhere
        raise CascadeError("features_mask must hold truth values, or 1 for slots that hold features and 0 for others.")
    mask = mask.astype(bool)
    if not mask.any(axis=1).all():
        raise CascadeError("features_mask hides every slot of a prompt: mark the slots that hold features.")
    return mask


def _numbers(name: str, given: object) -> np.ndarray:
    """An array of numbers or truth values; small floats that numpy does not know (bfloat16) become float32. Raises
    CascadeError for anything else."""
    try:
        array = np.asarray(given)
        if array.dtype.kind == "V" and array.dtype.type is not np.void:
            array = array.astype(np.float32)
    except Exception as error:  # rows of different lengths; tensors of other libraries say why they are no arrays
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CascadeError(f"{name} must be an array of numbers, which this is not ({reason:.200}).") from None
    if array.dtype.kind not in "fiub":
        raise CascadeError(f"{name} must be an array of numbers.")
    return array


def check_seeds(seed: int | Sequence[int], count: int) -> list[int]:
    """Seeds of `count` images: seed + i, or the given ones."""
    seeds = [int(seed) + i for i in range(count)] if _is_whole(seed) else _seeds_of(seed)  # type: ignore[arg-type]
    if len(seeds) != count:
        raise CascadeError(f"there are {len(seeds)} seeds for {count} images: give one each, or one in all.")
    if any(not 0 <= s < _MAX_SEED for s in seeds):
        raise CascadeError("a seed must lie between 0 and 2**63 - 1.")
    return seeds


def _seeds_of(given: Any) -> list[int]:
    is_list = isinstance(given, Sequence) and not isinstance(given, str | bytes | bytearray)
    is_list = is_list or (isinstance(given, np.ndarray) and given.ndim == 1)
    if not is_list or not all(map(_is_whole, given)):
        raise CascadeError("a seed must be a whole number, or a list of one for each image.")
    return [int(s) for s in given]


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
