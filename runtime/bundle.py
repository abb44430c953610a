"""The engine bundle on disk: its manifest.

A bundle is a folder with `manifest.json`, ONNX graphs, their weight files and perhaps a tokenizer. This module
owns the manifest's schema; `export` and `engines` write what it reads. Nobody vouches for what is read: every entry has
a type and a range (`schema.py`), the entries are compared with each other (`manifest_check.py`) and with the files
(`files.py`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from .backends.kernels.info import KernelInfo
from .digests import describe_file
from .engine_info import FIXED_NODES, FIXED_PAIRS, CostInfo, EngineInfo, FileInfo, MergedInfo, PlanInfo
from .errors import CascadeError
from .manifest_check import check_manifest
from .model_info import (
    CLASS,
    FEATURES,
    MOST_SLOTS,
    OWN,
    SLOT,
    TOKENS,
    ConditionInfo,
    DrafterInfo,
    ModelInfo,
    PromptForm,
    SamplingDefaults,
    TargetInfo,
    TextInfo,
)  # fmt: skip
from .schema import Within, build, plain, read_json, short
from .tree import AUTO, MOST_NODES, AnyTree, DynamicTree, Tree, dynamic_tree, get_tree, same_shape

__all__ = [
    "CLASS", "FEATURES", "FIXED_NODES", "FIXED_PAIRS", "MANIFEST", "MOST_SLOTS", "OWN", "SCHEMA_VERSION", "SLOT",
    "STATES", "TOKENS", "ConditionInfo", "CostInfo", "DrafterInfo", "DynamicInfo", "EngineInfo", "FileInfo",
    "KernelInfo", "Manifest", "MergedInfo", "ModelInfo", "PlanInfo", "PromptForm", "SamplingDefaults", "TargetInfo",
    "TextInfo", "TreeInfo", "describe_file", "read_manifest",
]  # fmt: skip

SCHEMA_VERSION = 5
STATES = "states.npz"  # CASCADE's table of states
MANIFEST = "manifest.json"
_DEFAULT_WINDOW = 16  # guesses of the tree that a bundle without a drafter has first


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
    parents: Annotated[list[int], Within(0, MOST_NODES)]
    engine: str | None
    dynamic: DynamicInfo | None = None
    sources: Annotated[list[str], Within(0, MOST_NODES)] = field(default_factory=list)

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
class Manifest:
    """Everything a bundle says of itself."""

    schema: int
    name: str
    tool: str
    batch: Annotated[int, Within(1, MOST_SLOTS)]
    model: ModelInfo
    target: TargetInfo
    sampling: SamplingDefaults
    engines: Annotated[dict[str, EngineInfo], Within(1, 512)]
    files: Annotated[dict[str, FileInfo], Within(1, 4096)]
    merged: MergedInfo | None = None
    trees: Annotated[list[TreeInfo], Within(0, 256)] = field(default_factory=list)
    drafter: DrafterInfo | None = None
    text: TextInfo | None = None
    dummy_weights: bool = False
    provenance: dict[str, dict[str, Any]] = field(default_factory=dict)
    parity: dict[str, dict[str, Any]] = field(default_factory=dict)
    backends: dict[str, str] = field(default_factory=dict)
    plans: Annotated[list[PlanInfo], Within(0, 4096)] = field(default_factory=list)
    kernels: Annotated[list[KernelInfo], Within(0, 64)] = field(default_factory=list)  # compiled for GPUs
    request: str = ""  # digest of what the build was asked for
    rules: dict[str, str] = field(default_factory=dict)  # what a rule's bare name means here (calibrate thresholds)
    neighbours: str | None = None  # file with LANTERN's table, int [V, K]
    states: str | None = None  # file with CASCADE's table of states (calibrate states)
    # an entry for each backend, machine and number of threads
    costs: Annotated[list[CostInfo], Within(0, 1024)] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_manifest(self)

    @property
    def most_nodes(self) -> int:
        """The most nodes of an image in one target call, the root included."""
        return self.target.most_nodes

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
        tree = get_tree(name, (AUTO,))
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
        return json.dumps(plain(self), indent=1)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the bundle in `folder`. Raises CascadeError when it is missing, damaged, of another age, or says
    what cannot be."""
    path = folder / MANIFEST
    try:
        content = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        raise CascadeError(
            f"there is no bundle in {folder} (no {MANIFEST}): build one with `cascade-trt build`."
        ) from None
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA_VERSION:
        raise CascadeError(
            f"{path} has schema version {short(schema)}, this cascade-trt reads version {SCHEMA_VERSION}: "
            "build the bundle again with this version."
        )
    return build(Manifest, content, str(path))
