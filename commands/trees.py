"""`cascade-trt trees`: the trees that can be named, and what a bundle makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from ..runtime.bundle import Manifest, read_manifest
from ..runtime.errors import CascadeError
from ..runtime.tree import TREE_FORMS, TREE_NAMES, AnyTree, DynamicTree, get_tree
from .output import print_json
from .tables import Rows


def run(bundle: Path | None, as_json: bool) -> None:
    manifest = None if bundle is None else read_manifest(bundle)
    named = [_row(get_tree(name), manifest) for name in TREE_NAMES]
    built = [] if manifest is None else [_row(info.tree(), manifest) for info in manifest.trees]
    if as_json:
        held = {} if manifest is None else {"built": built, "most_nodes": manifest.most_nodes}
        print_json({"named": named, "forms": TREE_FORMS} | held)
        return
    console = Console(highlight=False, markup=False)
    if manifest is not None:
        _show(console, built, f"built into {manifest.name}")
    _show(console, named, "trees with a name")
    forms = Rows(("form", "means"), title="trees by their numbers")
    for form, meaning in TREE_FORMS.items():
        forms.add(form, meaning)
    forms.print(console)
    if manifest is None:
        console.print("auto chooses among a bundle's trees; `build --tree` also takes a .json file of nodes.")
    else:
        console.print(f"auto chooses among them; a call takes up to {manifest.most_nodes} nodes, the root included.")


def _row(tree: AnyTree, manifest: Manifest | None) -> dict[str, Any]:
    """A tree in figures. With a bundle `problem` says why it cannot be drawn with (None: it can)."""
    guessed = len(tree.guessed)
    row = {"name": tree.name, "nodes": tree.size, "levels": tree.depth, "drafted": tree.size - 1 - guessed,
           "guessed": guessed, "dynamic": isinstance(tree, DynamicTree)}  # fmt: skip
    if manifest is None:
        return row
    try:
        manifest.tree(tree.name)
    except CascadeError as error:
        return row | {"problem": str(error)}
    return row | {"problem": None}


def _show(console: Console, trees: list[dict[str, Any]], title: str) -> None:
    told = any("problem" in row for row in trees)
    table = Rows(("tree", "nodes", "levels", "drafted", "guessed", *(("in this bundle",) if told else ())), title)
    for row in trees:
        kind = f"{row['drafted']}{', chosen anew in each round' if row['dynamic'] else ''}"
        cells = (row["name"], str(row["nodes"]), str(row["levels"]), kind, str(row["guessed"]))
        table.add(*cells, *((_usable(row["problem"]),) if told else ()))
    table.print(console)


def _usable(problem: str | None) -> str:
    """In a few words; a bundle's sentences end with what to do."""
    return "yes" if problem is None else f"no: {problem.rpartition(': ')[2].removesuffix('.')}"
