"""The judge of images, for commands that can do without one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime.errors import CascadeError

if TYPE_CHECKING:
    from ..evaluation.means import Means


def judge_with(judge: str | None, features: Path | None = None, reference: Path | None = None) -> Means:
    """`evaluation.means.load_means`, with a sentence when the packages that judging needs are missing."""
    try:
        from ..evaluation.means import load_means
    except ImportError as error:
        raise CascadeError(
            f"{error.name} is not installed: run `pip install 'cascade-trt[eval]'` to judge images."
        ) from None
    return load_means(judge, features, reference)
