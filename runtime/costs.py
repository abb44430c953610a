"""What a round costs: the target on a number of nodes, a draft engine, and the host, by images at the same time.

Measured by `calibrate costs` and kept in the bundle (`CostInfo`), or measured when they are first needed.
"""

from __future__ import annotations

import math
import statistics
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

from .backends import Identity
from .bundle import CostInfo, Manifest
from .drafting import Eagle, Jacobi, Mixed
from .errors import CascadeError
from .lane import Lane
from .tree import JACOBI, ROOT, AnyTree, chains
from .workspace import Workspace

REPEATS = 9
_LEAST = 0.01  # ms of a draft call, and of a round outside the engines, at least
PAIRS = 6  # newest pairs that a draft call reads while it is measured: those of an ordinary round


@dataclass(frozen=True)
class Measured:
    """Milliseconds, the fields of `CostInfo` with these names."""

    target: list[list[float]]
    draft: dict[str, list[float]]


class Costs:
    """Milliseconds of rounds, interpolated between what was measured."""

    def __init__(self, info: CostInfo) -> None:
        """Raises CascadeError for figures that cannot be right."""
        if (problem := info.problem()) is not None:
            raise CascadeError(f"the bundle's costs on {info.machine} have {problem}: run `calibrate costs` again.")
        self.info = info
        self._of = lru_cache(maxsize=4096)(self._sum)  # asked before every round, about a few dozen trees

    def knows(self, engine: str | None) -> bool:
        """Whether the calls of this draft engine were measured (None: there is none to measure)."""
        return engine is None or engine in self.info.draft

    def whole(self, name: str, busy: int) -> float | None:
        """Milliseconds of a round of `busy` images with the tree `name` (`none`: plain decoding), its tokens included,
        as images took them; None where that was not measured."""
        row = self.info.rounds.get(name)
        return None if row is None else _line(busy, self.info.slots, row)

    def of(self, tree: AnyTree, engine: str | None, busy: int) -> float:
        """Milliseconds of a round of `busy` images with `tree`, of which `engine` drafts something (None: nothing).

        Each token that it brings costs `info.token` more. Plain decoding is a tree of one node. Beyond the measured
        sizes the last slope goes on, but never below the nearest measured size. Raises KeyError for an engine that
        was not measured.
        """
        return self._of(tree.size, engine, busy)

    def _sum(self, nodes: int, engine: str | None, busy: int) -> float:
        info = self.info
        ms = _line(busy, info.slots, [_line(nodes, info.nodes, row) for row in info.target])
        if engine is not None:
            ms += _line(busy, info.slots, info.draft[engine])
        return ms + busy * info.host


def _line(at: float, known: Sequence[int], values: Sequence[float]) -> float:
    """`values` at the rising places `known`, interpolated; the last slope goes on, but never downwards."""
    if at <= known[0] or len(known) == 1:
        return values[0]
    right = min(bisect_right(known, at), len(known) - 1)
    left = right - 1
    share = (at - known[left]) / (known[right] - known[left])
    found = values[left] + share * (values[right] - values[left])
    return max(found, values[-1]) if at > known[-1] else found


def stored(manifest: Manifest, backend: str, version: str, machine: str, threads: int) -> CostInfo | None:
    """What the bundle knows of rounds on this backend, its version, this machine and number of threads."""
    wanted = backend, version, machine, threads
    found = (
        info for info in manifest.costs if (info.backend, info.backend_version, info.machine, info.threads) == wanted
    )
    return next(found, None)


def measure(
    lane_of: Callable[[AnyTree], Lane], slots: Sequence[int], nodes: Sequence[int],
    drafted: Mapping[str, AnyTree], repeats: int = REPEATS, within: float = math.inf,
    note: Callable[[], None] = lambda: None,
) -> Measured:  # fmt: skip
    """Median milliseconds of target calls on each number of slots and nodes, and of calls of the draft engines.

    `lane_of` gives the lane of a tree, with memory for the most slots; `drafted` has a tree for
    each draft engine. Embedding the nodes is part of a target call. Drafter and target push each other out of the
    processor's caches, so a draft call is what a round of its tree takes more than its target call alone, and every
    call is measured behind one of its own kind. Sizes are measured in turn, so that a drifting machine hits all
    alike; the first of `repeats` + 1 turns warms up. After `within` seconds there is no further turn but the second.
    `note` is told of each.
    """
    calls: dict[tuple[str | int, int], Callable[[], float]] = {}
    for count in nodes:
        lane = lane_of(ROOT if count == 1 else chains("cost", [count - 1], JACOBI))
        _in_the_middle(lane)
        calls |= {(count, busy): partial(_verify, lane, busy) for busy in slots}
    for engine, tree in drafted.items():
        lane = lane_of(tree)
        _in_the_middle(lane)
        calls |= {(engine, busy): partial(_draft_and_verify, lane, busy) for busy in slots}
    seconds: dict[tuple[str | int, int], list[float]] = {key: [] for key in calls}
    started = time.perf_counter()
    for turn in range(repeats + 1):
        if turn > 1 and time.perf_counter() - started > within:
            break
        for key, call in calls.items():
            call()
            taken = call()
            if turn:
                seconds[key].append(taken)
        note()
    medians = {key: 1e3 * statistics.median(taken) for key, taken in seconds.items()}
    target = [[medians[count, busy] for count in nodes] for busy in slots]
    draft = {
        engine: [
            max(medians[engine, busy] - _line(tree.size, nodes, row), _LEAST)
            for busy, row in zip(slots, target, strict=True)
        ]
        for engine, tree in drafted.items()
    }
    return Measured(target, draft)


def _in_the_middle(lane: Lane) -> None:
    """Puts the lane's slots into the middle of a sequence."""
    model = lane.manifest.model
    lane.write_index[:] = model.condition.length + model.plan.length // 2
    lane.positions[:] = lane.write_index[:, None]


def _verify(lane: Lane, busy: int) -> float:
    """Seconds in engines of a target call on `busy` slots, whose nodes are embedded before it."""
    before = lane.workspace.engine_seconds
    assert isinstance(lane.source, Jacobi)  # nothing of its tree is drafted
    lane.source.embed(busy)
    lane.run_target(busy, ())
    return lane.workspace.engine_seconds - before


def _draft_and_verify(lane: Lane, busy: int) -> float:
    """Seconds in engines of a round of `busy` slots."""
    before = lane.workspace.engine_seconds
    assert isinstance(lane.source, Eagle | Mixed)  # something of its tree is drafted
    lane.source.run(busy, min(PAIRS, lane.tree.depth + 1), lane.verified)
    if isinstance(lane.source, Mixed):
        lane.source.embed(busy)
    lane.run_target(busy, ())
    return lane.workspace.engine_seconds - before


_AT_ONCE = (1, 9, 17, 33)  # nodes that are measured when a bundle knows nothing of its machine
_PATIENCE = 2.0  # seconds after which it is not measured again, so that slow machines have not drawn half an image
_HOST, _TOKEN = 0.25, 0.1  # ms outside the engines, of a round and of a token: assumed where nothing was drawn yet


def to_info(
    here: Identity, slots: Sequence[int], nodes: Sequence[int], calls: Measured, host: float, token: float = 0.0,
    accepted: Mapping[str, float] | None = None, images: int = 0, rounds: Mapping[str, list[float]] | None = None,
) -> CostInfo:  # fmt: skip
    """What was measured, with the machine and the backend that it belongs to."""
    return CostInfo(
        here.backend, here.version, here.machine, here.threads, list(slots), list(nodes), calls.target, calls.draft,
        max(host, _LEAST), token, dict(accepted or {}), images, dict(rounds or {}),
    )  # fmt: skip


def measure_at_once(workspace: Workspace, engines: Mapping[str, AnyTree]) -> CostInfo:
    """A rough measure, in the time of a few dozen target calls, for a bundle that knows nothing of this machine.

    It writes into the workspace's slots, so no image may be in one. `engines` has a tree for each draft engine.
    """
    manifest, most = workspace.manifest, workspace.memory.slots
    slots, nodes = sorted({1, most}), [count for count in _AT_ONCE if count <= manifest.most_nodes]
    found = measure(partial(Lane, workspace), slots, nodes, engines, repeats=3, within=_PATIENCE)
    return to_info(workspace.backend.identity, slots, nodes, found, _HOST, _TOKEN)
