"""From checkpoints to a bundle: open and check everything, write the graphs, compare with PyTorch, publish."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from .. import __version__
from ..engines.carry import carry_over
from ..engines.origin import noted
from ..engines.publish import staged_bundle
from ..runtime.bundle import (
    MANIFEST,
    SCHEMA_VERSION,
    STATES,
    TOKENS,
    DrafterInfo,
    EngineInfo,
    FileInfo,
    Manifest,
    MergedInfo,
    ModelInfo,
    SamplingDefaults,
    TargetInfo,
    TextInfo,
    TreeInfo,
)
from ..runtime.errors import CascadeError
from ..runtime.files import describe_file
from ..runtime.tree import AnyTree, DynamicTree, same_shape
from .checkpoints.source import check_shapes
from .digest import watched
from .graphs.builder import GraphBuilder
from .graphs.condition import build_condition
from .graphs.decode import build_decode
from .graphs.draft import build_draft
from .graphs.drafter import DraftGraph, DraftShape, draft_shape
from .graphs.embed import build_embed
from .graphs.fused import FUSED, write_fused
from .graphs.merge import merge
from .graphs.target import TargetShape, build_target, target_shape
from .graphs.text import build_text
from .graphs.weights import PRECISIONS, WeightFile
from .neighbours import FILE as NEIGHBOURS
from .neighbours import neighbour_table
from .parity import check_parity
from .parts import TOKENIZER, Parts
from .request import MAX_NODES, check_sizes
from .support import backend_support

Progress = Callable[[str, int, int], None]  # what is being done, bytes read, bytes in all


@dataclass(frozen=True)
class BuildOptions:
    """Settings of a build. `batch` is the largest number of images that are drawn at once, `max_nodes` that of nodes in
    a target call, unless one of `trees` has more."""

    out: Path
    trees: tuple[AnyTree, ...]
    sampling: SamplingDefaults
    batch: int = 1
    precision: str = "fp32"
    max_top_k: int = 1000
    max_nodes: int = MAX_NODES
    request: str = ""

    @property
    def most_nodes(self) -> int:
        """Nodes of the largest target call that the bundle has room for."""
        return max([self.max_nodes, *(tree.size for tree in self.trees)])

    @property
    def drafts(self) -> dict[str, AnyTree]:
        """The draft engines by name, each with what it drafts: one for all trees that draft the same shape.

        Raises CascadeError where two shapes would have one name.
        """
        engines: dict[str, AnyTree] = {}
        for tree in self.trees:
            drafted = tree.drafted
            if drafted is None or any(same_shape(drafted, other) for other in engines.values()):
                continue
            if engines.setdefault(f"draft.{drafted.name}", drafted) is not drafted:
                raise CascadeError(f"two trees draft parts called {drafted.name!r} that differ: name them apart.")
        return engines

    def engine_of(self, tree: AnyTree) -> str | None:
        """The draft engine of one of the trees; None where nothing of it is drafted."""
        drafted = tree.drafted
        if drafted is None:
            return None
        return next(name for name, other in self.drafts.items() if same_shape(drafted, other))


@dataclass
class Stage:
    """The folder being filled, and what is in it so far."""

    folder: Path
    precision: str
    engines: dict[str, EngineInfo] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    overflowed: list[str] = field(default_factory=list)
    merged: MergedInfo | None = None

    def save(self, g: GraphBuilder, name: str, weights: list[str]) -> None:
        g.save(self._new(f"{name}.onnx"))
        self.engines[name] = EngineInfo(f"{name}.onnx", weights, self.precision)

    def fuse(self, name: str) -> None:
        """Writes the graph of an engine, which is saved already, once more for ONNX Runtime."""
        info, file = self.engines[name], f"{name}{FUSED}"
        if write_fused(self.folder / info.file, self._new(file)):
            self.engines[name] = replace(info, fused=file)

    def merge(self, name: str, engines: list[str]) -> None:
        """Writes the graphs of `engines`, which are saved already, as one more model for ONNX Runtime."""
        graphs = {engine: self.folder / self.engines[engine].read_by_ort for engine in engines}
        merge(graphs, self._new(f"{name}.onnx"))
        self.merged = MergedInfo(f"{name}.onnx", engines)

    def _new(self, file: str) -> Path:
        """Where a graph is to lie. Raises CascadeError where another does, as trees x and x.fused would have it."""
        if (self.folder / file).exists():
            raise CascadeError(f"two graphs of the bundle would lie in {file}: rename the file of one of the trees.")
        return self.folder / file

    def close(self, *weights: WeightFile) -> None:
        for file in weights:
            self.digests[file.path.name] = file.digest
            self.overflowed += file.overflowed

    def files(self) -> dict[str, FileInfo]:
        paths = sorted(path for path in self.folder.iterdir() if path.name != MANIFEST)
        return {path.name: describe_file(path, self.digests.get(path.name)) for path in paths}


def build_bundle(
    parts: Parts, options: BuildOptions, progress: Progress, finish: Callable[[Path, Manifest], Manifest] | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Manifest:  # fmt: skip
    """Writes the bundle `options.out` and returns its manifest.

    `finish` may add to the folder before it takes the old bundle's place, and returns the manifest to write. What was
    calibrated in the old bundle is kept where the target is the same, what was compiled where it fits; `tell` gets a
    sentence on what was kept and what was not, once the bundle stands. Raises CascadeError when the parts do not fit, a
    weight cannot be stored in the precision, an engine disagrees with PyTorch, or the folder cannot be written; nothing
    is left behind then.
    """
    _check(parts, options)
    if not options.drafts:
        parts = replace(parts, drafter=None)
    counted, digests = watched(parts.counted(progress))
    with staged_bundle(options.out) as folder:
        stage = Stage(folder, options.precision)
        shapes = write_graphs(counted, options, stage)
        if stage.overflowed:
            raise CascadeError(
                f"tensor {stage.overflowed[0]} and {len(stage.overflowed) - 1} more exceed the range of fp16: "
                "build with --precision bf16 or fp32."
            )
        tokenizer = copy_tokenizer(parts, folder)
        manifest = _manifest(parts, options, stage, shapes, tokenizer)
        manifest = noted(manifest, {part: digest.hexdigest() for part, digest in digests.items()})
        progress("comparing with PyTorch", 0, 0)
        manifest = replace(manifest, parity=check_parity(parts, options, folder, manifest))
        carried = carry_over(folder, manifest, options.out)
        manifest = carried.manifest if finish is None else finish(folder, carried.manifest)
        told = [*carried.sentences(), *carried.engines_dropped(manifest, options.out)]
        (folder / MANIFEST).write_text(manifest.to_json())
    for sentence in told:
        tell(sentence)
    return manifest


def _check(parts: Parts, options: BuildOptions) -> None:
    if options.precision not in PRECISIONS:
        raise CascadeError(f"unknown precision {options.precision!r}: choose one of {', '.join(PRECISIONS)}.")
    check_sizes(options.batch, options.max_top_k, options.max_nodes)
    widest = max(map(_widest, options.drafts.values()), default=0)
    codes = parts.target.plan.codes
    if widest > codes:
        raise CascadeError(f"a tree node has {widest} children, more than the {codes} tokens.")
    names = [tree.name for tree in options.trees]
    if len(set(names)) != len(names):
        raise CascadeError(f"two trees are called {max(names, key=names.count)!r}: name them apart.")
    drafting = [tree.name for tree in options.trees if tree.drafted is not None]
    if parts.drafter is None and drafting:
        raise CascadeError(f"tree {drafting[0]} needs a drafter: build with --drafter, or leave the tree out.")
    reads_ids = parts.target.conditioner.info.kind == TOKENS
    if reads_ids != (parts.prompt is not None) or (reads_ids and parts.tokenizer is None):
        raise CascadeError("a model that reads token ids needs a tokenizer and the form of its prompts, no other does.")
    check_shapes(parts.target.weights, parts.target.shapes(), "checkpoint")
    if parts.drafter is not None:
        check_shapes(parts.drafter.weights, parts.drafter.shapes(parts.target.plan), "drafter")


def _widest(tree: AnyTree) -> int:
    """Most children that are drafted of one node."""
    return tree.width if isinstance(tree, DynamicTree) else max(len(nodes) for nodes in tree.children)


@dataclass(frozen=True)
class Shapes:
    target: TargetShape
    draft: DraftShape | None


def write_graphs(parts: Parts, options: BuildOptions, stage: Stage) -> Shapes:
    """Writes every graph of the bundle and its weights."""
    dtype, target, plan = PRECISIONS[stage.precision], parts.target, parts.target.plan
    shape = target_shape(target, options.most_nodes, options.max_top_k)
    drafted = None
    with ExitStack() as stack:

        def weights(name: str) -> WeightFile:
            return stack.enter_context(WeightFile(stage.folder / f"{name}.data", dtype))

        files = {name: weights(name) for name in ("target", "condition", "decode")}
        g = GraphBuilder("target", files["target"])
        build_target(g, target, shape)
        stage.save(g, "target", ["target.data"])
        stage.fuse("target")
        g = GraphBuilder("embed", files["target"])
        build_embed(g, target.weights)
        stage.save(g, "embed", ["target.data"])
        g = GraphBuilder("condition", files["condition"])
        build_condition(g, target.weights, target.conditioner, target.stack.dim)
        stage.save(g, "condition", ["condition.data"])
        g = GraphBuilder("decode", files["decode"])
        build_decode(g, parts.vq, parts.vq_config, plan.rows, plan.columns)
        stage.save(g, "decode", ["decode.data"])
        if parts.drafter is not None:
            files["drafter"] = weights("drafter")
            drafted = draft_shape(target, list(options.drafts.values()), options.most_nodes)
            for name, tree in options.drafts.items():
                g = GraphBuilder(name, files["drafter"], files["target"].tensors)
                build_draft(DraftGraph(g, parts.drafter, target, drafted), tree)
                stage.save(g, name, ["drafter.data", "target.data"])
                stage.fuse(name)
            if len(options.drafts) > 1:
                stage.merge("draft", list(options.drafts))
        if parts.text is not None and parts.text_config is not None:
            files["text"] = weights("text")
            g = GraphBuilder("text", files["text"])
            build_text(g, parts.text, parts.text_config, target.prefix_len)
            stage.save(g, "text", ["text.data"])
    stage.close(*files.values())
    np.save(stage.folder / NEIGHBOURS, neighbour_table(parts.vq, parts.vq_config.normalised))
    if parts.states is not None:
        parts.states.save(stage.folder / STATES)
    return Shapes(shape, drafted)


def copy_tokenizer(parts: Parts, folder: Path) -> TextInfo | None:
    """Puts the tokenizer into a bundle's folder; how prompts get in, None where none do."""
    if parts.tokenizer is None or (parts.text_config is None and parts.prompt is None):
        return None
    if isinstance(parts.tokenizer, bytes):
        (folder / TOKENIZER).write_bytes(parts.tokenizer)
    else:
        shutil.copyfile(parts.tokenizer, folder / TOKENIZER)
    if parts.text_config is None:
        return parts.prompt
    return TextInfo(TOKENIZER, parts.target.prefix_len, parts.text_config.pad_token_id, clean=True)


def _manifest(
    parts: Parts, options: BuildOptions, stage: Stage, shapes: Shapes, text: TextInfo | None
) -> Manifest:
    target, stack, drafter = parts.target, parts.target.stack, parts.drafter
    model = ModelInfo(
        family=target.family, variant=target.variant, dim=stack.dim, features=target.readout.width,
        n_layer=stack.n_layer, n_head=stack.n_head, n_kv_head=stack.n_kv_head, head_dim=stack.head_dim,
        plan=target.plan, condition=target.conditioner.info, pixels=parts.vq_config.factor,
        parameters=parts.parameters("target"), rounding=parts.rounding,
    )  # fmt: skip
    drafter_info = None
    if drafter is not None and shapes.draft is not None:
        layer = drafter.stack
        drafter_info = DrafterInfo(
            kind=drafter.kind, n_head=layer.n_head, n_kv_head=layer.n_kv_head, head_dim=layer.head_dim,
            slots=shapes.draft.slots, parameters=parts.parameters("drafter"), sees_padding=drafter.sees_padding,
            prompt_ids=drafter.prompt_ids,
        )  # fmt: skip
    return Manifest(
        schema=SCHEMA_VERSION,
        name=Path(os.path.abspath(options.out)).name,
        tool=f"cascade-trt {__version__}",
        batch=options.batch,
        model=model,
        target=TargetInfo(
            shapes.target.slots, shapes.target.window, options.most_nodes, shapes.target.top_k, options.max_top_k
        ),
        sampling=replace(options.sampling, top_k=min(options.sampling.top_k, options.max_top_k)),
        engines=stage.engines,
        files=stage.files(),
        merged=stage.merged,
        trees=[TreeInfo.of(tree, options.engine_of(tree)) for tree in options.trees],
        drafter=drafter_info,
        text=text,
        dummy_weights=parts.dummy,
        provenance=parts.provenance(),
        backends=backend_support(stack.head_dim, options.precision, shapes.target.top_k),
        request=options.request,
        neighbours=NEIGHBOURS,
        states=STATES if parts.states is not None else None,
        rules=dict(parts.rules),
    )

