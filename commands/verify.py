"""`cascade-trt verify`: one bundle's or backend's engines against another's, on recorded inputs and end to end."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import click
import numpy as np

from ..engines.verify import INTEGERS
from ..runtime.backends import refusal
from ..runtime.backends.ort import OrtBackend
from ..runtime.bundle import CLASS, Manifest
from ..runtime.errors import CascadeError
from ..runtime.pipeline import Pipeline
from .counts import check_count
from .tables import Rows

_MOST_ROUNDS = 100  # each recorded call is held with its caches


def run(*, bundle: Path, against: Path | None, target: str | None, rounds: int, seed: int, as_json: bool) -> None:
    """Prints the worst difference of every output, the first that is too large, and the drawings' agreement.

    Exit code 1 when an output differs more than its tolerance. Raises CascadeError when the bundles do not
    belong together.
    """
    check_count("--rounds", rounds, _MOST_ROUNDS)
    if against is None and target is None:
        raise CascadeError("say what to compare with: --against BUNDLE, or --target rtx:sm89 for its own engines.")
    from ..engines.verify import compare_calls, compare_drawings, load_plans, record, time_calls

    reference = Pipeline.load(against or bundle, OrtBackend(1), warm=False)
    other = Pipeline.load(bundle, OrtBackend(1), warm=False) if target is None else load_plans(bundle, target)
    for pipe in (reference, other) if target is None else (reference,):
        if (problem := refusal(pipe.manifest.backends, "ort-cpu")) is not None:
            raise CascadeError(f"{pipe.folder} cannot be compared on ort-cpu: {problem}")
    _check_pair(reference.manifest, other.manifest)
    given, precision = _conditioning(reference.manifest, seed), other.manifest.engines["target"].precision
    calls = record(reference, given, rounds, seed)
    differences = compare_calls(calls, other, precision)
    times = time_calls(calls, other) if target is not None else []
    whole = compare_drawings(reference, other, given, seed)
    failed = next((item for item in differences if not item.passed), None)
    if as_json:
        from .output import print_json

        print_json({"calls": len(calls), "outputs": [dataclasses.asdict(item) for item in differences],
                    "drawing": dataclasses.asdict(whole), "milliseconds": dict(times)})  # fmt: skip
    else:
        _show(differences, len(calls), f"{precision}, {target or 'ONNX Runtime'}")
        if failed is not None:
            click.echo(f"first to diverge: {failed.engine}.{failed.tensor} in call {failed.call + 1}")
        for label, milliseconds in times:
            click.echo(f"{label}: {milliseconds:.2f} ms on the GPU")
        parted = "" if whole.first_difference is None else f", they part at token {whole.first_difference + 1}"
        click.echo(f"at temperature 0: {whole.agreement:.1%} of the tokens agree{parted}; "
                   f"mean pixel difference {whole.pixels:.2f} of 255")  # fmt: skip
    click.get_current_context().exit(1 if failed is not None else 0)


def _check_pair(one: Manifest, two: Manifest) -> None:
    def essence(m: Manifest) -> tuple[Any, ...]:
        return m.model, m.target, m.sampling, m.trees, m.drafter

    if essence(one) != essence(two):
        raise CascadeError(
            "the bundles differ in model, trees or sizes: build both from the same checkpoints and options."
        )


def _conditioning(manifest: Manifest, seed: int) -> dict[str, Any]:
    """A prompt, a class, or (without a text engine) seeded random text features."""
    condition, rng = manifest.model.condition, np.random.default_rng(seed)
    if condition.kind == CLASS:
        return {"class_ids": [seed % condition.classes]}
    if manifest.text is not None:
        return {"prompts": ["a red apple"]}
    features = rng.normal(size=(1, condition.length, condition.width)).astype(np.float32)
    mask = np.arange(condition.length)[None] >= condition.length // 2
    return {"features": features, "features_mask": mask}


def _show(differences: list[Any], calls: int, what: str) -> None:
    worst: dict[str, Any] = {}
    for item in differences:
        name = re.sub(r"\.\d+$", "", f"{item.engine}.{item.tensor}")  # a cache's layers share a row
        share = item.limit / max(item.value, 1e-9) if item.tensor in INTEGERS else item.value / item.limit
        if name not in worst or share > worst[name][0]:
            worst[name] = (share, item)
    table = Rows(("output", "worst", "allowed", ""), title=f"{calls} recorded calls, {what}")
    for name, (_, item) in worst.items():
        equal = item.tensor in INTEGERS
        value = f"{item.value:.1%} equal" if equal else f"{item.value:.1e} of the scale"
        limit = f"at least {item.limit:.0%}" if equal else f"{item.limit:.0e}"
        table.add(name, value, limit, "ok" if item.passed else "DIFFERS")
    table.print()
