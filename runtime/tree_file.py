"""A JSON file that lists the nodes of a tree."""

from __future__ import annotations

import json
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import CascadeError
from .schema import printable, without_doubles

_FORM = 'a list of paths such as [[0], [0, 0]], or of nodes such as {"path": [0, 0], "source": "jacobi"}'


def read_tree_file(path: Path, sources: Sequence[str]) -> tuple[list[Any], list[str]]:
    """The path of each node, a list of whatever the file has in it, and its source, one of `sources`; the first of them
    where the file names none.

    Raises CascadeError for a file that cannot be read, that has another form, or whose name cannot be printed.
    """
    nodes = _content(path)
    if not isinstance(nodes, list):
        raise CascadeError(f"{path} must hold {_FORM}.")
    nodes = [{"path": node, "source": sources[0]} if isinstance(node, list) else node for node in nodes]
    for node in nodes:
        if not isinstance(node, dict) or set(node) != {"path", "source"} or not isinstance(node["path"], list):
            raise CascadeError(f"{path} must hold {_FORM}.")
        if node["source"] not in sources:
            raise CascadeError(f"{path} names the source {node['source']!r}: choose among {', '.join(sources)}.")
    if not printable(path.stem):
        raise CascadeError(f"the tree file {path} gives its tree a name that cannot be printed: rename the file.")
    return [node["path"] for node in nodes], [node["source"] for node in nodes]


def _content(path: Path) -> Any:
    """What the JSON file says."""
    try:
        if stat.S_ISFIFO(path.stat().st_mode):
            raise ValueError("it is a pipe, and nobody may ever write to it")
        return json.loads(path.read_text(), object_pairs_hook=without_doubles)
    except FileNotFoundError:
        raise CascadeError(f"there is no tree file {path}: give a JSON list of paths.") from None
    except OSError as error:
        raise CascadeError(f"the tree file {path} cannot be read ({error.strerror}): check the path.") from None
    except (ValueError, RecursionError) as error:
        bad = isinstance(error, json.JSONDecodeError | UnicodeDecodeError | RecursionError)
        what = "is not JSON" if bad else "cannot be taken"
        raise CascadeError(f"{path} {what} ({error}): give {_FORM}.") from None
