"""`cascade-trt info`: a bundle at a glance."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from ..runtime.backends.kernels.info import kernel_problem, kernel_source
from ..runtime.bundle import CLASS, TOKENS, CostInfo, Manifest, PlanInfo, TreeInfo, read_manifest
from ..runtime.errors import CascadeError
from ..runtime.files import check_files
from ..runtime.options import DrawOptions, check_sampling
from ..runtime.rulebook import Rulebook
from ..runtime.rules import RULE_NAMES
from ..runtime.tables import open_neighbours, open_states
from .demo import bundle_or_demo
from .hints import program, usable
from .tables import Rows


def run(bundle: Path | None, verify: bool, tensors: bool, as_json: bool) -> None:
    bundle = bundle_or_demo(bundle)
    manifest = read_manifest(bundle)
    check_files(bundle, manifest, thorough=verify)
    if as_json:
        click.echo(manifest.to_json())
        return
    console = Console(highlight=False, markup=False)  # a bundle's texts are shown as they are
    _overview(console, bundle, manifest)
    _engines(console, manifest)
    _plans(console, bundle, manifest, verify)
    _broken_kernels(console, bundle, manifest)
    if tensors:
        _tensors(console, bundle, manifest)
    _backends(console, manifest)


def human(count: float, unit: str = "B") -> str:
    """1234567 -> '1.2 MB'."""
    for prefix in ("", "k", "M", "G"):
        if count < 1000:
            return f"{count:.0f} {prefix}{unit}" if not prefix else f"{count:.1f} {prefix}{unit}"
        count /= 1000
    return f"{count:.1f} T{unit}"


def _overview(console: Console, bundle: Path, manifest: Manifest) -> None:
    model, sampling = manifest.model, manifest.sampling
    table = Table(Column(style="bold"), Column(), show_header=False, box=None, padding=(0, 2, 0, 0))
    weights = "random (--dummy-weights)" if manifest.dummy_weights else ", ".join(
        f"{part}: {entry.get('file')}" for part, entry in manifest.provenance.items()
    )  # fmt: skip
    plan = model.plan
    forced = "" if plan.length == plan.image_tokens else f", a sequence of {plan.length} with forced ones"
    rows = [
        ("bundle", f"{bundle} ({manifest.tool}, schema {manifest.schema})"),
        ("model", f"{model.family} {model.variant}: {model.n_layer} layers x {model.dim}, {model.n_head} heads, "
                  f"{human(model.parameters, '').strip()} weights"),
        ("image", f"{plan.columns * model.pixels} x {plan.rows * model.pixels} px from {plan.columns} x {plan.rows} "
                  f"tokens of {model.vocab_size}{forced}"),
        ("condition", _condition(manifest)),
        ("drafter", _drafter(manifest)),
        ("trees", "; ".join(map(_tree, manifest.trees or [manifest.tree(None)]))),
        ("more trees", f"{_guessed(manifest)} of up to {manifest.most_nodes} nodes, without a rebuild"),
        ("sampling", f"guidance {sampling.guidance_scale}, temperature {sampling.temperature}, "
                     f"top_k {sampling.top_k} (at most {manifest.target.max_top_k}), top_p {sampling.top_p}"),
        ("batch", f"{manifest.batch} slot(s) for images at a time, {manifest.target.slots} cache slots"),
        *_rules(bundle, manifest),
        ("tables", _tables(bundle, manifest)),
        ("costs", "\n".join(map(_costs, manifest.costs)) or
                  f"none measured: run {program()} calibrate costs --bundle {bundle}"),
        ("kernels", _kernels(bundle, manifest)),
        ("weights", weights),
    ]  # fmt: skip
    for name, value in rows:
        table.add_row(name, value)
    console.print(table)


def _condition(manifest: Manifest) -> str:
    """What an image is drawn from."""
    condition, text = manifest.model.condition, manifest.text
    if condition.kind == CLASS:
        return f"{condition.classes} classes"
    if condition.kind == TOKENS:
        return f"text, {condition.length} slots of token ids below {condition.vocabulary}"
    source = "bring your own features" if text is None else f"engine, {text.max_length} tokens"
    return f"text, {condition.length} slots of {condition.width}; text: {source}"


def _rules(bundle: Path, manifest: Manifest) -> list[tuple[str, str]]:
    """Which rules can be used, and what their names mean here where that was calibrated."""
    book, sampling, fit, unfit = Rulebook(bundle, manifest), check_sampling(manifest, DrawOptions()), [], []
    for name in RULE_NAMES:
        try:
            book.choose(name, None, sampling)
            fit.append(name)
        except CascadeError:
            unfit.append(name)
    why = f"; not {', '.join(unfit)}: {program()} rules {bundle} says why" if unfit else ""
    points = "\n".join(_point(manifest, name, spelt) for name, spelt in manifest.rules.items())
    return [("rules", f"{', '.join(fit)}{why}"), ("operating points", points or "none: rules have their own defaults")]


def _point(manifest: Manifest, name: str, spelt: str) -> str:
    """What a rule's bare name means in the bundle."""
    from ..engines.origin import point_images

    images = point_images(manifest, name)
    return f"{name} means {spelt}{f', judged with {images} images' if images else ''}"


def _tables(bundle: Path, manifest: Manifest) -> str:
    """What rules look tokens up in."""
    neighbours, states = open_neighbours(bundle, manifest), open_states(bundle, manifest)
    said = []
    if neighbours is not None:
        said.append(f"the {neighbours.shape[1]} nearest codes of each code ({manifest.neighbours})")
    if states is None:
        said.append(f"no states: run {program()} calibrate states --bundle {bundle}")
    else:
        seen = int(states.rows.any(axis=1).sum())
        said.append(f"states behind {seen} of {len(states.rows)} tokens ({manifest.states})")
    return "; ".join(said)


def _drafter(manifest: Manifest) -> str:
    drafter = manifest.drafter
    if drafter is None:
        return "none"
    return f"{drafter.kind}, {human(drafter.parameters, '').strip()} weights"


def _tree(info: TreeInfo) -> str:
    """A tree in a few words: "mixed_24: 25 nodes, drafts 1 level (draft.chain_1), guesses 23"."""
    tree, parts = info.tree(), []
    if tree.drafted is not None:
        levels = "1 level" if tree.drafted.depth == 1 else f"{tree.drafted.depth} levels"
        parts.append(f"drafts {levels} ({info.engine}{', dynamic' if info.dynamic else ''})")
    if tree.guessed:
        parts.append(f"guesses {len(tree.guessed)}")
    return f"{info.name}: {tree.size} nodes, {', '.join(parts)}"


def _costs(info: CostInfo) -> str:
    """What `auto` chooses by on one machine, in a line."""
    if (problem := info.problem()) is not None:
        return f"{info.backend} {info.backend_version} on {info.machine}: {problem}, so run calibrate costs again"
    threads = f"{info.threads} thread{'s' * (info.threads != 1)}"
    slots = f"{', '.join(map(str, info.slots))} image{'s' * (info.slots[-1] != 1)} at a time"
    images = f"accepted lengths of {info.images} image{'s' * (info.images != 1)}"
    return f"{info.backend} {info.backend_version} on {info.machine}, {threads}: {slots}, {images}"


def _kernels(bundle: Path, manifest: Manifest) -> str:
    """What a GPU runs of a round outside of the engines."""
    if not manifest.kernels:
        return f"none: run {program()} compile {bundle} --target cuda"
    names, compilers = ([getattr(info, name) for info in manifest.kernels] for name in ("architecture", "compiler"))
    size = human(sum(info.bytes for info in manifest.kernels))
    return f"{', '.join(names)}: {size}, {', '.join(dict.fromkeys(compilers))}"


def _broken_kernels(console: Console, bundle: Path, manifest: Manifest) -> None:
    """Those that no GPU is given."""
    source = kernel_source()
    for problem in dict.fromkeys(kernel_problem(bundle, info, source) for info in manifest.kernels):
        if problem is not None:
            console.print(usable(problem), style="red", soft_wrap=True)


def _guessed(manifest: Manifest) -> str:
    """The trees that a bundle serves although it was not built with them."""
    drafted = [manifest.tree_of(engine) for engine in manifest.engines]
    return "jacobi and mixed" if any(tree is not None and tree.size == 2 for tree in drafted) else "jacobi"


def _engines(console: Console, manifest: Manifest) -> None:
    table = Rows(("engine", "precision", "graphs", "weights", "off PyTorch", "activations"))
    for name, engine in manifest.engines.items():
        size = sum(manifest.files[file].bytes for file in engine.weights)
        table.add(
            name, engine.precision, human(sum(manifest.files[file].bytes for file in engine.graphs)),
            f"{', '.join(engine.weights)} ({human(size)})",
            _parity(manifest.parity.get(name)), _reach(manifest.parity.get(name)),
        )  # fmt: skip
    table.print(console)


def _plans(console: Console, bundle: Path, manifest: Manifest, thorough: bool) -> None:
    """TensorRT engines: what is inside them by TensorRT's own layer report. Targets that share plans share rows."""
    if not manifest.plans:
        return
    from ..engines.cache import plan_damage
    from ..engines.inspect import summarise

    served: dict[str, list[PlanInfo]] = {}
    for plan in manifest.plans:
        served.setdefault(plan.file, []).append(plan)
    groups: dict[tuple[str, ...], list[PlanInfo]] = {}
    for plans in served.values():
        groups.setdefault(tuple(plan.target for plan in plans), []).append(plans[0])
    damaged = []
    for targets, plans in groups.items():
        names = ("engine", "size", "layers", "in/out", "attention", "KV in place", "KV copies")
        title = f"{' '.join(targets)}: {plans[0].backend} {plans[0].backend_version}"
        table = Rows((*names, "by dtype", "build"), title)
        for plan in plans:
            damage = plan_damage(bundle, plan, thorough)
            if damage:
                again = " ".join(f"--target {target}" for target in targets)
                damaged.append(f"{plan.file} {damage}: run `{program()} compile {bundle} {again}`.")
                continue
            s = summarise(bundle, plan)
            mix = ", ".join(f"{count} {dtype}" for dtype, count in s.precisions.items() if "f" in dtype)
            table.add(
                plan.engine, human(plan.bytes), str(s.layers), f"{s.inputs}/{s.outputs}", str(s.attention),
                str(len(s.aliases)), s.copies, mix,
                f"{plan.seconds:.0f} s, {human(plan.peak_memory)}",
            )  # fmt: skip
        table.print(console)
        for plan in plans:
            if plan.fixed_nodes is not None:
                console.print(_fixed(plan.engine, f"{plan.fixed_nodes} nodes"))
            if plan.fixed_pairs is not None:
                console.print(_fixed(plan.engine, f"{plan.fixed_pairs} pairs"))
    for sentence in damaged:
        console.print(sentence, style="red", soft_wrap=True)


def _fixed(engine: str, size: str) -> str:
    return f"{engine}: {size} in every call; fewer are padded, more (the prefix) are split into several calls"


def _tensors(console: Console, bundle: Path, manifest: Manifest) -> None:
    """Inputs and outputs as TensorRT reports them; targets whose engines have the same share a table."""
    from ..engines.inspect import read_report, tensor_rows

    shown: dict[tuple, list[PlanInfo]] = {}
    for plan in {plan.file: plan for plan in manifest.plans}.values():
        shown.setdefault((plan.engine, *tensor_rows(read_report(bundle, plan))), []).append(plan)
    for (engine, *rows), plans in shown.items():
        names = " ".join(plan.target for plan in plans)
        table = Rows(("tensor", "", "dtype", "shape", "memory of"), f"{engine}: {names}")
        for row in rows:
            shape = " x ".join("?" if size < 0 else str(size) for size in row.shape)
            table.add(row.name, row.mode, row.dtype, shape, row.alias)
        table.print(console)


def _parity(report: dict | None) -> str:
    if not report:
        return "not compared"
    if "skipped" in report:
        return report["skipped"]
    worst = max(report["outputs"].items(), key=lambda item: item[1]["relative"])
    return f"{worst[0]} {worst[1]['absolute']:.0e}"


def _reach(report: dict | None) -> str:
    """The largest activation; fp16 holds 65504."""
    seen = (report or {}).get("activations")
    return f"{seen['largest']:.3g}" if seen else ""


def _backends(console: Console, manifest: Manifest) -> None:
    for backend, verdict in manifest.backends.items():
        fits = "usable" if backend == "ort-cpu" else "takes these graphs"
        shown = Text.assemble((backend, "bold"), f": {fits if verdict == 'yes' else verdict}")
        console.print(shown, soft_wrap=True)
