"""Nodes for the tests of acceptance rules."""

from __future__ import annotations

import numpy as np

from cascade_trt.runtime.rules import Node
from cascade_trt.runtime.tree import Tree, tree_from_branching


def root_node(
    p: np.ndarray, tokens: list[int], log_q: np.ndarray, similarity: np.ndarray | None = None,
    tree: Tree | None = None, **more: object,
) -> Node:  # fmt: skip
    """The root of a tree whose children are `tokens`, under the target's distribution p (all of it kept, index = id).

    similarity [N, N] is that of nothing to anything unless it is given.
    """
    order = np.argsort(-p, kind="stable")
    tree = tree or tree_from_branching("flat", [[len(tokens)]])
    drafted = np.full(tree.size, -1, np.int64)
    drafted[list(tree.children[0])] = tokens
    return Node(
        index=0, ids=order.astype(np.int64), logits=np.log(p[order]).astype(np.float32), tokens=tokens,
        nodes=list(tree.children[0]), log_q=log_q, tree=tree, drafted=drafted,
        similarity=np.eye(tree.size, dtype=np.float32) if similarity is None else similarity.astype(np.float32),
        **more,  # type: ignore[arg-type]
    )  # fmt: skip
