"""The `cascade-trt` command."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import click

from .commands.hints import usable
from .commands.loader import with_loader
from .commands.options import Place, one
from .commands.stopping import Stopped
from .commands.streams import lost, open_streams
from .runtime.errors import CascadeError, CascadeWarning

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Group(click.Group):
    """Turns CascadeError, and a disk that is full, into one sentence on stderr and exit code 2; warnings of ours into
    one sentence."""

    def invoke(self, ctx: click.Context) -> Any:
        show = warnings.showwarning

        def say(message: Warning | str, category: type[Warning], *where: Any) -> None:
            if issubclass(category, CascadeWarning):
                click.echo(f"Warning: {message}", err=True)
            else:
                show(message, category, *where)

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("always", CascadeWarning)
                warnings.showwarning = say
                if _is_nowhere():  # what is looked for in it would be missing without a word
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
                return super().invoke(ctx)
        except CascadeError as error:
            sentence = str(error)
        except OSError as error:
            if error.errno not in _FULL and not _is_nowhere():
                raise
            sentence = "the folder that this command runs in is gone: change to another one." if _is_nowhere() else (
                f"cannot write {error.filename or 'a file'} ({os.strerror(error.errno or 0)}): make room for it."
            )  # fmt: skip
        click.echo(f"Error: {usable(sentence)}", err=True)
        return ctx.exit(2)


def _is_nowhere() -> bool:
    """Whether the working directory was removed."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cascade-trt")
def cli() -> None:
    """Speculative decoding of autoregressive image models on exported engines."""


def main() -> None:
    """Entry point; Ctrl-C outside a drawing ends with exit code 130 and nothing half-written, and so does `kill`; with
    129 where the terminal was closed."""
    stopped = Stopped()
    stopped.catch()
    open_streams()
    code = _run(stopped)
    if (reason := lost(sys.stdout)) is not None:
        click.echo(f"Error: standard output could not be written ({reason}).", err=True)
        code = code or 1
    sys.exit(code)


def _run(stopped: Stopped) -> int:
    """The exit code."""
    try:
        return cli(standalone_mode=False) or 0  # click returns the code of `ctx.exit`, and None else
    except click.ClickException as error:
        error.show()
        return 2
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        return stopped.code


PATH = Place(path_type=Path)
PLACE = Place()  # as text: what may also be a word
BUNDLE = click.option(
    "--bundle", type=PATH, help="[default: build/emoji, else the demo's in your cache, which is built on first use]"
)


@cli.command()
@click.argument("model")
@click.option("--checkpoint", type=PATH, help="The transformer's checkpoint (.pt, .safetensors, folder). [default: "
              "the published files, in checkpoints/<model>/ or from the Hugging Face hub]")
@click.option("--vq", type=PATH, help="The VQ tokenizer's checkpoint; only its decoder is used.")
@click.option("--drafter", type=PATH,
              help="LANTERN drafter (file or folder); without it guesses come from the round before.")
@click.option("--text", type=PLACE,
              help="Folder of the text encoder (transformers format), or 'none'. [default: none with "
              "--checkpoint, else the published one]")
@click.option("--config", type=PATH, help="JSON with what the checkpoint cannot tell (grid, n_head, ...).")
@click.option("--grid", type=int, help="Side of the token grid: 16, 24, 32 (instead of --config).")
@click.option("--n-head", type=int, help="Attention heads, where head_dim is not 64.")
@click.option("--prompt-length", type=int,
              help="Tokens of a prompt with what stands around it, for models that read prompts themselves. "
                   "From 64 to 4096. [default: 128]")
@click.option("--size", help="WIDTHxHEIGHT of images in pixels, for lumina-mgpt. [default: that of the folder's name]")
@click.option("--tree", "trees", multiple=True,
              help="Tree that is drawn with: a name, chain_W, mixed_W, jacobi_W, ... or a .json of nodes; repeatable.")
@click.option("--max-nodes", type=int,
              help="Most nodes of a target call: trees of guesses up to it need no rebuild. [default: 33]")
@click.option("--batch", type=int, default=1, show_default=True, help="Most prompts drawn at once.")
@click.option("--precision", default="fp32", show_default=True, help="fp32, fp16 or bf16.")
@click.option("--max-top-k", type=int, help="Logits that the engine returns: the largest top_k to be used.")
@click.option("--dummy-weights", is_flag=True, help="Random weights for a preset: for sizing and benchmarks.")
@click.option("--target", "targets", multiple=True,
              help="Also compile TensorRT engines: rtx:sm86|sm89|sm120|sm121, tensorrt; or the kernels of a round: "
                   "cuda, cuda:smNN; repeatable.")
@click.option("--one-plan", is_flag=True, help="One plan for all rtx targets: smaller, fit for the oldest GPU.")
@click.option("--out", type=PATH, help="Folder of the bundle. [default: build/<model>]")
def build(model: str, **options: Any) -> None:
    """Build a bundle for MODEL: a preset of `models` from its published files, `llamagen` with checkpoints of yours,
    or `emoji` (bundled)."""
    from .commands.build import run

    run(model, **options)


@cli.command("compile")
@click.argument("bundle", type=PATH)
@click.option("--target", "targets", multiple=True,
              help="rtx:sm86|sm89|sm120|sm121 (TensorRT engines, on any machine), tensorrt (for this machine's GPU), "
                   "cuda (the kernels of a round, for every GPU), cuda:smNN (for one); repeatable.")
@click.option("--one-plan", is_flag=True, help="One plan for all rtx targets: smaller, fit for the oldest GPU.")
@click.option("--plain-attention", is_flag=True, help="As the graphs have it: TensorRT copies the KV caches then.")
def compile_(bundle: Path, **options: Any) -> None:
    """Compile TensorRT engines, or the kernels of a round, for BUNDLE; what is up to date is kept."""
    from .commands.compile import run

    run(bundle, **options)


@cli.command()
@click.argument("bundles", nargs=-1, type=PATH)
@click.option("--json", "as_json", is_flag=True)
def doctor(bundles: tuple[Path, ...], as_json: bool) -> None:
    """Check this machine, and whether BUNDLES (default: all in build/) can be used on it."""
    from .commands.doctor import run

    run(bundles, as_json)


@cli.command()
@click.argument("bundle", type=PATH)
@click.option("--against", type=PATH,
              help="Bundle to compare with, as a rule the fp32 one. [default: itself, with --target]")
@click.option("--target", help="Compare BUNDLE's TensorRT engines for this target, on its GPU. [default: ONNX Runtime]")
@click.option("--rounds", type=int, default=4, show_default=True, help="Engine calls to record of each kind.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def verify(**options: Any) -> None:
    """Compare BUNDLE's engines on ONNX Runtime or a GPU with those of --against, which runs on ONNX Runtime.

    Inputs are recorded from a real drawing.
    """
    from .commands.verify import run

    run(**options)


@cli.command()
@click.argument("prompts", nargs=-1)
@BUNDLE
@click.option("--class-id", "class_ids", type=int, multiple=True, help="Class to draw; repeatable.")
@click.option("--features", type=PATH,
              help="Text features to draw, of your own encoder: an .npz file with features [T, C] or [P, T, C], and "
                   "perhaps mask, [T] or [P, T], true where they count. T is the length of the model's prefix (`info`: "
                   "slots): pad shorter ones, and mask the padding.")
@click.option("--rule", multiple=True, callback=one,
              help="A rule, perhaps with settings: `rules` lists them. [default: exact]")
@click.option("--tree", multiple=True, callback=one,
              help="A tree, or auto: `trees` lists them. [default: auto with exact, else the first to fit]")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--guidance-scale", type=float)
@click.option("--temperature", type=float)
@click.option("--top-k", type=int)
@click.option("--top-p", type=float)
@click.option("--timeout", type=float,
              help="Seconds from the start, waiting included, until each image has to be done. [default: no limit]")
@click.option("--num-images", type=int, default=1, show_default=True, help="Images of each prompt.")
@click.option("--grid", is_flag=True, help="Also write a contact sheet of all images.")
@click.option("--out", type=PATH, default=Path("outputs"), show_default=True,
              help="Folder, where names that are taken get a number, or a .png file that is not there yet (several "
                   "images: with their seeds in its name).")
@with_loader
@click.option("--json", "as_json", is_flag=True, help="Print files and statistics as JSON.")
def generate(**options: Any) -> None:
    """Draw PROMPTS; writes a PNG for each image and prints its name. No file that is there is written over."""
    from .commands.generate import run

    run(**options)


@cli.command()
@click.argument("bundle", type=PATH, required=False)
@click.option("--verify", is_flag=True, help="Also compare every file with its hash.")
@click.option("--tensors", is_flag=True, help="Also list inputs and outputs of every TensorRT engine.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest.")
def info(bundle: Path | None, **options: Any) -> None:
    """Show what is inside BUNDLE. [default: build/emoji, else the demo's in your cache, as in `generate`]"""
    from .commands.info import run

    run(bundle, **options)


@cli.command()
@click.option("--json", "as_json", is_flag=True)
def models(as_json: bool) -> None:
    """List the known models: sizes, sampling defaults, what to download."""
    from .commands.models import run

    run(as_json)


@cli.command()
@click.argument("bundle", type=PATH, required=False)
@click.option("--json", "as_json", is_flag=True)
def rules(bundle: Path | None, as_json: bool) -> None:
    """List the acceptance rules with their settings; for BUNDLE also what they mean there, and which cannot be used."""
    from .commands.rules import run

    run(bundle, as_json)


@cli.command()
@click.argument("bundle", type=PATH, required=False)
@click.option("--json", "as_json", is_flag=True)
def trees(bundle: Path | None, as_json: bool) -> None:
    """List the trees that can be named; for BUNDLE also those it was built with, and which it cannot draw with."""
    from .commands.trees import run

    run(bundle, as_json)


@cli.command()
@BUNDLE
@click.option("--rule", "rules", multiple=True, help="Rules to compare; repeatable. [default: all]")
@click.option("--tree", "trees", multiple=True,
              help="Trees to compare; repeatable. [default: auto for exact, and the bundle's own]")
@click.option("--prompt", "prompts", multiple=True, help="Prompts to draw; repeatable.")
@click.option("--num-images", type=int, default=4, show_default=True, help="Images of each setting that are timed.")
@click.option("--seed", type=int, default=0, show_default=True)
@with_loader
@click.option("--judge", type=PLACE, help="Also judge images, of its prompts: 'demo', or a judge (.safetensors).")
@click.option("--judged", type=int, default=100, show_default=True, help="Images of each setting that are judged.")
@click.option("--images", type=PATH, default=Path("outputs/bench"), show_default=True,
              help="Folder of the judged images; those that are there are not drawn again.")
@click.option("--json", "json_file", type=PATH, help="Also write the figures to this file.")
@click.option("--markdown", type=PATH, help="Also write the table to this file, as Markdown.")
@click.option("--plots", type=PATH, help="Also write accepts.png, speed.png (and quality.png) to this folder.")
def bench(**options: Any) -> None:
    """Compare plain decoding and every rule on one bundle, side by side."""
    from .commands.bench import run

    run(**options)


@cli.command("eval")
@click.option("--bundle", type=PATH, help="Bundle to draw from. [default: as in `generate`, or none with --images]")
@click.option("--rule", "rules", multiple=True, help="Rule to draw with, settings included; repeatable. [default: ar]")
@click.option("--tree", multiple=True, callback=one,
              help="One of the bundle's trees. [default: the first that fits the rule]")
@click.option("--num-images", type=int, default=500, show_default=True, help="Images of each rule.")
@click.option("--seed", type=int, default=0, show_default=True, help="Image i uses seed + i, with every rule.")
@click.option("--prompts", type=PATH, help="Prompts as .jsonl, .csv or .txt. [default: those beside the judge]")
@click.option("--images", type=PATH, multiple=True, help="Folder of images to judge; repeatable.")
@click.option("--captions", type=PATH, multiple=True,
              help="Their file names and prompts (.jsonl, .csv), one for each --images. [default: its captions.jsonl]")
@click.option("--judge", type=PLACE, help="Judge (.safetensors), or 'none'. [default: the demo's]")
@click.option("--features", type=PATH, help="TorchScript module, images in 0..1 to features, for the distances.")
@click.option("--reference", type=PATH, help="Folder of real images for the distances. [default: the judge's]")
@click.option("--spread", is_flag=True, help="Also draw with 'ar' and other seeds: the yardstick for differences.")
@click.option("--out", type=PATH, default=Path("outputs/eval"), show_default=True)
@with_loader
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def eval_(**options: Any) -> None:
    """Judge images: of a bundle's rules, or in folders; writes report.json and a contact sheet."""
    from .commands.eval import run

    run(**options)


@cli.group()
def calibrate() -> None:
    """Measure on this machine what a bundle should be run with."""


@calibrate.command("states")
@BUNDLE
@click.option("--tree", multiple=True, callback=one,
              help="One of the bundle's trees. [default: the first that fits the rule]")
@click.option("--num-images", type=int, default=256, show_default=True, help="Images to learn from.")
@click.option("--prompts", type=PATH, help="Prompts as .jsonl, .csv or .txt. [default: those of `bench`]")
@click.option("--seed", type=int, default=0, show_default=True)
@with_loader
@click.option("--replace", "replace_better", is_flag=True, help="Also replace a table that rests on more images.")
def calibrate_states(**options: Any) -> None:
    """Learn which tokens lead the target to similar states: the table that `swap` needs."""
    from .commands.calibrate_states import run

    run(**options)


@calibrate.command("costs")
@BUNDLE
@click.option("--slots", type=int, multiple=True,
              help="Images at the same time to measure with; repeatable. [default: 1, 2, 4, 8]")
@click.option("--num-images", type=int, default=4, show_default=True, help="Images to draw with each tree.")
@click.option("--repeats", type=int, default=9, show_default=True, help="Calls of each size; the medians count.")
@click.option("--prompt", "prompts", multiple=True, help="Prompts to draw; repeatable.")
@click.option("--seed", type=int, default=0, show_default=True)
@with_loader
@click.option("--keep-doubtful", is_flag=True, help="Also write figures that cannot be of an idle machine.")
def calibrate_costs(**options: Any) -> None:
    """Measure what rounds cost here and what each tree brings, so that tree `auto` chooses the fastest."""
    from .commands.calibrate_costs import run

    run(**options)


@calibrate.command("tree")
@BUNDLE
@click.option("--rule", multiple=True, callback=one, default=("exact",), show_default=True,
              help="The rule that will be used.")
@click.option("--num-images", type=int, default=8, show_default=True, help="Images to learn from.")
@click.option("--max-nodes", "most_nodes", type=int, default=63, show_default=True, help="Drafted nodes at most.")
@click.option("--max-depth", "most_depth", type=int, default=7, show_default=True, help="Levels at most.")
@click.option("--nodes", type=int,
              help="Exactly so many drafted nodes, in the shape with the highest tau: for another machine, where they "
                   "cost less than here. [default: the fastest number here]")
@click.option("--prompt", "prompts", multiple=True, help="Prompts to draw; repeatable.")
@click.option("--seed", type=int, default=0, show_default=True)
@with_loader
@click.option("--out", type=PATH, default=Path("tree.json"), show_default=True, help="The tree, for build --tree.")
def calibrate_tree(**options: Any) -> None:
    """Choose the static tree that draws fastest: measured acceptance against the measured cost of a round."""
    from .commands.calibrate_tree import run

    run(**options)


@calibrate.command("thresholds")
@BUNDLE
@click.option("--tree", multiple=True, callback=one,
              help="One of the bundle's trees. [default: the first that fits the rule]")
@click.option("--rule", multiple=True, callback=one, default=("cascade",), show_default=True,
              help="cascade (tau_pos, tau_seq) or swap (tau_draw).")
@click.option("--children", default="coupled", show_default=True, help="How trees are drafted: coupled, sampled, topk.")
@click.option("--num-images", type=int, default=200, show_default=True, help="Images of each candidate.")
@click.option("--tolerance", type=float, default=0.02, show_default=True, help="Accuracy that may be lost.")
@click.option("--prompts", type=PATH, help="Prompts as .jsonl, .csv or .txt. [default: those beside the judge]")
@click.option("--judge", type=PLACE, help="Judge (.safetensors), or 'none' (speed alone). [default: the demo's]")
@click.option("--seed", type=int, default=0, show_default=True)
@with_loader
@click.option("--write/--no-write", default=True, show_default=True, help="Write the operating point into the bundle.")
@click.option("--replace", "replace_better", is_flag=True, help="Also replace a point that was found with more images.")
@click.option("--out", type=PATH, default=Path("outputs/calibrate"), show_default=True, help="Folder of the report.")
def calibrate_thresholds(**options: Any) -> None:
    """Sweep the thresholds of `cascade` or `swap`: speed against quality, and the operating point for a tolerance."""
    from .commands.calibrate_thresholds import run

    run(**options)
