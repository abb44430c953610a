"""Where guesses come from: the draft engine (`eagle`), the round before (`jacobi`), both (`mixed`), or nowhere.

| source | drafts | needs |
|---|---|---|
| `Eagle` | all nodes, in one call of the draft engine | a drafter |
| `Jacobi` | nothing: its nodes carry what the target drew at their positions when it last did | nothing |
| `Mixed` | the nodes at the top, by the draft engine; the others as `Jacobi` | a drafter |

Plain decoding is a tree of one node, the root, which `Jacobi` embeds. With the shared noise of (seed, position, token)
the rule `exact` draws the same image whatever was guessed (docs/drafting.md).
"""

from __future__ import annotations

from ..slots import SlotBuffers
from ..tree import AnyTree, Tree
from ..workspace import Workspace
from .base import Origin, Source, States
from .eagle import Eagle
from .jacobi import Jacobi
from .mixed import Mixed
from .pairs import Pairs

__all__ = ["Eagle", "Jacobi", "Mixed", "Origin", "Pairs", "Source", "States", "open_source"]


def open_source(workspace: Workspace, tree: AnyTree, buffers: SlotBuffers) -> Source:
    """The source of `tree`; it shares the lane's `buffers` noise, forced and embeds.

    Raises CascadeError when the bundle has no engine that drafts what is drafted of the tree.
    """
    if tree.drafted is not None and not tree.guessed:
        return Eagle(workspace, tree, buffers)
    assert isinstance(tree, Tree)  # a dynamic tree is drafted whole
    return Jacobi(workspace, tree, buffers) if tree.drafted is None else Mixed(workspace, tree, buffers)
