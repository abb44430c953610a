"""What a manifest says of files: graphs, compiled engines, what they cost, and digests."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any

from .schema import Count, Within

FIXED_NODES, FIXED_PAIRS = "fixed_nodes", "fixed_pairs"  # options of plans that take one number of nodes or pairs
PLAN_SUFFIX, REPORT_SUFFIX = ".plan", ".layers.json"  # of a plan's file, and of what TensorRT says of its layers
_SHORTEST, _LONGEST = 1e-9, 1e8  # ms that a call may take


@dataclass(frozen=True)
class EngineInfo:
    """One graph: its file, the weight files it reads, and its precision (fp32, fp16, bf16). `fused` is a file with the
    same graph in operators that only ONNX Runtime has, where that saves kernels."""

    file: str
    weights: Annotated[list[str], Within(0, 64)]
    precision: str
    fused: str | None = None

    @property
    def read_by_ort(self) -> str:
        """The file of the two that ONNX Runtime reads."""
        return self.file if self.fused is None else self.fused

    @property
    def graphs(self) -> list[str]:
        """The files of the graph, in both forms."""
        return list(dict.fromkeys((self.file, self.read_by_ort)))


@dataclass(frozen=True)
class MergedInfo:
    """A file that holds the graphs of several engines, which each have a file of their own, too. ONNX Runtime keeps
    the weights that they share once when it loads this one. `engines` are in the order of the graphs in it."""

    file: str
    engines: Annotated[list[str], Within(1, 256)]


@dataclass(frozen=True)
class PlanInfo:
    """A TensorRT engine compiled from one graph, and everything that it depends on.

    `target` is what it was compiled for ("rtx:sm89", "tensorrt"), `key` the digest of all that went into it,
    `backend_version` the full version that can run it, `compute_capability` the GPU ("8.9"), `platform` OS and
    architecture. `profiles` are sizes of the open dimensions, one for each call of the runtime. `network` counts
    the KV updates and attention layers that TensorRT's parser made of the graph. `options` are the builder's.
    """

    engine: str
    target: str
    file: str
    report: str
    key: str
    backend: str
    backend_version: str
    compute_capability: str
    platform: str
    precision: str
    options: dict[str, Any]
    profiles: Annotated[list[dict[str, int]], Within(1, 256)]
    network: dict[str, int]
    bytes: Count
    sha256: str
    seconds: Annotated[float, Within(0, 1e9)]
    peak_memory: Count

    @property
    def files(self) -> tuple[str, str]:
        """The engine's own, and the report on its layers."""
        return self.file, self.report

    @property
    def fixed_nodes(self) -> int | None:
        """The number of nodes that every call of this engine must have: fewer are padded, more are split into
        several calls (`engines/tensorrt/fixed_nodes.py`). None: the profiles say which numbers it takes."""
        return self.options.get(FIXED_NODES)

    @property
    def fixed_pairs(self) -> int | None:
        """The same of a drafter's pairs: the first call, over the prefix, is split
        (`engines/tensorrt/fixed_pairs.py`)."""
        return self.options.get(FIXED_PAIRS)


@dataclass(frozen=True)
class CostInfo:
    """What rounds of `exact` cost on one machine, and what they bring with this model (`calibrate costs`).

    `target` holds the milliseconds of a target call, a row for each number of `slots` (images at the same time), a
    column for each number of `nodes` (the root included); `draft` those of each draft engine's call by slots. Outside
    the engines each image costs `host` milliseconds a round, and `token` for each token that it gains. `threads` are
    those of an engine. `accepted` are the tokens a round of trees by name, the mean of `images` (0: none was drawn).
    `rounds` are the milliseconds of whole rounds by tree ("none": plain decoding) and slots, as images took them.
    """

    backend: str
    backend_version: str
    machine: str
    threads: int
    slots: list[int]
    nodes: list[int]
    target: list[list[float]]
    draft: dict[str, list[float]]
    host: float
    token: float
    accepted: dict[str, float]
    images: int
    rounds: dict[str, list[float]] = field(default_factory=dict)

    def problem(self) -> str | None:
        """What cannot be right of the figures, if so. They are looked at where they are used: a bundle that was
        measured badly on one machine can still be drawn from, and measured again."""
        by_slots = [*self.draft.values(), *self.rounds.values()]
        rows = [*self.target, *by_slots]
        fits = len(self.target) == len(self.slots) and all(len(row) == len(self.nodes) for row in self.target)
        fits = fits and all(len(row) == len(self.slots) for row in by_slots)
        times = [self.host, *(ms for row in rows for ms in row)]
        wrong = [
            f"{name} that are not rising positive numbers"
            for name, sizes in (("slots", self.slots), ("nodes", self.nodes))
            if not sizes or sizes[0] < 1 or sizes != sorted(set(sizes))
        ]
        wrong += [] if self.nodes[:1] == [1] else ["no times of one node"]
        wrong += [] if fits else ["times for other sizes than were measured"]
        wrong += [] if self.threads >= 1 and self.images >= 0 else ["no threads, or fewer images than none"]
        wrong += [] if all(_SHORTEST < ms < _LONGEST for ms in times) else ["times that are not positive"]
        wrong += [] if 0 <= self.token < _LONGEST else ["a time of less than nothing"]
        wrong += [] if all(1 <= tau < math.inf for tau in self.accepted.values()) else ["less than a token a round"]
        return wrong[0] if wrong else None


@dataclass(frozen=True)
class FileInfo:
    """Size and digests of a file, in hexadecimal."""

    bytes: Count
    sha256: str
    samples: str  # sha256 over evenly spaced samples, for a quick check of large files
