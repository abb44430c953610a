"""The static shapes that the runtime calls each engine with: one optimisation profile for each.

Graphs name their open dimensions: P slots, G rows of a slot, R rows in all, N nodes, L rows of noise, M pairs,
N_hidden rows of hidden states. A profile gives each name one number, so minimum, optimum and maximum are the same and
dimensions of one name stay equal over all inputs, which the KV update and attention layers insist on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...runtime.bundle import FIXED_NODES, FIXED_PAIRS, Manifest
from ...runtime.tree import AnyTree

Dims = dict[str, int]  # dimension name -> size


def guided(manifest: Manifest) -> bool:
    """Whether the bundle draws with guidance: rows are pairs then.

    The runtime draws with single rows where a call asks for a scale of 1, which no profile of such a bundle serves.
    """
    return manifest.sampling.guidance_scale != 1


def largest_tree(manifest: Manifest) -> int:
    """Nodes of the bundle's largest tree with its root; 1 where it has no tree."""
    return max((tree.tree().size for tree in manifest.trees), default=1)


def pairs_of(tree: AnyTree) -> int:
    """Pairs M of a drafter's steady call: what a round can accept, and the root."""
    return tree.depth + 1


def engine_profiles(manifest: Manifest, engine: str, options: Mapping[str, Any] | None = None) -> list[Dims]:
    """The profiles of `engine`: calls on 1 to the bundle's batch of slots, and those that fill a single slot.

    target: the prefix (N = T, one slot), each tree (N = its nodes, L = its levels and one) and plain decoding (N = 1),
    largest first; with the builder `options`' fixed_nodes, where the engine takes one number of nodes, in place of N.
    draft.*: the first call after the prefix (M = N_hidden = T, one slot), then the steady one (M = depth + 1); or both
    with fixed_pairs.
    embed: plain decoding (N = 1). condition, text, decode: one image at a time.
    """
    length, options = manifest.model.condition.length, options or {}
    filling: list[Dims] = [{}]  # calls on one slot
    steady: list[Dims] = []  # calls on any number of slots
    if engine == "target":
        trees = [tree.tree() for tree in manifest.trees]
        filling = [{"N": length, "L": 1}]
        steady = [{"N": 1, "L": 1}, *({"N": tree.size, "L": tree.depth + 1} for tree in trees)]
        if FIXED_NODES in options:
            filling, steady = ([call | {"N": options[FIXED_NODES]} for call in calls] for calls in (filling, steady))
    elif engine == "embed":
        filling, steady = [], [{"N": 1}]
    elif (tree := manifest.tree_of(engine)) is not None:
        filling = [{"M": options.get(FIXED_PAIRS, length), "N_hidden": length}]
        steady = [{"M": pairs_of(tree), "N_hidden": tree.size}]
    rows = 2 if guided(manifest) else 1
    profiles: list[Dims] = []
    for slots in range(1, manifest.batch + 1):
        calls = [*(filling if slots == 1 else []), *steady]
        for call in sorted(calls, key=lambda call: -max(call.get("N", 0), call.get("M", 0))):
            profile = {"P": slots, "R": slots * rows, "G": rows, **call}
            if profile not in profiles:
                profiles.append(profile)
    return profiles
