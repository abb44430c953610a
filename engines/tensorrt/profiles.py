"""The static shapes that the runtime calls each engine with: one optimisation profile for each.

Graphs name their open dimensions: P prompts, R rows, N nodes, M pairs, N_hidden rows of hidden states. A profile
gives each name one number, so minimum, optimum and maximum are the same and dimensions of one name stay equal
over all inputs, which the KV update and attention layers insist on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...runtime.bundle import FIXED_NODES, FIXED_PAIRS, Manifest
from ...runtime.tree import AnyTree

Dims = dict[str, int]  # dimension name -> size


def guided(manifest: Manifest) -> bool:
    """Whether the bundle draws with guidance: rows are pairs then. (A scale of 1 runs on pairs as well.)"""
    return manifest.sampling.guidance_scale != 1


def largest_tree(manifest: Manifest) -> int:
    """Nodes of the bundle's largest tree with its root; 1 where it has no tree."""
    return max((tree.tree().size for tree in manifest.trees), default=1)


def pairs_of(tree: AnyTree) -> int:
    """Pairs M of a drafter's steady call: what a round can accept, and the root."""
    return tree.depth + 1


def engine_profiles(manifest: Manifest, engine: str, options: Mapping[str, Any] | None = None) -> list[Dims]:
    """The profiles of `engine`, for every number of prompts from 1 to the bundle's batch.

    target: the prefix (N = T), each tree (N = its nodes) and plain decoding (N = 1), largest first; or the builder
    `options`' fixed_nodes alone, where the engine takes one number of nodes.
    draft.*: the first call after the prefix (M = N_hidden = T), then the steady one (M = depth + 1); or both with
    fixed_pairs.
    embed: plain decoding (N = 1). condition, text, decode: once for each number of prompts.
    """
    length, options = manifest.model.prefix_len, options or {}
    calls: list[Dims] = [{}]
    if engine == "target":
        nodes = {length, 1, *(tree.tree().size for tree in manifest.trees)}
        nodes = {options[FIXED_NODES]} if FIXED_NODES in options else nodes
        calls = [{"N": n} for n in sorted(nodes, reverse=True)]
    elif engine == "embed":
        calls = [{"N": 1}]
    elif (tree := manifest.tree_of(engine)) is not None:
        first = {"M": options.get(FIXED_PAIRS, length), "N_hidden": length}
        calls = [first, {"M": pairs_of(tree), "N_hidden": tree.size}]
    profiles: list[Dims] = []
    for prompts in range(1, manifest.batch + 1):
        rows = 2 * prompts if guided(manifest) else prompts
        for call in calls:
            profile = {"P": prompts, "R": rows, **call}
            if profile not in profiles:
                profiles.append(profile)
    return profiles
