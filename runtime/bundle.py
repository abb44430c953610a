"""The engine bundle on disk: its manifest.

A bundle is a folder with `manifest.json`, ONNX graphs, their weight files and perhaps a tokenizer. This module
owns the manifest's schema; `export` and `engines` write what it reads.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from .errors import CascadeError
from .plan import TokenPlan
from .tree import AUTO, NO_TREE, AnyTree, DynamicTree, Tree, dynamic_tree, get_tree, is_tree, same_shape

SCHEMA_VERSION = 4
MOST_SLOTS = 1024  # images at the same time
STATES = "states.npz"  # CASCADE's table of states
MANIFEST = "manifest.json"
FIXED_NODES, FIXED_PAIRS = "fixed_nodes", "fixed_pairs"  # options of plans that take one number of nodes or pairs
_LONGEST = 1e8  # ms that a call may take
_DEFAULT_WINDOW = 16  # guesses of the tree that a bundle without a drafter has first


FEATURES, CLASS = "features", "class"  # kinds of condition
SLOT, OWN = "slot", "own"  # where the positions of a prefix count from


@dataclass(frozen=True)
class ConditionInfo:
    """How a request becomes prefix rows: the `condition` engine's inputs and the layout of the prefix.

    `kind` is "features" (float features [R, length, width]) or "class" (ids [R], one of `classes`); `length` is T,
    the slots of the prefix. Prefixes are right-aligned: slot T - 1 is valid in every row. `uncond_length` None
    gives the unconditional row the mask of the conditional one; a number gives it its own last slots.
    `positions` "slot": a prefix slot's rotary row is its slot number, and token i of the sequence has row T + i.
    "own": each row counts from 0 at its own first valid slot.
    """

    kind: str
    length: int
    width: int = 0
    classes: int = 0
    uncond_length: int | None = None
    positions: str = SLOT

    def __post_init__(self) -> None:
        if self.kind not in (FEATURES, CLASS) or self.positions not in (SLOT, OWN):
            raise CascadeError(
                f"a condition of kind {self.kind!r} with positions {self.positions!r} is none that this version "
                "knows: build the bundle again with this version."
            )
        size, name = (self.width, "width") if self.kind == FEATURES else (self.classes, "number of classes")
        if self.length < 1 or size < 1:
            raise CascadeError(f"the condition's length and {name} must be positive, not {self.length} and {size}.")
        if self.uncond_length is not None and not 1 <= self.uncond_length <= self.length:
            raise CascadeError(f"uncond_length must be from 1 to {self.length}, not {self.uncond_length}.")


@dataclass(frozen=True)
class ModelInfo:
    """What the runtime must know of the target.

    `dim` is D, `features` F, the width of what the readout's linear map reads; `pixels` is the side of a token in
    the decoded image, so that the image is plan.rows * pixels high and plan.columns * pixels wide.
    """

    family: str
    variant: str
    dim: int
    features: int
    n_layer: int
    n_head: int
    n_kv_head: int
    head_dim: int
    plan: TokenPlan
    condition: ConditionInfo
    pixels: int
    parameters: int

    @property
    def vocab_size(self) -> int:
        """V, the size of the law: the codes of an image, without the tokens that are only forced."""
        return self.plan.codes


@dataclass(frozen=True)
class TargetInfo:
    """Static sizes of the target's graph: S cache slots, W nodes a call, K kept logits.

    `max_top_k` is the largest top_k that the bundle serves; K is the same unless the vocabulary is smaller.
    """

    slots: int
    window: int
    top_k: int
    max_top_k: int


@dataclass(frozen=True)
class DrafterInfo:
    """Static sizes of the drafter: its cache of `slots`; `kind` is the architecture.

    `sees_padding`: it attends to the padded slots of the prefix (LANTERN's LlamaGen drafters do).
    """

    kind: str
    n_head: int
    n_kv_head: int
    head_dim: int
    slots: int
    parameters: int
    sees_padding: bool


@dataclass(frozen=True)
class DynamicInfo:
    """The numbers of a dynamic tree: N nodes (root included), levels, width."""

    size: int
    depth: int
    width: int


@dataclass(frozen=True)
class TreeInfo:
    """A tree, and the engine that drafts what is drafted of it (None: nothing is); a dynamic one has no parents."""

    name: str
    parents: list[int]
    engine: str | None
    dynamic: DynamicInfo | None = None
    sources: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, tree: AnyTree, engine: str | None) -> TreeInfo:
        if isinstance(tree, DynamicTree):
            return cls(tree.name, [], engine, DynamicInfo(tree.size, tree.depth, tree.width))
        return cls(tree.name, list(tree.parents), engine, sources=list(tree.sources))

    def tree(self) -> AnyTree:
        if self.dynamic is not None:
            return dynamic_tree(self.name, self.dynamic.size, self.dynamic.depth, self.dynamic.width)
        return Tree(self.name, tuple(self.parents), tuple(self.sources))


@dataclass(frozen=True)
class TextInfo:
    """The prompt's way in: tokenizer file, length T (left padded with pad_id), whether to clean captions."""

    tokenizer: str
    max_length: int
    pad_id: int
    clean: bool


@dataclass(frozen=True)
class SamplingDefaults:
    guidance_scale: float
    temperature: float
    top_k: int
    top_p: float


@dataclass(frozen=True)
class EngineInfo:
    """One graph: its file, the weight files it reads, and its precision (fp32, fp16, bf16)."""

    file: str
    weights: list[str]
    precision: str


@dataclass(frozen=True)
class MergedInfo:
    """A file that holds the graphs of several engines, which each have a file of their own, too. ONNX Runtime keeps
    the weights that they share once when it loads this one. `engines` are in the order of the graphs in it."""

    file: str
    engines: list[str]


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
    profiles: list[dict[str, int]]
    network: dict[str, int]
    bytes: int
    sha256: str
    seconds: float
    peak_memory: int

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
        wrong += [] if all(0 < ms < _LONGEST for ms in times) else ["times that are not positive"]
        wrong += [] if 0 <= self.token < _LONGEST else ["a time of less than nothing"]
        wrong += [] if all(1 <= tau < math.inf for tau in self.accepted.values()) else ["less than a token a round"]
        return wrong[0] if wrong else None


@dataclass(frozen=True)
class FileInfo:
    bytes: int
    sha256: str
    samples: str  # sha256 over evenly spaced samples, for a quick check of large files


@dataclass(frozen=True)
class Manifest:
    """Everything a bundle says of itself."""

    schema: int
    name: str
    tool: str
    batch: int
    model: ModelInfo
    target: TargetInfo
    sampling: SamplingDefaults
    engines: dict[str, EngineInfo]
    files: dict[str, FileInfo]
    merged: MergedInfo | None = None
    trees: list[TreeInfo] = field(default_factory=list)
    drafter: DrafterInfo | None = None
    text: TextInfo | None = None
    dummy_weights: bool = False
    provenance: dict[str, Any] = field(default_factory=dict)
    parity: dict[str, Any] = field(default_factory=dict)
    backends: dict[str, str] = field(default_factory=dict)
    plans: list[PlanInfo] = field(default_factory=list)
    request: str = ""  # digest of what the build was asked for
    rules: dict[str, str] = field(default_factory=dict)  # what a rule's bare name means here (calibrate thresholds)
    neighbours: str | None = None  # file with LANTERN's table, int [V, K]
    states: str | None = None  # file with CASCADE's table of states (calibrate states)
    costs: list[CostInfo] = field(default_factory=list)  # an entry for each backend, machine and number of threads

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= MOST_SLOTS:
            raise CascadeError(
                f"bundle {self.name} has a batch of {self.batch}, not of 1 to {MOST_SLOTS}: build the bundle again."
            )
        self._check_trees()
        if self.merged is None:
            return
        file, names = self.merged.file, self.merged.engines
        wrong = [f"holds {name}, which is none of its engines" for name in names if name not in self.engines]
        wrong += ["names an engine twice"] if len(set(names)) < len(names) else []
        wrong += ["is none of its files"] if file not in self.files else []
        if wrong:
            raise CascadeError(f"the merged graph {file} of bundle {self.name} {wrong[0]}: build the bundle again.")

    def _check_trees(self) -> None:
        names = [info.name for info in self.trees]
        for info in self.trees:
            wrong = None
            if names.count(info.name) > 1 or info.name in (AUTO, NO_TREE):
                wrong = "has a name that means another"
            elif info.engine is not None and not (info.engine in self.engines and info.engine.startswith("draft.")):
                wrong = f"names {info.engine!r}, which is no engine that drafts"
            elif info.dynamic is None and not is_tree(info.parents):
                wrong = "is no tree"
            elif not 2 <= info.tree().size <= self.most_nodes:
                wrong = f"does not fit into a call of {self.most_nodes} nodes"
            elif (info.tree().drafted is None) != (info.engine is None):
                wrong = "has an engine and drafts nothing, or drafts and has no engine"
            if wrong is not None:
                raise CascadeError(f"the tree {info.name} of bundle {self.name} {wrong}: build the bundle again.")

    @property
    def most_nodes(self) -> int:
        """The most nodes of one target call, the root included, that leave room behind the longest sequence."""
        return min(self.target.window, self.target.slots - self.model.condition.length - self.model.plan.length)

    def tree_of(self, engine: str) -> AnyTree | None:
        """The tree that `engine` drafts; None for an engine that drafts none."""
        return next((info.tree().drafted for info in self.trees if info.engine == engine), None)

    def tree(self, name: str | None) -> TreeInfo:
        """The tree called `name`, or the bundle's first, Jacobi's where it was built with none.

        Beside the trees that it was built with a bundle has every tree that fits into a target call and whose drafted
        part, if it has one, one of its engines drafts (`runtime/tree.py`). Raises CascadeError for any other.
        """
        if name is None:
            return self.trees[0] if self.trees else self._unbuilt(f"jacobi_{min(_DEFAULT_WINDOW, self.most_nodes - 1)}")
        return next((tree for tree in self.trees if tree.name == name), None) or self._unbuilt(name)

    def _unbuilt(self, name: str) -> TreeInfo:
        """A tree that the bundle was not built with."""
        tree = get_tree(name)
        engine = self.engine_for(tree, name)
        if tree.size > self.most_nodes:
            raise CascadeError(
                f"tree {name} has {tree.size} nodes, and bundle {self.name} takes {self.most_nodes} in a call: build "
                f"it again with --max-nodes {tree.size}."
            )
        return TreeInfo.of(tree, engine)

    def engine_for(self, tree: AnyTree, spelt: str | None = None) -> str | None:
        """The engine that drafts what is drafted of `tree`; None where nothing is. Raises CascadeError without one,
        which calls the tree as it was `spelt`."""
        spelt = spelt or tree.name
        engine = self._engine_of(tree)
        if engine is not None or tree.drafted is None:
            return engine
        if self.drafter is None:
            raise CascadeError(
                f"bundle {self.name} has no drafter, which the tree {spelt} needs: use a jacobi tree, or build it "
                f"again with --drafter and --tree {spelt}."
            )
        held = ", ".join(info.name for info in self.trees)
        what = "" if tree.guessed else f", not {spelt!r}"
        raise CascadeError(
            f"bundle {self.name} holds the trees {held}{what}, and no engine that drafts what {spelt} needs: build it "
            f"again with --tree {spelt}."
        )

    def _engine_of(self, tree: AnyTree) -> str | None:
        """The engine that drafts a tree of this shape."""
        for info in self.trees:
            drafted, wanted = info.tree().drafted, tree.drafted
            if drafted is not None and wanted is not None and same_shape(drafted, wanted):
                return info.engine
        return None

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1)


def _build(kind: Any, value: Any, where: str) -> Any:
    """Reads `value` (parsed JSON) as the dataclass, container or scalar `kind`."""
    origin, args = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise CascadeError(f"{where} must be an object: build the bundle again.")
        hints = get_type_hints(kind)
        required = {
            f.name
            for f in dataclasses.fields(kind)
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        }
        missing, unknown = required - set(value), set(value) - set(hints)
        if missing or unknown:
            what = f"lacks {sorted(missing)}" if missing else f"has unknown entries {sorted(unknown)}"
            raise CascadeError(f"{where} {what}: build the bundle again with this version.")
        return kind(**{name: _build(hints[name], item, f"{where}.{name}") for name, item in value.items()})
    if origin is dict:
        return {name: _build(args[1], item, f"{where}.{name}") for name, item in value.items()}
    if origin is list:
        return [_build(args[0], item, where) for item in value]
    if origin is UnionType:
        return None if value is None else _build(args[0], value, where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 1000:
        return float(value)
    if kind is not Any and not (isinstance(value, kind) and (kind is bool or not isinstance(value, bool))):
        raise CascadeError(f"{where} must be {kind.__name__}, not {value!r}: build the bundle again.")
    return value


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the bundle in `folder`. Raises CascadeError when it is missing, damaged or of another age."""
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise CascadeError(
            f"there is no bundle in {folder} (no {MANIFEST}): build one with `cascade-trt build`."
        ) from None
    except (ValueError, OSError) as error:
        raise CascadeError(f"{path} cannot be read ({error}): build the bundle again.") from None
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA_VERSION:
        raise CascadeError(
            f"{path} has schema version {schema}, this cascade-trt reads version {SCHEMA_VERSION}: "
            "build the bundle again with this version."
        )
    return _build(Manifest, content, str(path))
