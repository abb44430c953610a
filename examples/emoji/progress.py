"""What every training step shares: resumable state, a log of losses, a plot."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn


class Optimizer(Protocol):
    """What a run needs of an optimiser, or of several behind one face."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


class Run:
    """A training run in out/<name>/: `state.pt` to resume from, `log.jsonl`, `loss.png`."""

    def __init__(self, out: Path, name: str) -> None:
        self.folder = out / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self._started = time.time()

    def resume(self, models: dict[str, nn.Module], optimizer: Optimizer) -> int:
        """Restores the last state and returns the step to go on from (0 for a new run)."""
        file = self.folder / "state.pt"
        if not file.is_file():
            return 0
        state = torch.load(file, weights_only=True)
        for name, model in models.items():
            model.load_state_dict(state[name])
        optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])

    def save(self, models: dict[str, nn.Module], optimizer: Optimizer, step: int) -> None:
        """Stages and renames, so that an interrupted save leaves the old state."""
        content: dict[str, Any] = {name: model.state_dict() for name, model in models.items()}
        staged = self.folder / "state.part"
        torch.save({**content, "optimizer": optimizer.state_dict(), "step": step}, staged)
        staged.rename(self.folder / "state.pt")

    def log(self, step: int, **figures: float) -> None:
        with open(self.folder / "log.jsonl", "a") as file:
            line = {"step": step, "minutes": round((time.time() - self._started) / 60, 2)} | figures
            file.write(json.dumps(line) + "\n")

    def read_log(self) -> list[dict[str, float]]:
        file = self.folder / "log.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []

    def plot(self) -> None:
        """Draws every logged figure over the steps."""
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        entries = self.read_log()
        names = sorted({name for entry in entries for name in entry} - {"step", "minutes"})
        figure, axes = plt.subplots(1, max(1, len(names)), figsize=(4 * max(1, len(names)), 3), squeeze=False)
        for axis, name in zip(axes[0], names, strict=False):
            points = [(entry["step"], entry[name]) for entry in entries if name in entry]
            axis.plot(*zip(*points, strict=True))
            axis.set_title(name)
        figure.tight_layout()
        figure.savefig(self.folder / "loss.png")
        plt.close(figure)


def cosine_rate(step: int, steps: int, warmup: int) -> float:
    """Learning-rate factor: linear warm-up, then a cosine down to 3 %."""
    import math

    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
