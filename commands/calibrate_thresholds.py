"""`cascade-trt calibrate thresholds`: how far `cascade` or `swap` may go with this model."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from ..calibration.plots import plot_curve, plot_similarities
from ..calibration.swaps import Swaps
from ..calibration.thresholds import (
    Candidate,
    Point,
    cascade_candidates,
    least_images,
    operating_point,
    swap_candidates,
)
from ..calibration.watch import Watched
from ..engines.origin import point_images, with_point
from ..engines.publish import amend_bundle, check_replaceable
from ..runtime.bundle import Manifest
from ..runtime.errors import CascadeError
from ..runtime.pipeline import Pipeline
from ..runtime.rules import Rule
from ..runtime.rules.cascade import Cascade
from ..runtime.rules.registry import PLAIN, get_rule
from ..runtime.rules.swap import Swap
from ..runtime.staging import write_file
from ..runtime.stats import Stats
from .counts import check_count
from .demo import bundle_or_demo
from .files import check_writable
from .judge import judge_with
from .loader import Loader
from .progress import progress
from .tables import Rows

if TYPE_CHECKING:
    from PIL import Image

    from ..evaluation.captions import Caption
    from ..evaluation.paired import Difference

_RECORDED = 8  # images that similarities are recorded from
_BASES = {"coupled": "exact", "sampled": "strict", "topk": "strict-topk"}


@dataclass
class Tried:
    """What a candidate drew: images, statistics of each, and the judge's answers (float32 [n])."""

    candidate: Candidate
    runs: list[Stats] = field(default_factory=list)
    images: list[Image.Image] = field(default_factory=list)
    answers: np.ndarray | None = None


def run(
    *, bundle: Path | None, rule: str, tree: str | None, children: str, num_images: int, tolerance: float,
    prompts: Path | None, judge: str | None, seed: int, loader: Loader, write: bool, replace_better: bool,
    out: Path,
) -> None:  # fmt: skip
    """Records similarities, sweeps the thresholds they suggest, writes the curve, and the point into the bundle.

    Raises CascadeError, and the bundle stays as it is, when the images were too few to tell what is lost; before the
    work when they cannot tell, or when the bundle's point rests on more of them (unless `replace_better`).
    """
    if rule not in (Cascade.kind, Swap.kind):
        raise CascadeError(f"--rule must be {Cascade.kind} or {Swap.kind}, which have thresholds, not {rule!r}.")
    if children not in _BASES:
        raise CascadeError(f"--children must be one of {', '.join(_BASES)}, not {children!r}.")
    if rule == Swap.kind and children != "coupled":
        raise CascadeError("swap draws on coupled children alone: leave --children away.")
    check_count("--num-images", num_images)
    if not 0 <= tolerance <= 1:
        raise CascadeError(f"--tolerance must lie between 0 and 1, not {tolerance}.")
    check_writable(out)
    means, asked = _judge(judge, prompts, num_images)
    bundle = bundle_or_demo(bundle)
    pipe = loader.load(bundle)
    write = write and means is not None
    if write:
        _check_write(bundle, pipe.manifest, rule, num_images, tolerance, replace_better)
    priced = pipe.rule("swap:tau_draw=1") if rule == Swap.kind else None  # needs the bundle's table of states
    tree = pipe.tree_for(priced or f"{rule}:children={children}", tree)  # that of the rule, not of what watches it
    watched = record(pipe, tree, children, priced, asked[:_RECORDED], seed)
    seen = watched.similarities
    foretold = {} if watched.swaps is None else watched.swaps.correlations()
    plot_similarities(seen, out / "similarities.png")
    found = swap_candidates(seen) if rule == Swap.kind else cascade_candidates(seen, children)
    tried = [Tried(Candidate(PLAIN, "plain", None)), *map(Tried, found)]
    sweep(pipe, tree, tried, asked, seed)
    if means is not None:
        for one in tried:
            one.answers = _answers(means, one.images, asked)
    points = [to_point(one, tried[0]) for one in tried[1:]]
    chosen, unclear = None, None
    try:
        chosen = operating_point(points, tolerance) if means is not None else None
    except CascadeError as error:
        unclear = error  # the points are shown and written all the same
    plot_curve(points, chosen, out / "curve.png")
    report = {
        "bundle": pipe.manifest.name, "tree": tree, "images": len(asked), "seed": seed,
        "foretold": foretold, "tolerance": tolerance, "plain_accuracy": _mean(tried[0].answers),
        "operating_point": None if chosen is None else chosen.to_dict(), "points": [p.to_dict() for p in points],
    }  # fmt: skip
    write_file(out / "thresholds.json", f"{json.dumps(report, indent=1)}\n".encode())
    show(points, chosen, report)
    click.echo("\n".join(str(out / name) for name in ("thresholds.json", "curve.png", "similarities.png")))
    if unclear is not None and write:
        raise unclear
    if unclear is not None:
        click.echo(f"no operating point: {unclear}")
    elif write and chosen is not None:
        before = pipe.manifest.rules.get(rule)
        write_rule(bundle, chosen.rule, chosen.images, pipe.manifest)
        click.echo(f"{bundle}: rule `{rule}` now means {chosen.rule}" + (f" (before: {before})" if before else ""))


def _check_write(
    bundle: Path, manifest: Manifest, rule: str, num_images: int, tolerance: float, replace_better: bool
) -> None:
    """Raises CascadeError when the bundle could not be given a point of so many images."""
    if num_images < (least := least_images(tolerance)):
        raise CascadeError(
            f"{num_images} image{'s' * (num_images != 1)} cannot show that at most {tolerance:g} of accuracy is lost: "
            f"give --num-images {least} or more, a larger --tolerance, or --no-write for the curve alone."
        )
    images = point_images(manifest, rule)
    if images > num_images and not replace_better:
        raise CascadeError(
            f"what `{rule}` means in {bundle} was found with {images} images, more than {num_images}: it stays; give "
            f"--num-images {images}, --replace to have the new one, or --no-write for the curve alone."
        )
    check_replaceable(bundle)


def _judge(judge: str | None, prompts: Path | None, count: int) -> tuple[Any, list[Caption]]:
    """What to judge with (None: nothing) and the captions to draw."""
    means = None if judge == "none" else judge_with(judge)
    if means is None:
        from ..evaluation.captions import read_captions

        if prompts is None:
            raise CascadeError("without a judge there are no prompts: give a file with --prompts.")
        given = read_captions(prompts)
        return None, [given[i % len(given)] for i in range(count)]
    from ..evaluation.means import captions_to_draw

    return means, captions_to_draw(prompts, means, count)


def record(
    pipe: Pipeline, tree: str | None, children: str, priced: Rule | None, asked: list[Caption], seed: int
) -> Watched:
    """Similarities at the nodes that the strict walk visits; and with a `swap` what it would cost to take a child."""
    assert priced is None or isinstance(priced, Swap)
    watched = Watched(get_rule(_BASES[children]), priced, swaps=Swaps() if children == "coupled" else None)
    for number, caption in enumerate(asked):
        pipe.generate([caption.prompt], seed=seed + number, rule=watched, tree=tree)
    return watched


def sweep(pipe: Pipeline, tree: str | None, tried: list[Tried], asked: list[Caption], seed: int) -> None:
    """Every candidate draws every prompt with the same seed, in turn, so that a drifting machine hits all alike."""
    with progress() as bar:
        task = bar.add_task("sweeping", total=len(asked) * len(tried))
        for number, caption in enumerate(asked):
            for one in tried:
                rule = one.candidate.rule
                output = pipe.generate(
                    [caption.prompt], seed=seed + number, rule=rule, tree=None if rule == PLAIN else tree
                )
                one.runs.append(output.stats)
                one.images += output.images
                bar.advance(task)


def _answers(means: Any, images: list[Image.Image], asked: list[Caption]) -> np.ndarray:
    from ..evaluation.score import score_images

    return score_images(images, asked, means.judge, means.maker, means.gallery).concept


def _mean(answers: np.ndarray | None) -> float | None:
    return None if answers is None or np.isnan(answers).all() else float(np.nanmean(answers))


def to_point(one: Tried, plain: Tried) -> Point:
    """Speed-up image by image (median), tau, and the paired loss of accuracy with its 95 % interval."""
    ratios = [a.total_seconds / b.total_seconds for a, b in zip(plain.runs, one.runs, strict=True)]
    lost = None if one.answers is None or plain.answers is None else _lost(one.answers, plain.answers)
    return Point(
        rule=one.runs[0].rule, signals=one.candidate.signals, quantile=one.candidate.quantile,
        speed_up=statistics.median(ratios),
        tau=sum(r.tokens for r in one.runs) / sum(r.rounds for r in one.runs),
        relaxed_share=statistics.mean(r.relaxed_share for r in one.runs),
        accuracy=_mean(one.answers), lost=lost.mean if lost else None,
        lost_low=lost.low if lost else None, lost_high=lost.high if lost else None, images=lost.pairs if lost else 0,
    )  # fmt: skip


def _lost(answers: np.ndarray, plain: np.ndarray) -> Difference | None:
    """Accuracy lost against plain decoding; answers are 1, 0 or NaN, float [n]. Its interval is that of one image more
    on either side, for a bootstrap of answers that all agree, a single one above all, has no width at all."""
    from ..evaluation.paired import compare

    def with_one(won: float) -> Difference | None:
        return compare(np.append(answers, won).astype(float), np.append(plain, 1 - won).astype(float))

    lost, low, high = compare(answers.astype(float), plain.astype(float)), with_one(1.0), with_one(0.0)
    if lost is None or low is None or high is None:
        return None
    return replace(lost, low=low.low, high=high.high)


def show(points: list[Point], chosen: Point | None, report: dict[str, Any]) -> None:
    table = Rows(("signals", "quantile", "rule", "speed-up", "tau", "relaxed", "accuracy", "lost (95 %)"), keys=2)
    for p in points:
        lost = "-" if p.lost is None else f"{p.lost:+.3f} ({p.lost_low:+.3f} to {p.lost_high:+.3f})"
        table.add(
            p.signals, "-" if p.quantile is None else f"{p.quantile:g}", p.rule, f"{p.speed_up:.2f}x", f"{p.tau:.2f}",
            f"{100 * p.relaxed_share:.1f} %", "-" if p.accuracy is None else f"{p.accuracy:.3f}", lost,
            style="bold" if p is chosen else None,
        )  # fmt: skip
    table.print()
    if report["foretold"]:
        said = ", ".join(f"{name} {value:+.2f}" for name, value in report["foretold"].items())
        click.echo(f"rank correlation of each signal with how alike the states behind child and draw are: {said}")
    if chosen is not None:
        click.echo(
            f"fastest with at most {report['tolerance']:g} of accuracy lost (plain decoding: "
            f"{report['plain_accuracy']:.3f}): {chosen.rule}"
        )


def write_rule(bundle: Path, rule: str, images: int = 0, measured: Manifest | None = None) -> None:
    """Makes `rule` what the bare name of its kind means in the bundle, which is replaced as a whole.

    `images`: how many the rule was judged with; `measured`: the manifest of the bundle that drew them.
    """

    def change(_: Path, manifest: Manifest) -> Manifest:
        return with_point(manifest, rule, images)

    amend_bundle(bundle, change, measured)
