"""`cascade-trt calibrate tree`: which static tree is the fastest here."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console

from ..calibration.costs import TreeCosts, measure_calls
from ..calibration.subjects import conditioning
from ..calibration.tree import Choice, best_tree, choose_tree, expected_tau, sizes
from ..calibration.watch import Watched
from ..runtime.costs import REPEATS, Costs, to_info
from ..runtime.errors import CascadeError
from ..runtime.pipeline import Pipeline
from ..runtime.rules.registry import PLAIN
from ..runtime.staging import write_file
from ..runtime.stats import ROUND, Stats
from ..runtime.tree import MOST_NODES, Tree
from .counts import check_count
from .demo import bundle_or_demo
from .files import check_file
from .hints import program
from .loader import Loader
from .progress import progress
from .tables import Rows


def run(
    *, bundle: Path | None, rule: str, num_images: int, most_nodes: int, most_depth: int, nodes: int | None,
    prompts: tuple[str, ...], seed: int, loader: Loader, out: Path,
) -> None:  # fmt: skip
    """Measures, chooses, writes the tree as a JSON of paths and says what it promises."""
    _check(rule, num_images, most_nodes, most_depth, nodes, out)
    pipe = loader.load(bundle_or_demo(bundle))
    watched = Watched(pipe.rule(rule))
    wanted = sizes(min(most_nodes + 1, pipe.manifest.most_nodes))
    with progress() as bar:
        trees = list(_static(pipe))
        task = bar.add_task("measuring", total=num_images * (len(trees) + 1) + REPEATS + 1)
        advance = lambda: bar.advance(task)  # noqa: E731 - a name for what both loops call
        runs: dict[str, Stats] = {}
        plain: Stats | None = None
        for number in range(-1, num_images):
            for tree in (*trees, None):
                subject = conditioning(pipe.manifest, prompts, max(number, 0))
                chosen = PLAIN if tree is None else watched
                stats = pipe.generate(**subject, seed=seed + max(number, 0), rule=chosen, tree=tree).stats
                if number < 0:
                    continue  # the first image of each warms up
                if tree is None:
                    plain = stats if plain is None else _sum(plain, stats)
                else:
                    runs[tree] = stats if tree not in runs else _sum(runs[tree], stats)
                advance()
        calls = measure_calls(pipe, [1], wanted, {}, note=advance)
    assert plain is not None  # num_images is at least 1
    costs = TreeCosts(Costs(to_info(pipe.identity, [1], wanted, calls, _host(runs))), _drafting(runs), _static(pipe))
    shares = watched.acceptance.table()
    if nodes is None:
        choices = choose_tree(shares, costs.of, most_nodes, most_depth, out.stem)
    else:
        tree, tau = best_tree(shares, nodes, most_depth, out.stem)
        choices = [Choice(tree, tau, costs.of(tree))]
    _write(out, choices[0])
    _show(pipe, choices, runs, shares, costs, plain, out)


def _check(rule: str, num_images: int, most_nodes: int, most_depth: int, nodes: int | None, out: Path) -> None:
    if rule == PLAIN:
        raise CascadeError("rule ar has no tree: choose another --rule.")
    check_count("--num-images", num_images)
    for name, value in (("--max-nodes", most_nodes), ("--max-depth", most_depth), ("--nodes", nodes)):
        if value is not None:
            check_count(name, value, MOST_NODES - 1)  # the root is the other one
    if out.suffix != ".json":
        raise CascadeError(f"--out must be a .json file, not {out}.")
    check_file(out)


def _static(pipe: Pipeline) -> dict[str, Tree]:
    """The bundle's static trees whose nodes are all drafted. Raises CascadeError when there is none: ranks of a dynamic
    tree say too little, and those of guesses say nothing of the drafter."""
    if pipe.manifest.drafter is None:
        raise CascadeError(
            f"bundle {pipe.manifest.name} has no drafter to find a tree for: build it with --drafter and --tree "
            "mc_sim_7b_63."
        )
    trees = {
        info.name: tree for info in pipe.manifest.trees if isinstance(tree := info.tree(), Tree) and not tree.guessed
    }
    if not trees:
        raise CascadeError(
            f"bundle {pipe.manifest.name} has no static tree of drafted nodes to measure with: build it with --tree "
            "mc_sim_7b_63, too."
        )
    return trees


def _sum(first: Stats, second: Stats) -> Stats:
    first.add(second)
    return first


def _drafting(runs: dict[str, Stats]) -> dict[str, float]:
    """Milliseconds of drafting a round, by tree."""
    return {name: 1e3 * stats.seconds["draft"] / stats.rounds for name, stats in runs.items()}


def _host(runs: dict[str, Stats]) -> float:
    """Milliseconds of a round's host work."""
    host = [
        1e3 * sum(stats.seconds[s] for s in ROUND if s not in ("draft", "verify")) / stats.rounds
        for stats in runs.values()
    ]
    return sum(host) / len(host)


def _write(out: Path, best: Choice) -> None:
    write_file(out, f"{json.dumps(best.tree.paths())}\n".encode())


def _show(
    pipe: Pipeline, choices: list[Choice], runs: dict[str, Stats], shares, costs: TreeCosts, plain: Stats, out: Path
) -> None:
    console = Console(highlight=False)
    alone = 1e3 * sum(plain.seconds[s] for s in ROUND) / plain.rounds  # ms a token of plain decoding
    console.print(f"plain decoding takes {alone:.2f} ms a token; accepted children by depth and rank:")
    table = Rows(("depth", *(f"rank {rank + 1}" for rank in range(shares.shape[1]))))
    for depth, row in enumerate(shares):
        table.add(str(depth + 1), *(f"{share:.3f}" for share in row))
    table.print(console)
    table = Rows(("tree", "nodes", "levels", "tau", "ms/round", "speed-up"))
    for name, tree in _static(pipe).items():
        stats = runs[name]
        took = 1e3 * sum(stats.seconds[s] for s in ROUND) / stats.rounds
        predicted = expected_tau(tree, shares), costs.of(tree)
        table.add(name, str(tree.size - 1), str(tree.depth), f"{stats.tau:.2f} ({predicted[0]:.2f} predicted)",
                      f"{took:.2f} ({predicted[1]:.2f})",
                      f"{alone * stats.tau / took:.2f}x ({alone * predicted[0] / predicted[1]:.2f}x)")  # fmt: skip
    for choice in choices[:5]:
        table.add("predicted", str(choice.tree.size - 1), str(choice.tree.depth), f"{choice.tau:.2f}",
                      f"{choice.milliseconds:.2f}", f"{alone * choice.tokens_per_second / 1e3:.2f}x")  # fmt: skip
    table.print(console)
    click.echo(f"the first one predicted is in {out}: build with --tree {out}, and compare with `{program()} bench`.")
