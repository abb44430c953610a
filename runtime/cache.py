"""The KV caches: allocated once, updated in place by the engines, compacted in place by `commit`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class KVCache:
    """Keys and values of one engine, [layers, 2, R, H, S, Dh], in one block.

    `bindings` gives the views that the engine reads and writes. The cache knows no lengths: the loop's state
    owns them.
    """

    def __init__(self, layers: int, rows: int, heads: int, slots: int, head_dim: int, dtype: np.dtype) -> None:
        # Committed to memory now: the first picture should not pay for page faults.
        self._block = np.empty((layers, 2, rows, heads, slots, head_dim), dtype)
        self._block.fill(0)

    @property
    def nbytes(self) -> int:
        return self._block.nbytes

    def bindings(self, rows: int, steps: int = 1) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Inputs and outputs by name, [rows, H, S, Dh] each; the same arrays, so updates are in place.

        A graph that updates each layer's cache in several steps has `steps` names for it.
        """
        inputs, outputs = {}, {}
        for layer, (keys, values) in enumerate(self._block):
            for name, array in (("key", keys[:rows]), ("value", values[:rows])):
                for index in range(layer * steps, (layer + 1) * steps):
                    inputs[f"past_{name}.{index}"] = array
                    outputs[f"present_{name}.{index}"] = array
        return inputs, outputs

    def commit(self, rows: Sequence[int], start: int, path: Sequence[int]) -> None:
        """Moves the entries of an accepted path to the front of the tree region, for all layers and `rows`.

        path holds node numbers from the root (0) on, increasing, so path[j] >= j and writing in place is safe;
        entry j ends in slot start + j. At most depth + 1 entries move, whatever the cache's size.
        """
        moved = [(j, node) for j, node in enumerate(path) if node != j]
        if not moved:
            return
        to = np.array([start + j for j, _ in moved])
        source = np.array([start + node for _, node in moved])
        for row in rows:
            # [layers, 2, H, moved, Dh]: the gather is a copy, so reading ends before writing starts
            self._block[:, :, row, :, to] = self._block[:, :, row, :, source]
