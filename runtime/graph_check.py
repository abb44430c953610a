"""The graphs of a bundle against its manifest: inputs, outputs, and the files that their weights lie in.

Buffers and caches are made by the manifest's numbers. So these are compared with what each graph declares, before
anything is allocated or loaded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from .bundle import CLASS, TOKENS, EngineInfo, Manifest
from .errors import CascadeError
from .onnx_file import TensorInfo, read_onnx
from .tree import AnyTree, DynamicTree

_FLOATS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_CHOICE = "graph"  # input of a merged model: the number of the graph that a call runs
Tensors = dict[str, TensorInfo]


def check_graphs(folder: Path, manifest: Manifest) -> None:
    """Raises CascadeError for the first graph that is not the one that the manifest describes."""
    expected = {name: _tensors(manifest, name) for name in manifest.engines}
    for name, info in manifest.engines.items():
        for file in info.graphs:
            _check(folder, manifest, replace(info, file=file), *expected[name])
    if manifest.merged is not None:
        names = manifest.merged.engines
        inputs, outputs = (
            {f"{name}/{tensor}": info for name in names for tensor, info in expected[name][side].items()}
            for side in (0, 1)
        )
        inputs[_CHOICE] = TensorInfo("int64", ())
        weights = [file for name in names for file in manifest.engines[name].weights]
        merged = EngineInfo(manifest.merged.file, weights, manifest.engines[names[0]].precision)
        _check(folder, manifest, merged, inputs, {name: _open(info) for name, info in outputs.items()})


def _open(info: TensorInfo) -> TensorInfo:
    """The output of a graph that may not run: its sizes are left open."""
    return TensorInfo(info.dtype, (None,) * len(info.shape))


def _check(folder: Path, manifest: Manifest, info: EngineInfo, inputs: Tensors, outputs: Tensors) -> None:
    graph = read_onnx(folder / info.file)
    place = os.path.dirname(info.file)
    strays = {os.path.normpath(os.path.join(place, name)) for name in graph.locations} - set(info.weights)
    if strays:
        raise CascadeError(
            f"{info.file} of bundle {manifest.name} reads weights from {min(strays)}, which is not among its files: "
            "build the bundle again."
        )
    for declared, wanted in ((graph.inputs, inputs), (graph.outputs, outputs)):
        if (wrong := _difference(declared, wanted)) is not None:
            raise CascadeError(
                f"{info.file} is not the graph that the manifest of bundle {manifest.name} describes ({wrong}): build "
                "the bundle again."
            )


def _difference(declared: Mapping[str, TensorInfo], wanted: Mapping[str, TensorInfo]) -> str | None:
    if names := set(declared) ^ set(wanted):
        name = min(names)
        return f"it has no {name}" if name in wanted else f"it has {name}"
    for name, info in wanted.items():
        if declared[name] != info:
            return f"{name} is {_spelt(declared[name])}, not {_spelt(info)}"
    return None


def _spelt(info: TensorInfo) -> str:
    return f"{info.dtype or 'of no known type'} [{', '.join('any' if n is None else str(n) for n in info.shape)}]"


# what the runtime binds -----------------------------------------------------------------------------------------
def _tensors(manifest: Manifest, engine: str) -> tuple[Tensors, Tensors]:
    """Inputs and outputs of an engine, as the docstrings in `export/graphs/` list them."""
    model, condition, plan = manifest.model, manifest.model.condition, manifest.model.plan
    number = _FLOATS[manifest.engines[engine].precision]
    if engine == "target":
        return _target(manifest, number)
    if engine == "embed":
        return {"ids": _ints(None, None)}, {"embeds": TensorInfo(number, (None, None, model.dim))}
    if engine == "condition":
        prefix = TensorInfo(number, (None, condition.length, model.dim))
        if condition.kind == TOKENS:
            return {"ids": _ints(None, condition.length)}, {"prefix": prefix}
        given = {"features": TensorInfo(number, (None, condition.length, condition.width))}
        if condition.kind == CLASS:
            given = {"class_ids": _ints(None)}
        return {**given, "uncond": _flags(None)}, {"prefix": prefix}
    if engine == "decode":
        height, width = plan.rows * model.pixels, plan.columns * model.pixels
        return {"codes": _ints(None, plan.image_tokens)}, {"image": _floats(None, 3, height, width)}
    if engine == "text":
        length = condition.length
        features = TensorInfo(number, (None, length, condition.width))
        return {"ids": _ints(None, length), "mask": _flags(None, length)}, {"features": features}
    return _draft(manifest, engine, number)


def _target(manifest: Manifest, number: str) -> tuple[Tensors, Tensors]:
    model, target, codes = manifest.model, manifest.target, manifest.model.vocab_size
    past, present = _caches(model.n_layer, model.n_kv_head, target.slots, model.head_dim, number)
    inputs = {
        "embeds": TensorInfo(number, (None, None, model.dim)), "positions": _ints(None, None),
        "write_index": _ints(None), "tree_mask": _flags(None, None, target.window + 1),
        "cache_mask": _flags(None, target.slots), "rows_of_prompt": _ints(None, None),
        "guidance": _floats(None, None), "temperature": _floats(None), "top_k": _ints(None), "top_p": _floats(None),
        "noise": _floats(None, None, codes), "depths": _ints(None, None), **past,
    }  # fmt: skip
    outputs = {
        "drawn": _ints(None, None), "runner_up": _ints(None, None), "logits": _floats(None, None, target.top_k),
        "ids": _ints(None, None, target.top_k), "states": _floats(None, None, model.features),
        "hidden": TensorInfo(number, (None, None, model.dim)), "similarity": _floats(None, None, None), **present,
    }  # fmt: skip
    return inputs | ({"forced": _ints(None, None)} if model.plan.has_forced else {}), outputs


def _draft(manifest: Manifest, engine: str, number: str) -> tuple[Tensors, Tensors]:
    model, drafter, tree = manifest.model, manifest.drafter, manifest.tree_of(engine)
    if drafter is None or tree is None:
        raise CascadeError(
            f"bundle {manifest.name} has the engine {engine}, and no {'drafter' if drafter is None else 'tree'} that "
            "needs it: build the bundle again."
        )
    past, present = _caches(tree.depth, drafter.n_kv_head, drafter.slots, drafter.head_dim, number)
    inputs = {
        "hidden": TensorInfo(number, (None, None, model.dim)), "path": _ints(None, None), "tokens": _ints(None, None),
        "count": _ints(None), "positions": _ints(None, None), "write_index": _ints(None),
        "cache_mask": _flags(None, drafter.slots), "prompt_of_row": _ints(None), "rows_of_prompt": _ints(None, None),
        "noise": _floats(None, tree.depth + 1, model.vocab_size), "guidance": _floats(None, None),
        "temperature": _floats(None), **past,
    }  # fmt: skip
    outputs = {
        "tree_tokens": _ints(None, tree.size), "embeds": TensorInfo(number, (None, tree.size, model.dim)),
        "log_q": _floats(None, tree.distributions, model.vocab_size),
        "features": TensorInfo(number, (None, None, model.dim)), **_chosen(tree), **present,
    }  # fmt: skip
    return inputs | ({"forced": _ints(None, tree.depth + 1)} if model.plan.has_forced else {}), outputs


def _chosen(tree: AnyTree) -> Tensors:
    """What the graph of a dynamic tree chooses."""
    if not isinstance(tree, DynamicTree):
        return {}
    listed = {name: _ints(None, tree.size) for name in ("parents", "sources", "depths")}
    return listed | {"ancestors": _flags(None, tree.size, tree.size)}


def _caches(steps: int, heads: int, slots: int, head_dim: int, number: str) -> tuple[Tensors, Tensors]:
    info = TensorInfo(number, (None, heads, slots, head_dim))
    past, present = (
        {f"{when}_{kind}.{index}": info for index in range(steps) for kind in ("key", "value")}
        for when in ("past", "present")
    )
    return past, present


def _ints(*shape: int | None) -> TensorInfo:
    return TensorInfo("int64", shape)


def _flags(*shape: int | None) -> TensorInfo:
    return TensorInfo("bool", shape)


def _floats(*shape: int | None) -> TensorInfo:
    return TensorInfo("float32", shape)
