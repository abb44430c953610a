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


def drawn_trees(manifest: Manifest) -> list[AnyTree]:
    """The trees that engines have profiles for: those that the bundle was built with, or the one that it draws with
    where it was built with none."""
    return [info.tree() for info in manifest.trees or [manifest.tree(None)]]


def steady_pairs(manifest: Manifest, engine: str) -> list[tuple[int, int]]:
    """(M, N_hidden) of a draft engine's steady calls, one for each tree that it drafts for: the most pairs that a round
    leaves, a token accepted at each level and the bonus token, and the nodes verified. Empty for any other engine."""
    trees = [info.tree() for info in manifest.trees if info.engine == engine]
    return [(tree.depth + 1, tree.size) for tree in trees]


def _states_read(manifest: Manifest) -> list[tuple[int, int]]:
    """(M, N_hidden) of calls that read what a target call has left: of each tree, whichever engine drafts it, for a
    batch may change trees between two rounds; of plain decoding; and of any other tree."""
    trees = drawn_trees(manifest)
    calls = [(tree.depth + 1, tree.size) for tree in trees]
    return list(dict.fromkeys([*calls, (1, 1), (manifest.most_nodes, manifest.most_nodes)]))


def engine_profiles(manifest: Manifest, engine: str, options: Mapping[str, Any] | None = None) -> list[Dims]:
    """The profiles of `engine`: calls on 1 to the bundle's batch of slots, and those that fill a single slot.

    target: the prefix (N = T, one slot), each tree (N = its nodes, L = its levels and one), plain decoding (N = 1), and
    the most nodes and levels of a call, for trees that the bundle was not built with, largest first; with the builder
    `options`' fixed_nodes, where the engine takes one number of nodes, one call of so many.
    draft.*: the first call after the prefix (M = N_hidden = T, one slot), then those behind each target call; with
    fixed_pairs, M is that in both, and N_hidden in the steady one that of a target with fixed_nodes.
    embed: plain decoding (N = 1), each tree with guesses (N = its nodes), the most nodes of a call.
    condition, text, decode: one image at a time.
    """
    length, options = manifest.model.condition.length, options or {}
    filling: list[Dims] = [{}]  # calls on one slot
    steady: list[Dims] = []  # calls on any number of slots
    if FIXED_NODES in options:
        filling, steady = [], [{"N": options[FIXED_NODES], "L": manifest.most_nodes}]
    elif engine == "target":
        filling = [{"N": length, "L": 1}]
        steady = [{"N": tree.size, "L": tree.depth + 1} for tree in drawn_trees(manifest)]
        steady += [{"N": 1, "L": 1}, {"N": manifest.most_nodes, "L": manifest.most_nodes}]
    elif engine == "embed":
        guessed = [tree.size for tree in drawn_trees(manifest) if tree.guessed]
        filling, steady = [], [{"N": size} for size in sorted({1, *guessed, manifest.most_nodes})]
    elif FIXED_PAIRS in options:
        filling = [{"M": options[FIXED_PAIRS], "N_hidden": length}]
        steady = [{"M": options[FIXED_PAIRS], "N_hidden": manifest.most_nodes}]
    elif steady_pairs(manifest, engine):
        filling = [{"M": length, "N_hidden": length}]
        steady = [{"M": count, "N_hidden": nodes} for count, nodes in _states_read(manifest)]
    steady.sort(key=lambda call: [-size for _, size in sorted(call.items())])  # in whatever order the trees are
    rows = 2 if guided(manifest) else 1
    profiles: list[Dims] = []
    for slots in range(1, manifest.batch + 1):
        calls = [*(filling if slots == 1 else []), *steady]
        for call in sorted(calls, key=lambda call: -max(call.get("N", 0), call.get("M", 0))):
            profile = {"P": slots, "R": slots * rows, "G": rows, **call}
            if profile not in profiles:
                profiles.append(profile)
    return profiles
