"""What `cascade-trt build` was asked for. Importable without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..runtime.errors import CascadeError
from ..runtime.model_info import MOST_SLOTS
from ..runtime.schema import printable
from ..runtime.tree import MOST_NODES

DEMO_MODEL = "emoji"
MOST_TOP_K = 1 << 24  # no vocabulary has more tokens
LEAST_PROMPT, MOST_PROMPT = 64, 4096  # slots of a prefix that a prompt becomes; templates alone take up to 40
MAX_NODES = 33  # of one target call, unless a build asks for another number: `mixed_32` with its root


@dataclass(frozen=True)
class BuildRequest:
    """The command's options. `model` is a family, a preset (with `dummy_weights`), or "emoji", the bundled demo.

    `text` is the text encoder's folder; `without_text`: none is wanted, though there is a published one. `trees` are
    names, none for the model's own choice. `size` is that of images, "WIDTHxHEIGHT" in pixels, where a model has
    several.
    """

    model: str
    checkpoint: Path | None = None
    vq: Path | None = None
    drafter: Path | None = None
    text: Path | None = None
    config: Path | None = None
    grid: int | None = None
    n_head: int | None = None
    size: str | None = None
    trees: tuple[str, ...] = ()
    batch: int = 1
    precision: str = "fp32"
    max_top_k: int | None = None
    max_nodes: int | None = None
    dummy_weights: bool = False
    targets: tuple[str, ...] = ()
    one_plan: bool = False
    out: Path | None = None
    without_text: bool = False
    prompt_length: int | None = None

    @property
    def overrides(self) -> dict[str, Any]:
        """Options that win over a config file."""
        given = {"grid": self.grid, "n_head": self.n_head}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def files(self) -> list[Path]:
        """Everything given that weights or settings are read from."""
        given = [self.checkpoint, self.vq, self.drafter, self.config, self.text]
        return [path for path in given if path is not None]


def check_sizes(batch: int, max_top_k: int | None, max_nodes: int | None) -> None:
    """Raises CascadeError for numbers that no bundle can have (None: the default)."""
    if not 1 <= batch <= MOST_SLOTS:
        raise CascadeError(f"--batch must be from 1 to {MOST_SLOTS}, not {batch}.")
    if max_top_k is not None and not 1 <= max_top_k <= MOST_TOP_K:
        raise CascadeError(f"--max-top-k must be from 1 to {MOST_TOP_K}, not {max_top_k}.")
    if max_nodes is not None and not 2 <= max_nodes <= MOST_NODES:
        raise CascadeError(f"--max-nodes must be from 2 (the root and one guess) to {MOST_NODES}, not {max_nodes}.")


def check_request(request: BuildRequest) -> None:
    """Raises CascadeError for what no bundle can be, and for options that this model has no use for: they would be
    dropped without a word."""
    check_sizes(request.batch, request.max_top_k, request.max_nodes)
    if request.out is not None and not printable(request.out.name):
        raise CascadeError(f"--out {request.out} has a name that cannot be printed: choose another.")
    length = request.prompt_length
    if length is not None and not LEAST_PROMPT <= length <= MOST_PROMPT:
        raise CascadeError(f"--prompt-length must be from {LEAST_PROMPT} to {MOST_PROMPT}, not {length}.")
    if request.one_plan and not any(target.startswith("rtx:") for target in request.targets):
        raise CascadeError("--one-plan is for targets of TensorRT-RTX: add --target rtx:smNN, or leave it away.")
    if request.model == DEMO_MODEL and request.dummy_weights:
        raise CascadeError("emoji comes with its own weights: leave --dummy-weights away.")
    if request.model != DEMO_MODEL and not request.dummy_weights:
        return
    what = "a model with --dummy-weights" if request.dummy_weights else "emoji, which comes with its own weights,"
    unused = ("checkpoint", "vq", "drafter", "text", "config", "n_head", "size")
    unused += () if request.dummy_weights else ("grid", "prompt_length")
    for name in unused:
        if getattr(request, name) is not None:
            raise CascadeError(f"{what} takes no --{name.replace('_', '-')}: leave it away.")
