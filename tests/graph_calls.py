"""Calls of one engine of a bundle, without the runtime: numpy in, numpy out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort

from cascade_trt.runtime.bundle import Manifest, read_manifest
from cascade_trt.runtime.tree import AnyTree

ROWS = 4  # both prompts with their caption, then both without
ALONE = np.arange(ROWS)[:, None]  # rows_of_prompt where every row is a slot of its own
PAIRS = np.array([[0, 2], [1, 3]])  # and where each caption has its row without one
OUTPUTS = ("drawn", "runner_up", "logits", "ids", "states", "hidden", "similarity")


def session(bundle: Path, engine: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(bundle / f"{engine}.onnx", options, providers=["CPUExecutionProvider"])


class Target:
    """The engine fed call by call; `rows` [P, G] says which rows make a slot, `guidance` [G] how they are mixed."""

    def __init__(
        self, bundle: Path, mask: np.ndarray, rows: np.ndarray = ALONE, guidance: tuple[float, ...] = (1.0,)
    ) -> None:
        self.manifest: Manifest = read_manifest(bundle)
        self._session, self._embed = session(bundle, "target"), session(bundle, "embed")
        slots = self.manifest.target.slots
        self._cache_mask = np.ones((ROWS, slots), bool)
        self._cache_mask[:, : mask.shape[1]] = mask
        self._rows, self._guidance = rows, np.tile(np.float32(guidance), (len(rows), 1))
        model = self.manifest.model
        names = [f"{kind}.{i}" for i in range(model.n_layer) for kind in ("key", "value")]
        shape = (ROWS, model.n_kv_head, slots, model.head_dim)
        self.cache = {name: np.zeros(shape, np.float32) for name in names}

    def embed(self, ids: np.ndarray) -> np.ndarray:
        return self._embed.run(None, {"ids": ids.astype(np.int64)})[0]

    def __call__(
        self, embeds: np.ndarray, start: int, visible: np.ndarray | None = None, depths: np.ndarray | None = None,
        rows: np.ndarray | None = None, **sampler: np.ndarray,
    ) -> dict[str, np.ndarray]:  # fmt: skip
        """Nodes from slot `start` on: a causal chunk, unless `visible` [N, N] or [R, N, N] says otherwise.

        Draws are greedy unless `sampler` has other inputs; `rows` [P, N] are each node's row of the noise, else 0.
        """
        if rows is not None:
            sampler["depths"] = rows
        nodes = embeds.shape[1]
        tree_mask = np.zeros((ROWS, nodes, self.manifest.target.window + 1), bool)
        tree_mask[:, :, :nodes] = np.tri(nodes, dtype=bool) if visible is None else visible
        inputs = {
            "embeds": embeds, "positions": np.tile(start + (np.arange(nodes) if depths is None else depths), (ROWS, 1)),
            "write_index": np.full(ROWS, start), "tree_mask": tree_mask, "cache_mask": self._cache_mask,
            "rows_of_prompt": self._rows, "guidance": self._guidance, **self._sampler(nodes), **sampler,
        }  # fmt: skip
        past = {f"past_{name}": array for name, array in self.cache.items()}
        got = self._session.run([*OUTPUTS, *(f"present_{name}" for name in self.cache)], inputs | past)
        self.cache = dict(zip(self.cache, got[len(OUTPUTS) :], strict=True))
        return dict(zip(OUTPUTS, got, strict=False))

    def _sampler(self, nodes: int) -> dict[str, np.ndarray]:
        slots = len(self._rows)
        return {
            "temperature": np.ones(slots, np.float32), "top_k": np.ones(slots, np.int64),
            "top_p": np.ones(slots, np.float32), "depths": np.zeros((slots, nodes), np.int64),
            "noise": np.zeros((slots, 1, self.manifest.model.vocab_size), np.float32),
        }  # fmt: skip


def prefill(target: Target, embeds: np.ndarray, mask: np.ndarray, chunk: int) -> dict[str, np.ndarray]:
    """Reads the prefix in causal chunks; padded slots see themselves alone."""
    outputs: dict[str, np.ndarray] = {}
    for begin in range(0, embeds.shape[1], chunk):
        part = embeds[:, begin : begin + chunk]
        count = part.shape[1]
        visible = np.tri(count, dtype=bool) & mask[:, None, begin : begin + count] | np.eye(count, dtype=bool)
        outputs = target(part, begin, visible)
    return outputs


class Draft:
    """The engine that drafts a tree, or the part of it that is drafted, fed call by call; keeps its cache. `guidance`
    [P, R] mixes each slot's rows, 0 elsewhere."""

    def __init__(self, bundle: Path, tree: AnyTree, rows: int, guidance: np.ndarray) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        manifest = read_manifest(bundle)
        engine, drafted = manifest.engine_for(tree), tree.drafted
        drafter, self._codes = manifest.drafter, manifest.model.vocab_size
        assert drafter is not None and drafted is not None and engine is not None
        file = bundle / manifest.engines[engine].file
        self._session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self._tree, self._rows = drafted, rows
        self._rows_of_prompt = np.stack([np.flatnonzero(weights) for weights in guidance])
        self._guidance = np.take_along_axis(guidance, self._rows_of_prompt, axis=1)
        self._slots = drafter.slots
        shape = (rows, drafter.n_kv_head, drafter.slots, drafter.head_dim)
        self.cache = [np.zeros(shape, np.float32), np.zeros(shape, np.float32)]

    def inputs(
        self, hidden: np.ndarray, path: np.ndarray, tokens: np.ndarray, count: np.ndarray, start: int,
        noise: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:  # fmt: skip
        prompts, pairs = path.shape
        if noise is None:
            noise = np.zeros((prompts, self._tree.depth + 1, self._codes), np.float32)
        return {
            "hidden": hidden, "path": path, "tokens": tokens, "count": count,
            "positions": np.tile(start + np.arange(pairs), (self._rows, 1)),
            "write_index": np.full(self._rows, start), "cache_mask": np.ones((self._rows, self._slots), bool),
            "prompt_of_row": np.arange(self._rows) % prompts, "noise": noise, "guidance": self._guidance,
            "rows_of_prompt": self._rows_of_prompt, "temperature": np.ones(prompts, np.float32),
        }  # fmt: skip

    def __call__(self, *given, **more) -> dict[str, np.ndarray]:
        got = self.run(self.inputs(*given, **more))
        self.cache = [got["present_key.0"], got["present_value.0"]]
        return got

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One call, without a trace in the cache."""
        for step in range(self._tree.depth):
            inputs |= {f"past_key.{step}": self.cache[0], f"past_value.{step}": self.cache[1]}
        names = [output.name for output in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, inputs), strict=True))
