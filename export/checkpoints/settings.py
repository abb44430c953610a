"""Values of config files and options, checked as they are read."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.bundle import SamplingDefaults
from ...runtime.errors import CascadeError
from ...runtime.nearest import meant
from ...runtime.plan import LARGEST_SIDE
from ...runtime.rules import get_rule
from ...runtime.rules.states import StateTable
from .reading import refuse_pointer, shown, spelt

_PUBLISHED = ("model_type", "architectures", "transformers_version")
_LARGEST = (1 << 31) - 1
_NO_STATES = StateTable(np.zeros((1, 1), np.float16), np.ones(1, np.float32))


def check_names(settings: Mapping[str, Any], known: Sequence[str], file: Path) -> None:
    """Raises CascadeError for an entry of a config that is not among the `known` ones, with the one that was meant.

    A config that another program wrote for its model has many that say nothing here; those of transformers name the
    kind of model, and are taken with all that they hold.
    """
    if any(mark in settings for mark in _PUBLISHED):
        return
    for name in settings:
        if name not in known:
            raise CascadeError(
                f"{file} has the entry {spelt(name)}{meant(name, known)}, which is not read: correct it, or leave it "
                f"out; known are {', '.join(known)}."
            )


def older_rotation(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A config of transformers with its rotation under the names `rope_theta` and `rope_scaling`: version 5 writes both
    as one, `rope_parameters`. A scaling of the kind "default" is none."""
    newer = settings.get("rope_parameters")
    found = {name: value for name, value in settings.items() if value is not None}
    if isinstance(newer, dict):
        found = {"rope_theta": newer.get("rope_theta"), "rope_scaling": newer} | found
    scaling = found.get("rope_scaling")
    if isinstance(scaling, dict) and scaling.get("rope_type", scaling.get("type", "default")) == "default":
        found["rope_scaling"] = None
    return found


def check_grid(grid: int) -> int:
    """The side of the token grid as given. Raises CascadeError when it cannot be one (pixels, as a rule)."""
    if not 1 <= grid <= LARGEST_SIDE:
        raise CascadeError(
            f"the grid must be a whole number from 1 to {LARGEST_SIDE}, not {grid}: it counts tokens, 16 for 256 px."
        )
    return grid


def whole(settings: Mapping[str, Any], name: str, default: int) -> int:
    """The positive whole number called `name`, or the default where it is absent or null.

    Raises CascadeError for anything else: text, fractions, zero, negative and enormous numbers.
    """
    value = settings.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _LARGEST:
        raise CascadeError(f"{name} must be a positive whole number, not {shown(value)}: correct the config.")
    return value


def index(settings: Mapping[str, Any], name: str, default: int, count: int) -> int:
    """The whole number called `name`, from 0 to `count` - 1, or the default. Raises CascadeError as `whole` does."""
    value = settings.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < count:
        raise CascadeError(
            f"{name} must be a whole number from 0 to {count - 1}, not {shown(value)}: correct the config."
        )
    return value


def positive(
    settings: Mapping[str, Any], name: str, default: float, least: float = 1e-12, most: float = 1e12
) -> float:
    """The number called `name`, from `least` to `most`, or the default. Raises CascadeError as `whole` does."""
    value = settings.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise CascadeError(
            f"{name} must be a positive number from {least:g} to {most:g}, not {shown(value)}: correct the config."
        )
    return float(value)


def one_of(settings: Mapping[str, Any], name: str, known: Sequence[str]) -> str | None:
    """The text called `name`, None where it is absent or null. Raises CascadeError for what is not among `known`."""
    value = settings.get(name)
    if value is not None and value not in known:
        raise CascadeError(f"{name} must be one of {', '.join(known)}, not {shown(value)}: correct the config.")
    return value


def rules(settings: Mapping[str, Any]) -> dict[str, str]:
    """`rules`: acceptance rules by their bare name, with the settings that suit the weights ({} where absent).

    Raises CascadeError for anything but rules that spell out their own name.
    """
    found = settings.get("rules") or {}
    if not isinstance(found, Mapping):
        raise CascadeError(f"rules must map names to rules with settings, not {shown(found)}: correct the config.")
    for name, rule in found.items():
        if not isinstance(rule, str) or rule.partition(":")[0] != name:
            key = spelt(name)
            raise CascadeError(f"rules: {key} must be spelt {key}:setting=value, not {shown(rule)}: correct it.")
        get_rule(rule, np.zeros((1, 1), np.int64), _NO_STATES)  # settings are checked; the tables play no part
    return dict(found)


def sampling_of(settings: Mapping[str, Any], usual: SamplingDefaults, codes: int) -> SamplingDefaults:
    """What a model of `codes` codes is drawn with where nothing is said: `cfg_scale`, `temperature`, `top_k`, `top_p`,
    or the model's `usual` ones. Raises CascadeError for what cannot be drawn with."""
    return SamplingDefaults(
        positive(settings, "cfg_scale", usual.guidance_scale, most=1000),
        positive(settings, "temperature", usual.temperature, least=1e-3, most=1000),
        min(whole(settings, "top_k", usual.top_k), codes),
        min(positive(settings, "top_p", usual.top_p), 1.0),
    )


def state_table(settings: Mapping[str, Any], folder: Path, shape: tuple[int, int]) -> StateTable | None:
    """`states`: the file in `folder` with CASCADE's table of states (None where absent).

    Raises CascadeError for a file that is missing or damaged, or belongs to a model of another `shape` (V, D).
    """
    name = settings.get("states")
    if name is None:
        return None
    file = folder / name if isinstance(name, str) else folder
    if not os.path.isfile(file):  # False too for a name that no file can have
        raise CascadeError(f"states: {shown(name)} cannot be read, as {folder} has no such file: correct the config.")
    refuse_pointer(file)
    return StateTable.load(file, shape)
