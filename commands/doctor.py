"""`cascade-trt doctor`: this machine and its bundles, in sentences."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from ..engines.doctor import DAMAGED, REBUILD, judge_bundle, look_around, machine_sentences
from ..runtime.bundle import MANIFEST
from .hints import usable


def run(bundles: tuple[Path, ...], as_json: bool) -> None:
    """Prints the findings; exit code 1 when a bundle is damaged or must be built again."""
    found = bundles or tuple(sorted(path.parent for path in Path("build").glob(f"*/{MANIFEST}")))
    machine = look_around()
    verdicts = {str(bundle): judge_bundle(bundle, machine) for bundle in found}
    if as_json:
        from .output import print_json

        listed = {bundle: [dataclasses.asdict(item) for item in items] for bundle, items in verdicts.items()}
        print_json({"machine": dataclasses.asdict(machine), "bundles": listed})
    else:
        for sentence in machine_sentences(machine):
            click.echo(usable(sentence))
        for bundle, items in verdicts.items():
            click.echo(f"\n{bundle}")
            for item in items:
                click.echo(f"  {item.what}: {item.verdict}: {usable(item.sentence)}")
    wrong = any(item.verdict in (REBUILD, DAMAGED) for items in verdicts.values() for item in items)
    click.get_current_context().exit(1 if wrong else 0)
