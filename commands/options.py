"""What options of the command line are checked for as they are read."""

from __future__ import annotations

from typing import Any

import click

from ..runtime.errors import CascadeError


class Place(click.Path):
    """A path. An empty one, which would be the working directory, is refused: as a rule a variable was not set."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("it is empty: give a path.", param, ctx)
        return super().convert(value, param, ctx)


def one(_: click.Context, param: click.Parameter, values: tuple[str, ...]) -> str | None:
    """Callback of an option that other commands take several times. Raises CascadeError where it is given twice."""
    if len(values) > 1:
        raise CascadeError(f"{param.opts[0]} is given {len(values)} times, and this command takes one: choose it.")
    return values[0] if values else None
