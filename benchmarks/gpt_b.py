"""GPT-B dims, 256 tokens, guidance on: ONNX Runtime beside our own PyTorch, with the same threads.

Plain decoding in both (one token a step, preallocated KV caches, two rows), the same weights, step by step in
turn within one process, so that a drifting machine hits both alike. Then a speculative round, for the host's share.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..examples.emoji.config import RECIPES
from ..export.families.llamagen.family import preset_config
from ..export.families.llamagen.model import KVCache, LlamaGen
from ..export.open import open_dummy
from ..runtime.bundle import read_manifest
from ..runtime.errors import CascadeError
from ..runtime.pipeline import Pipeline
from ..runtime.rules.states import StateTable
from ..runtime.stats import ROUND

MODEL = "llamagen-t2i-b"
TREES = ("mixed_16", "small_6", "mc_sim_7b_63")
SWAP = dict(RECIPES["cpu"].rules)["swap"]  # the demo's operating point
RULES = ("exact", "strict", SWAP, "cascade:children=coupled", "cascade")


def bundle(folder: Path) -> Path:
    """The dummy bundle, built once."""
    path = folder / MODEL
    try:
        ready = read_manifest(path).states is not None  # tau_draw needs them
    except CascadeError:
        ready = False
    if not ready:
        from ..export.build import BuildOptions, build_bundle
        from ..runtime.tree import get_tree

        parts, sampling = open_dummy(MODEL, None)
        parts = replace(parts, states=random_states(parts.target.plan.codes, parts.target.readout.width))
        options = BuildOptions(path, tuple(get_tree(name) for name in TREES), sampling)
        build_bundle(parts, options, lambda *_: None)
    return path


def random_states(vocab_size: int, dim: int) -> StateTable:
    """A table for tau_draw to look tokens up in: random directions, all tokens alike common."""
    rows = np.random.default_rng(0).normal(size=(vocab_size, dim))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return StateTable(rows.astype(np.float16), np.full(vocab_size, 1 / vocab_size, np.float32))


class EagerDecoder:
    """Plain decoding in PyTorch eager mode: what a user would run without exported engines."""

    def __init__(self) -> None:
        parts, self.sampling = open_dummy(MODEL, None)
        self.config = preset_config(MODEL)
        with torch.device("meta"):
            model = LlamaGen(self.config)
        rope = LlamaGen(self.config).rope
        model.load_state_dict({name: parts.target.checkpoint.load(name) for name in model.state_dict()}, assign=True)
        model.rope = rope
        self.model = model.eval()

    @torch.inference_mode()
    def steps(self, features: Tensor, mask: Tensor, tokens: int) -> tuple[list[float], list[int]]:
        """Seconds of every step after the prefill, and the greedy tokens, for one prompt [1, T, C]."""
        model, length = self.model, self.config.prefix_len
        slots = length + self.config.image_tokens
        uncond = torch.tensor([False, True])
        prefix = model.cls_embedding(features.repeat(2, 1, 1), uncond)
        visible = torch.ones(2, slots, dtype=torch.bool)
        visible[:, :length] = mask
        eye = torch.eye(slots, dtype=torch.bool)
        allowed = ((torch.ones(slots, slots, dtype=torch.bool).tril() & visible[:, None]) | eye)[:, None]
        cache = KVCache(self.config, 2, slots)
        place = torch.arange(length)
        h = model.stack(prefix, place[None], allowed[:, :, :length], cache, place)
        seconds, drawn = [], [self._pick(h)]
        for step in range(tokens - 1):
            start = time.perf_counter()
            slot = torch.tensor([length + step])
            embeds = model.tok_embeddings(torch.tensor([[drawn[-1]], [drawn[-1]]]))
            drawn.append(self._pick(model.stack(embeds, slot[None], allowed[:, :, slot], cache, slot)))
            seconds.append(time.perf_counter() - start)
        return seconds, drawn

    def _pick(self, h: Tensor) -> int:
        logits = self.model.logits(h[:, -1])
        return int((logits[1] + self.sampling.guidance_scale * (logits[0] - logits[1])).argmax())


def compare(folder: Path, threads: int, repeats: int = 3) -> dict[str, Any]:
    """Milliseconds per token of both, images in turn; and the host's share of rounds."""
    torch.set_num_threads(threads)
    pipe = Pipeline.load(bundle(folder), threads=threads)
    eager = EagerDecoder()
    config = eager.config
    rng = np.random.default_rng(0)
    features = rng.normal(size=(1, config.prefix_len, config.caption_dim)).astype(np.float32)
    mask = np.arange(config.prefix_len)[None] >= 100
    given = {"features": features, "features_mask": mask}
    rows: dict[str, list[float]] = {"onnxruntime": [], "pytorch": []}
    agreement = 0.0
    for repeat in range(repeats + 1):
        output = pipe.generate(**given, temperature=0, rule="ar")
        seconds, drawn = eager.steps(torch.from_numpy(features), torch.from_numpy(mask), config.image_tokens)
        if repeat:  # the first of each is the warm-up
            stats = output.stats
            step = stats.of(ROUND) / stats.rounds
            rows["onnxruntime"].append(1e3 * step)
            rows["pytorch"].append(1e3 * statistics.median(seconds))
        agreement = float((output.codes[0] == drawn).mean())
    return {
        "model": MODEL,
        "ms_per_token": {name: statistics.median(values) for name, values in rows.items()},
        "ratio": statistics.median(b / a for a, b in zip(rows["onnxruntime"], rows["pytorch"], strict=True)),
        "greedy_tokens_equal": agreement,
        "rounds": [round_figures(pipe, given, rule, tree) for rule, tree in _settings()],
    }


def _settings() -> list[tuple[str, str | None]]:
    return [("ar", None), *((rule, tree) for rule in RULES for tree in TREES)]


def round_figures(pipe: Pipeline, given: dict[str, Any], rule: str, tree: str | None) -> dict[str, Any]:
    """Milliseconds of one round and the host's share of it (random weights: tau says nothing here)."""
    stats = pipe.generate(**given, seed=1, rule=rule, tree=tree).stats
    nodes = 1 if tree is None else len(pipe.manifest.tree(tree).parents)
    per_round = {stage: 1e3 * seconds / stats.rounds for stage, seconds in stats.seconds.items() if seconds}
    stages = {stage: per_round.get(stage, 0.0) for stage in ("draft", "verify", "accept", "commit", "emit")}
    accept_share = stages["accept"] / sum(stages.values())
    return {
        "rule": rule, "tree": tree, "nodes": nodes, "ms": stages, "host_share": stats.host_share,
        "accept_share": accept_share,
    }  # fmt: skip
