"""Which form attention takes in a plan, so that TensorRT-RTX reads the KV cache where it lies.

Before its attention kernel for several nodes, TensorRT-RTX 1.7.1 copies keys and values [R, H, S, D] to [R H, S, D] in
layers of their own: the whole cache, in every call. Two other forms of the same attention take the cache as it is; the
parsed network is rewritten to one of them (`grouping.py`), and the ONNX file stays as it is. docs/tensorrt.md has the
layer counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from .target import Target

_AMPERE, _ADA = (8, 0), (8, 9)


class AttentionForm(StrEnum):
    """PLAIN is the graph's own. DOUBLED computes every query head twice; it suffices from Ada on. NODES makes query
    heads of the nodes: for Ampere and newer, but with one fixed number of nodes in every call, of pairs in a drafter's
    (`runtime/backends/tensorrt_shapes.py`)."""

    PLAIN = "plain"
    DOUBLED = "doubled query heads"
    NODES = "nodes as query heads"


def attention_form(targets: Sequence[Target], precision: str, nodes: int) -> AttentionForm:
    """The form in which all `targets`, which share a plan, read the cache in place; PLAIN where none is known.

    `nodes` is how many every call of the engine would have in the form NODES: the most nodes of a target call, or a
    drafter's pairs. With a single one the plain form copies nothing but in the prefix's one call, which NODES would
    split into a call for each slot. Only TensorRT-RTX's fused attention (half precisions) has been looked at.
    """
    if precision not in ("fp16", "bf16") or any(target.backend != "tensorrt-rtx" for target in targets):
        return AttentionForm.PLAIN
    oldest = min(target.compute_capability or (0, 0) for target in targets)
    if oldest >= _ADA:
        return AttentionForm.DOUBLED
    return AttentionForm.NODES if oldest >= _AMPERE and nodes > 1 else AttentionForm.PLAIN
