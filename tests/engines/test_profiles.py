"""Profiles are the shapes that the runtime calls engines with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from support import random_features

from cascade_trt.engines.tensorrt.profiles import engine_profiles
from cascade_trt.runtime.backends import BoundCall, Buffer, Engine
from cascade_trt.runtime.backends.tensorrt_shapes import smallest
from cascade_trt.runtime.bundle import TreeInfo, read_manifest
from cascade_trt.runtime.pipeline import Pipeline
from cascade_trt.runtime.tree import get_tree


def test_one_profile_for_each_shape(plain_bundle: Path) -> None:
    manifest = read_manifest(plain_bundle)
    one = {"P": 1, "R": 2, "G": 2}
    depth = manifest.trees[0].tree().depth
    assert engine_profiles(manifest, "target") == [
        one | {"N": 33, "L": 33}, one | {"N": 9, "L": depth + 1}, one | {"N": 6, "L": 1}, one | {"N": 1, "L": 1},
    ]  # fmt: skip
    assert engine_profiles(manifest, "draft.small_9") == [
        one | {"M": 33, "N_hidden": 33}, one | {"M": 6, "N_hidden": 6}, one | {"M": depth + 1, "N_hidden": 9},
        one | {"M": 1, "N_hidden": 1},
    ]  # fmt: skip
    assert engine_profiles(manifest, "embed") == [one | {"N": 33}, one | {"N": 1}]
    for engine in ("condition", "decode"):
        assert engine_profiles(manifest, engine) == [one]
    plain = replace(manifest, sampling=replace(manifest.sampling, guidance_scale=1.0))
    assert engine_profiles(plain, "decode") == [{"P": 1, "R": 1, "G": 1}]


def test_a_slot_is_filled_by_itself(plain_bundle: Path) -> None:
    """Calls on the prefix, conditions and images are those of one slot, however many there are."""
    manifest = replace(read_manifest(plain_bundle), batch=3)
    length, depth = manifest.model.condition.length, manifest.trees[0].tree().depth
    target = engine_profiles(manifest, "target")
    assert [p["P"] for p in target if p["N"] == length] == [1]
    steady = [(p["P"], p["R"], p["N"], p["L"]) for p in target if p["N"] != length]
    calls = (33, 33), (9, depth + 1), (1, 1)
    assert steady == [(slots, 2 * slots, *call) for slots in (1, 2, 3) for call in calls]
    drafter = engine_profiles(manifest, "draft.small_9")
    assert [p["P"] for p in drafter if p["M"] == length] == [1]
    steady = [(p["P"], p["M"], p["N_hidden"]) for p in drafter if p["M"] != length]
    assert steady == [(slots, *call) for slots in (1, 2, 3) for call in ((33, 33), (depth + 1, 9), (1, 1))]
    assert [p["P"] for p in engine_profiles(manifest, "embed") if p["N"] == 1] == [1, 2, 3]
    for engine in ("condition", "decode"):
        assert [p["P"] for p in engine_profiles(manifest, engine)] == [1]


def test_trees_of_guesses(plain_bundle: Path) -> None:
    """Target and embed run on all nodes; an engine that drafts for several trees has a steady call for each."""
    manifest, one = read_manifest(plain_bundle), {"P": 1, "R": 2, "G": 2}
    trees = [("mixed_24", "draft.chain_1"), ("mixed_10x4", "draft.chain_1"), ("small_9", "draft.small_9"),
             ("jacobi_16", None)]  # fmt: skip
    engines = manifest.engines | dict.fromkeys((e for _, e in trees if e is not None), manifest.engines["target"])
    manifest = replace(
        manifest, engines=engines, trees=[TreeInfo.of(get_tree(name), engine) for name, engine in trees]
    )
    sizes = [(33, 33), (25, 25), (17, 17), (15, 11), (9, 5), (6, 1), (1, 1)]
    assert engine_profiles(manifest, "target") == [one | {"N": nodes, "L": rows} for nodes, rows in sizes]
    assert engine_profiles(manifest, "embed") == [one | {"N": nodes} for nodes in (33, 25, 17, 15, 1)]
    read = (33, 33), (25, 25), (17, 17), (11, 15), (6, 6), (5, 9), (1, 1)  # whichever engine drafts for a tree
    for engine in ("draft.chain_1", "draft.small_9"):
        assert engine_profiles(manifest, engine) == [one | {"M": pairs, "N_hidden": nodes} for pairs, nodes in read]
    assert engine_profiles(manifest, "draft.chain_1", {"fixed_pairs": 25}) == [
        one | {"M": 25, "N_hidden": nodes} for nodes in (6, 33)
    ]  # fmt: skip
    assert engine_profiles(manifest, "target", {"fixed_nodes": 33}) == [one | {"N": 33, "L": 33}]


def test_a_bundle_without_trees_draws_with_guesses(plain_bundle: Path) -> None:
    manifest = replace(read_manifest(plain_bundle), trees=[], drafter=None)
    assert [p["N"] for p in engine_profiles(manifest, "target")] == [33, 17, 6, 1]
    assert [p["N"] for p in engine_profiles(manifest, "embed")] == [33, 17, 1]


def test_the_smallest_profile_that_takes_a_call(plain_bundle: Path) -> None:
    """Pairs and hidden states may be filled up, as far as the cache has room; rows may not."""
    manifest = replace(read_manifest(plain_bundle), batch=2)
    profiles = engine_profiles(manifest, "draft.small_9")

    def taken(rows: int, pairs: int, nodes: int, most: int = 33) -> dict[str, int] | None:
        def shapes(dims: dict[str, int]) -> dict[str, tuple[int, ...]]:
            return {"hidden": (dims["R"], dims["N_hidden"], 64), "path": (dims["P"], dims["M"])}

        call = {"P": rows // 2, "R": rows, "M": pairs, "N_hidden": nodes}
        index = smallest([shapes(dims) for dims in profiles], shapes(call), most)
        return None if index is None else profiles[index]

    assert taken(2, 2, 9) == {"P": 1, "R": 2, "G": 2, "M": 5, "N_hidden": 9} and taken(2, 5, 9) == taken(2, 2, 9)
    assert taken(4, 1, 1) == {"P": 2, "R": 4, "G": 2, "M": 1, "N_hidden": 1}
    assert taken(4, 6, 6) == {"P": 2, "R": 4, "G": 2, "M": 33, "N_hidden": 33}  # that of the prefix is for one slot
    for call in ((6, 1, 1), (2, 34, 9), (2, 1, 34), (4, 6, 6, 32)):
        assert taken(*call) is None


@pytest.mark.parametrize(
    ("rule", "tree"), [("ar", None), ("exact", "small_9"), ("exact", "jacobi_16"), ("exact", "jacobi_8x3")]
)
@pytest.mark.parametrize("batch", [1, 3])
def test_the_runtime_binds_no_other_shape(plain_bundle: Path, rule: str, tree: str | None, batch: int) -> None:
    """Every shape that a drawing binds is in a profile of its engine, for every engine and input; but for a drafter's
    pairs, which are padded to a profile's."""
    pipe = Pipeline.load(plain_bundle, threads=1, warm=False)
    pipe.manifest = replace(pipe.manifest, batch=batch)  # the graphs leave the number of slots open
    info = pipe.manifest.tree(tree)
    if info not in pipe.manifest.trees:
        pipe.manifest = replace(pipe.manifest, trees=[*pipe.manifest.trees, info])
    seen: dict[str, list[Mapping[str, Buffer]]] = {}

    class Spy:
        def __init__(self, name: str, engine: Engine) -> None:
            self.name, self.engine = name, engine

        def dtype(self, name: str) -> str:
            return self.engine.dtype(name)

        def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> BoundCall:
            seen.setdefault(self.name, []).append({**inputs, **outputs})
            return self.engine.bind(inputs, outputs)

    pipe.wrap_engines(Spy)
    pipe.generate(**random_features(pipe, 4), rule=rule, tree=tree)
    assert set(seen) == {"condition", "target", "decode", "draft.small_9" if tree == "small_9" else "embed"}
    assert {bound["rows_of_prompt"].shape[0] for bound in seen["target"]} >= {1, batch}
    for name, calls in seen.items():
        profiles = engine_profiles(pipe.manifest, name)
        graph = onnx.load(plain_bundle / pipe.manifest.engines[name].file, load_external_data=False).graph
        shapes = {value.name: value.type.tensor_type.shape.dim for value in [*graph.input, *graph.output]}
        for bound in calls:
            sizes: dict[str, set[int]] = {}
            for tensor, buffer in bound.items():
                for dim, size in zip(shapes[tensor], buffer.shape, strict=True):
                    sizes.setdefault(dim.dim_param or str(dim.dim_value), set()).add(size)
            open_sizes = {dim: size for dim, (size,) in sizes.items() if not dim.isdigit()}
            pairs = {dim: open_sizes.pop(dim) for dim in ("M", "N_hidden") if dim in open_sizes}
            fit = [p for p in profiles if open_sizes.items() <= p.items() and all(n <= p[d] for d, n in pairs.items())]
            assert fit, (name, open_sizes, pairs)
