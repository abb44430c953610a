"""`cascade-trt bench`: plain decoding and every rule on one bundle, in turn: a drifting machine hits all alike."""

from __future__ import annotations

import itertools
import json
import statistics
from collections import Counter
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from rich.progress import Progress

from ..calibration.subjects import conditioning
from ..runtime.errors import CascadeError
from ..runtime.pipeline import Pipeline
from ..runtime.plan import TokenPlan
from ..runtime.rules import RULE_NAMES, check_rule_name
from ..runtime.rules.registry import PLAIN
from ..runtime.staging import write_file
from ..runtime.stats import ROUND, Stats
from ..runtime.tree import AUTO
from .counts import check_count
from .demo import bundle_or_demo
from .files import check_apart, check_file, check_writable
from .judge import judge_with
from .loader import Loader
from .progress import progress
from .tables import Rows

if TYPE_CHECKING:
    from ..evaluation.captions import Caption
    from ..evaluation.means import Means

_PLOTS = ("accepts.png", "speed.png", "quality.png")


@dataclass
class Setting:
    """One row of the table: a rule with a tree, and the statistics of its runs."""

    rule: str
    tree: str | None
    runs: list[Stats] = field(default_factory=list)
    causes: list[np.ndarray] = field(default_factory=list)  # int8 [1, rows * columns] of each run

    @property
    def name(self) -> str:
        return self.rule if self.tree is None else f"{self.rule} {self.tree}"

    def seconds(self) -> float:
        """Median seconds of one image."""
        return statistics.median(run.total_seconds / run.images for run in self.runs)

    def figures(self, plain: Setting) -> dict[str, Any]:
        """What is reported: speed, speed-up over plain decoding run by run, tau, ms per round and stage, rounds by
        tree and the reason for the newest choice of one."""
        rounds = sum(run.rounds for run in self.runs)
        stages = {name: 1e3 * sum(run.seconds[name] for run in self.runs) / rounds for name in ROUND}
        ratios = [a.total_seconds / b.total_seconds for a, b in zip(plain.runs, self.runs, strict=True)]
        return {
            "rule": self.rule, "means": self.runs[-1].rule, "tree": self.tree, "images_per_second": 1 / self.seconds(),
            "speed_up": statistics.median(ratios), "speed_ups": ratios,
            "tau": sum(run.tokens for run in self.runs) / rounds, "ms_per_stage": stages,
            "ms_per_round": sum(stages.values()),
            "decode_ms": 1e3 * statistics.median(run.seconds["decode"] / run.images for run in self.runs),
            "host_share": statistics.median(run.host_share for run in self.runs),
            "causes": {cause: sum(run.causes[cause] for run in self.runs) for cause in self.runs[0].causes},
            "origins": {origin: sum(run.origins[origin] for run in self.runs) for origin in self.runs[0].origins},
            "relaxed_share": statistics.mean(run.relaxed_share for run in self.runs),
            "trees": dict(sum((Counter(run.trees) for run in self.runs), Counter())), "why": self.runs[-1].why,
        }  # fmt: skip


def run(
    *, bundle: Path | None, rules: tuple[str, ...], trees: tuple[str, ...], prompts: tuple[str, ...], num_images: int,
    seed: int, loader: Loader, judge: str | None, judged: int, images: Path, json_file: Path | None,
    markdown: Path | None, plots: Path | None,
) -> None:  # fmt: skip
    """Measures, shows the table(s), and writes what was asked for. Images are judged where `judge` names one."""
    check_count("--num-images", num_images)
    check_count("--judged", judged)
    for file in filter(None, (json_file, markdown)):
        check_file(file)
    drawn = {} if plots is None else {f"--plots ({name})": plots / name for name in _PLOTS}
    check_apart({"--json": json_file, "--markdown": markdown, **drawn})
    if judge is not None:
        check_writable(images)
    if plots is not None:
        check_plots(plots)
    means = None if judge is None else judge_with(None if judge == "demo" else judge)
    pipe = loader.load(bundle_or_demo(bundle))
    settings = choose(pipe, rules, trees)
    asked = [] if means is None else captions(means, prompts, judged)
    shown = tuple(caption.prompt for caption in asked) or prompts
    with progress() as bar:
        measure(pipe, settings, shown, num_images, seed, bar)
    rows = [setting.figures(settings[0]) for setting in settings]
    content = {"bundle": pipe.manifest.name, "backend": pipe.backend.name, "images": num_images, "seed": seed}
    content |= {"rows": rows}
    show(rows)
    if means is not None:
        from ..benchmarks import quality

        content |= quality.judge_rows(pipe, means, rows, asked, seed, images)
        quality.show(rows)
    if json_file is not None or markdown is not None:
        from ..benchmarks.machine import describe_machine
        from ..benchmarks.markdown import to_markdown

        content["machine"] = describe_machine(loader.threads)
        if json_file is not None:
            write_file(json_file, f"{json.dumps(content, indent=1)}\n".encode())
        if markdown is not None:
            write_file(markdown, to_markdown(content).encode())
    if plots is not None:
        plot(settings, rows, pipe.manifest.model.plan, plots)


def check_plots(folder: Path) -> None:
    """Before anything is drawn. Raises CascadeError when matplotlib is missing or the folder cannot be written."""
    if find_spec("matplotlib") is None:
        raise CascadeError("--plots needs matplotlib: run `pip install matplotlib`, or leave it away.")
    check_writable(folder)


def plot(settings: list[Setting], rows: list[dict[str, Any]], plan: TokenPlan, folder: Path) -> None:
    from ..benchmarks.plots import plot_accepts, plot_quality, plot_speed

    accepts, speed, quality = (folder / name for name in _PLOTS)
    plot_accepts({s.name: np.concatenate(s.causes) for s in settings[1:]}, plan, accepts)
    plot_speed(rows, speed)
    if "quality" in rows[0]:
        plot_quality(rows, quality)


def captions(means: Means, prompts: tuple[str, ...], count: int) -> list[Caption]:
    """What is drawn and judged: the given prompts as the judge understands them, or the judge's own."""
    from ..evaluation.captions import Caption, understand
    from ..evaluation.means import captions_to_draw

    if not prompts:
        return captions_to_draw(None, means, count)
    given = [Caption(prompts[i % len(prompts)]) for i in range(count)]
    return understand(given, means.judge.config) if means.judge is not None else given


def choose(pipe: Pipeline, rules: tuple[str, ...], trees: tuple[str, ...]) -> list[Setting]:
    """Plain decoding first, then every asked rule with every asked tree; without trees, with all that the bundle was
    built with, and `exact` with `auto`, too.

    Pairs that do not fit are left out with a word on stderr; where no pair is left it raises CascadeError.
    """
    for rule in rules:
        check_rule_name(rule)
    names = trees or (AUTO, *(tree.name for tree in pipe.manifest.trees))
    wanted = [rule for rule in rules or RULE_NAMES if rule != PLAIN]
    pairs = [pair for pair in itertools.product(wanted, names) if trees or pair[1] != AUTO or pair[0] == "exact"]
    found, refused = [Setting(PLAIN, None)], []
    for rule, tree in pairs:
        try:
            found.append(Setting(rule, pipe.tree_for(rule, tree)))
        except CascadeError as error:
            refused.append(error)
    if refused and len(found) == 1:
        raise refused[0]
    for error in refused:
        click.echo(f"Left out: {error}", err=True)
    return found


def measure(
    pipe: Pipeline, settings: list[Setting], prompts: tuple[str, ...], images: int, seed: int, bar: Progress
) -> None:
    """Draws the same images with every setting, one image of each in turn, after a warm-up image."""
    task = bar.add_task("drawing", total=(images + 1) * len(settings))
    for number in range(-1, images):
        for setting in settings:
            subject = conditioning(pipe.manifest, prompts, max(number, 0))
            output = pipe.generate(**subject, seed=seed + max(number, 0), rule=setting.rule, tree=setting.tree)
            if number >= 0:
                setting.runs.append(output.stats)
                setting.causes.append(output.causes)
            bar.advance(task)


def show(rows: list[dict[str, Any]]) -> None:
    from ..benchmarks.markdown import remarks

    table = Rows(("rule", "tree", "images/s", "speed-up", "tau", "relaxed"), keys=2)
    stages = Rows(("rule", "tree", "draft", "verify", "accept", "commit", "all", "host"), keys=2,
                  title="ms a round by stage, and the host's share of it")  # fmt: skip
    for row in rows:
        key, ms = (row["rule"], row["tree"] or "-"), row["ms_per_stage"]
        table.add(
            *key, f"{row['images_per_second']:.3f}", f"{row['speed_up']:.2f}x", f"{row['tau']:.2f}",
            f"{100 * row['relaxed_share']:.1f} %",
        )  # fmt: skip
        stages.add(
            *key, *(f"{ms[name]:.2f}" for name in ("draft", "verify", "accept", "commit")),
            f"{row['ms_per_round']:.1f}", f"{100 * row['host_share']:.1f} %",
        )  # fmt: skip
    table.print()
    stages.print()
    click.echo("speed-up: median over images against rule ar in this run")
    for line in remarks(rows):
        click.echo(line)
