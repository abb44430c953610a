"""Progress on stderr: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import threading

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)

SECONDS = 5.0  # between two lines


def progress(*columns: ProgressColumn) -> Progress:
    """Use it in a `with` block, with `add_task`, `update` and `advance`; `columns` are those of the bar."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return _Lines(console)
    usual = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*(columns or usual), console=console, transient=True)


class _Lines(Progress):
    """Says how far the first unfinished task is, from a thread: some work takes long without a word."""

    def __init__(self, console: Console) -> None:
        super().__init__(console=console, disable=True)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._say, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _say(self) -> None:
        while not self._ended.wait(SECONDS):
            task = next((task for task in self.tasks if not task.finished), None)
            if task is not None:
                click.echo(_line(task), err=True)


def _line(task: Task) -> str:
    done = f"{task.completed:.0f}" if task.total is None else f"{task.completed:.0f} of {task.total:.0f}"
    left = task.time_remaining
    soon = "" if left is None or not task.completed else f", about {left:.0f} s left"
    return f"{task.description}: {done}, {task.elapsed or 0:.0f} s so far{soon}"
