"""What one call is made of on `ort-cuda`: kernels, copies, zeroings and products, counted on the stand-in for CUDA.

    make test-stand-in                                  # installs onnxruntime-gpu into build/stand-in, once
    CASCADE_STAND_IN=build/stand-in python -m cascade_trt.benchmarks.launches

A captured call is one launch for the host, but the GPU still starts each of its parts in turn, which takes its time.
Small GPTs of two and of four layers say what a layer is and what there is once a call; chains of four and of seven say
what a level of drafting is. GPT-XL's own target, counted, checks what they say of it. The stand-in (tests/stand_in)
computes nothing, so nothing here is a time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ..export.checkpoints.source import DummySource
from ..export.families.llamagen.family import drafter_config, drafter_model, preset_config, target_model
from ..export.families.llamagen.model import LlamaGenConfig
from ..export.families.llamagen.reader import drafter_shapes, llamagen_shapes
from ..export.graphs.builder import GraphBuilder
from ..export.graphs.draft import build_draft
from ..export.graphs.drafter import DraftGraph, draft_shape
from ..export.graphs.fused import FUSED, write_fused
from ..export.graphs.target import build_target, target_shape
from ..export.graphs.weights import PRECISIONS as DTYPES
from ..export.graphs.weights import WeightFile
from ..runtime.tree import get_tree
from . import RESULTS

FILE = RESULTS / "launches.json"
TESTS = Path(__file__).resolve().parent.parent / "tests"
MODEL = "llamagen-t2i-xl-stage1"
PRECISIONS = ("fp16", "fp32")
LAYERS = (2, 4)
NODES = (1, 60)  # plain decoding, and a large tree
CHAINS = (4, 7)
TREES = ("small_6", "mc_sim_7b_63", "eagle2_60")
KINDS = {"kernels": ("launch",), "products": ("product",), "copies": ("copy", "upload"), "zeroings": ("zero",)}
Calls = dict[str, dict[str, int]]  # {call: {kind: number}}
_SMALL = {"dim": 256, "n_head": 4, "ffn_dim": 768}  # widths change no count
_MOST_NODES, _TOP_K = 64, 1000


@click.command()
@click.option("--entry", default="now", show_default=True, help="Which entry of the results this run replaces.")
@click.argument("counted", nargs=-1, type=click.Path(path_type=Path), metavar="")
def main(entry: str, counted: tuple[Path, ...]) -> None:
    """Counts of calls, to benchmarks/results/launches.json."""
    if counted:  # this is the process in which CUDA is the stand-in
        click.echo(json.dumps(count_all(counted)))
        return
    with tempfile.TemporaryDirectory(prefix="launches-") as place:
        result = measure(Path(place), PRECISIONS, MODEL)
    found = json.loads(FILE.read_text()) if FILE.is_file() else {}
    FILE.write_text(json.dumps(found | {entry: result}, indent=1) + "\n")
    for row in result["rows"]:
        parts = ", ".join(f"{number} {kind}" for kind, number in row.items() if kind in KINDS and number)
        click.echo(f"{row['precision']} {row['what']}: {sum(row[kind] for kind in KINDS)} ({parts})")


def measure(place: Path, precisions: Sequence[str], model: str | None = None) -> dict[str, Any]:
    """Writes graphs into `place`, and counts what their calls are: of the small GPTs, and of the target of a preset in
    the first of the precisions."""
    small = {(precision, layers): place / f"{precision}-{layers}" for precision in precisions for layers in LAYERS}
    for (precision, layers), folder in small.items():
        write_graphs(folder, precision, replace(preset_config(MODEL), n_layer=layers, **_SMALL), drafts=True)
    whole = [place / model] if model else []
    for folder in whole:
        write_graphs(folder, precisions[0], preset_config(folder.name), drafts=False)
    version, counts = counted_apart(place, [*small.values(), *whole])
    rows = []
    for precision in precisions:
        few, many = (counts[small[precision, layers]] for layers in LAYERS)
        rows += [{"precision": precision} | row for row in _rows(few, many)]
    for folder in whole:
        first = {"precision": precisions[0]}
        rows += [first | {"what": f"{model}, {name}"} | made for name, made in counts[folder].items()]
    return {"onnxruntime": version, "rows": rows}


def _rows(few: Calls, many: Calls) -> list[dict[str, Any]]:
    """Of a layer of the target and of what is there once a call; of a level of drafting, and of whole draft calls."""
    rows = []
    for nodes in NODES:
        layer = _share(many[f"target {nodes}"], few[f"target {nodes}"], LAYERS[1] - LAYERS[0])
        once = {kind: few[f"target {nodes}"][kind] - LAYERS[0] * layer[kind] for kind in KINDS}
        rows += [{"what": f"a layer, {nodes} nodes"} | layer, {"what": f"once a call, {nodes} nodes"} | once]
    short, long = (few[f"draft chain_{length}"] for length in CHAINS)
    rows.append({"what": "a level of a drafted chain"} | _share(long, short, CHAINS[1] - CHAINS[0]))
    return rows + [{"what": f"draft {tree}"} | {kind: few[f"draft {tree}"][kind] for kind in KINDS} for tree in TREES]


def _share(more: Mapping[str, int], fewer: Mapping[str, int], steps: int) -> dict[str, float]:
    return {kind: (more.get(kind, 0) - fewer.get(kind, 0)) / steps for kind in KINDS}


def write_graphs(folder: Path, precision: str, config: LlamaGenConfig, drafts: bool) -> None:
    """The target of a GPT with random weights, and its draft graphs if they are wanted."""
    target = target_model(DummySource(llamagen_shapes(config)), config, folder.name)
    folder.mkdir()
    with WeightFile(folder / "target.data", DTYPES[precision]) as weights:
        g = GraphBuilder("target", weights)
        build_target(g, target, target_shape(target, _MOST_NODES, _TOP_K))
        save(g, folder)
    if not drafts:
        return
    sizes = drafter_config(config)
    drafter = drafter_model(DummySource(drafter_shapes(sizes)), sizes)
    trees = [get_tree(name) for name in (*(f"chain_{length}" for length in CHAINS), *TREES)]
    shape = draft_shape(target, trees, _MOST_NODES)
    with WeightFile(folder / "drafter.data", DTYPES[precision]) as own:
        for tree in trees:
            g = GraphBuilder(f"draft.{tree.name}", own, weights.tensors)
            build_draft(DraftGraph(g, drafter, target, shape), tree)
            save(g, folder)


def save(g: GraphBuilder, folder: Path) -> None:
    """Writes the graph in the form that ONNX Runtime reads, as a build does."""
    standard = folder / f"{g.name}.onnx"
    g.save(standard)
    write_fused(standard, folder / f"{g.name}{FUSED}")


def counted_apart(place: Path, folders: Sequence[Path]) -> tuple[str, dict[Path, Calls]]:
    """The version of ONNX Runtime and {folder: {call: counts}}, from a process in which onnxruntime-gpu finds the
    stand-in. Raises UsageError where there is none."""
    packages = os.environ.get("CASCADE_STAND_IN")
    if packages is None:
        raise click.UsageError("CASCADE_STAND_IN names no folder of packages: `make test-stand-in` makes one.")
    sys.path.insert(0, str(TESTS))
    from stand_in.build import build  # type: ignore[import-not-found]

    libraries = place / "libraries"
    libraries.mkdir()
    build(libraries)
    path = os.pathsep.join(filter(None, (packages, str(TESTS), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries), "PYTHONPATH": path}
    command = [sys.executable, "-m", "cascade_trt.benchmarks.launches", *map(str, folders)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"counting failed:\n{done.stderr[-2000:]}")
    said = json.loads(done.stdout)
    return said["onnxruntime"], {Path(folder): calls for folder, calls in said["counts"].items()}


def count_all(folders: Sequence[Path]) -> dict[str, Any]:
    """The version of ONNX Runtime, and {folder: {"target 60": {"kernels": 1, ...}, ...}} of the graphs in each. Runs
    in a process in which CUDA is the stand-in."""
    from ..runtime.backends.ort_cuda import OrtCudaBackend

    backend = OrtCudaBackend(graphs=False)  # what would be captured is what runs without a graph
    counts: dict[str, Calls] = {}
    for folder in folders:
        made = counts[str(folder)] = {}
        for nodes in NODES:
            made[f"target {nodes}"] = count(backend, folder / f"target{FUSED}", nodes)
        for graph in sorted(folder.glob(f"draft.*{FUSED}")):
            made[f"draft {graph.name.split('.')[1]}"] = count(backend, graph, NODES[1])
    return {"onnxruntime": backend.identity.version, "counts": counts}


def count(backend: Any, file: Path, nodes: int) -> dict[str, int]:
    """What one call of a graph is, for one image under guidance and so many nodes in the target's call: {kind: number}.

    Caches are bound to one memory as input and output, as a lane does.
    """
    import onnx
    from stand_in.calls import calls, forget  # type: ignore[import-not-found]

    sizes = {"R": 2, "P": 1, "G": 2, "N": nodes, "N_hidden": nodes, "L": 2, "M": 3}
    graph = onnx.load(file, load_external_data=False).graph
    bound: dict[str, Any] = {}

    def buffer(value: Any) -> Any:
        kind, name = value.type.tensor_type, value.name.replace("present_", "past_")
        shape = [sizes[size.dim_param] if size.dim_param else size.dim_value for size in kind.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
        return bound.setdefault(name, backend.buffer(shape, dtype, "device"))

    inputs, outputs = ({value.name: buffer(value) for value in values} for values in (graph.input, graph.output))
    call = backend.load(file).bind(inputs, outputs)
    call.run()
    forget()
    call.run()
    made = Counter(call.kind for call in calls())
    return {name: sum(made[kind] for kind in kinds) for name, kinds in KINDS.items()}


if __name__ == "__main__":
    main()
