"""`Pipeline`: a bundle, loaded and ready to draw.

Lifecycle, all of it in `Pipeline.load`: check the files, load the engines, allocate the caches, bind the usual
shapes, warm up. `generate` then allocates nothing that grows with the cache.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from . import loop
from .backends import Engine, open_backend
from .bundle import Manifest, check_files, read_manifest
from .cache import KVCache
from .calls import Layout
from .images import to_images
from .lane import Engines, Lane
from .prompts import PromptEncoder
from .request import Conditioning, check_conditioning, check_sampling, check_seeds
from .rules import RULE_NAMES, Rule, get_rule
from .rules.registry import PLAIN
from .sampling import Sampling
from .stats import Stats

Callback = Callable[[int, int], None]


@dataclass
class Output:
    """What `generate` returns.

    `images` are PIL images in the order of the prompts, `codes` int32 [P, grid * grid] their tokens, `seeds`
    the seed of each, `warnings` sentences such as a prompt that was cut. After Ctrl-C (`interrupted`) it holds
    the images that were finished.
    """

    images: list[Image.Image]
    codes: np.ndarray
    stats: Stats
    seeds: list[int]
    warnings: list[str] = field(default_factory=list)
    interrupted: bool = False


class Pipeline:
    """Draws pictures from a bundle. Make one with `Pipeline.load`.

    One pipeline may be shared by threads: calls wait for each other. Several pipelines run side by side.
    """

    def __init__(self, folder: Path, manifest: Manifest, backend_name: str, threads: int | None) -> None:
        self.folder, self.manifest, self.backend_name = folder, manifest, backend_name
        self._lock = threading.Lock()
        backend = open_backend(backend_name, threads)
        load = {name: folder / engine.file for name, engine in manifest.engines.items()}
        drafters = {tree.name: backend.load(load[tree.engine]) for tree in manifest.trees}
        self._engines = Engines(backend.load(load["target"]), backend.load(load["embed"]), drafters)
        self._condition = backend.load(load["condition"])
        self._decode = backend.load(load["decode"])
        self._text = backend.load(load["text"]) if "text" in load else None
        self._prompts = PromptEncoder(folder, manifest.text) if manifest.text else None
        self._cache, self._drafter_cache = self._allocate()
        self._lanes: dict[tuple[Layout, str | None], Lane] = {}

    @classmethod
    def load(
        cls, folder: str | Path, backend: str = "ort-cpu", threads: int | None = None, warm: bool = True
    ) -> Pipeline:
        """Loads the bundle in `folder`.

        threads is per engine (None: one for each core). `warm` binds and runs the usual shape once, so that
        the first picture is not slower than the others. Raises CascadeError for a missing, changed or
        outdated bundle, and for a backend that is not installed or cannot take the bundle's precision.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        check_files(folder, manifest)
        pipeline = cls(folder, manifest, backend, threads)
        if warm:
            pipeline._warm_up()
        return pipeline

    def _allocate(self) -> tuple[KVCache, KVCache | None]:
        model, drafter, rows = self.manifest.model, self.manifest.drafter, 2 * self.manifest.batch
        dtype = self._engines.target.input_dtype("embeds")
        cache = KVCache(model.n_layer, rows, model.n_head, self.manifest.target.slots, model.head_dim, dtype)
        if drafter is None:
            return cache, None
        return cache, KVCache(1, rows, drafter.n_head, drafter.slots, drafter.head_dim, dtype)

    def _warm_up(self) -> None:
        layout = Layout(1, self.manifest.sampling.guidance_scale != 1)
        tree = self.manifest.trees[0].name if self.manifest.trees else None
        lane = self._lane(layout, tree)
        lane.step.run()

    def _lane(self, layout: Layout, tree: str | None) -> Lane:
        key = (layout, tree)
        if key not in self._lanes:
            static = self.manifest.tree(tree).tree() if tree is not None else None
            self._lanes[key] = Lane(
                self.manifest, self._engines, self._cache, self._drafter_cache, layout, static
            )
        return self._lanes[key]

    def generate(
        self,
        prompts: Sequence[str] | str | None = None,
        *,
        features: np.ndarray | None = None,
        features_mask: np.ndarray | None = None,
        class_ids: Sequence[int] | None = None,
        seed: int | Sequence[int] = 0,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        rule: str | Rule | None = None,
        tree: str | None = None,
        callback: Callback | None = None,
    ) -> Output:
        """Draws one picture for each prompt.

        Give exactly one of: `prompts`; `features` float [P, T, C] with `features_mask` [P, T] (text features
        of the model's encoder); `class_ids` for class-conditional models. Picture i uses seed + i, or seed[i]
        when a sequence is given; the same seed draws the same picture whatever the batch and (for the rules
        `ar` and `exact`) the tree. Settings left out come from the bundle. guidance_scale 1 runs a single row,
        temperature 0 is greedy, top_k 0 keeps all that the engine returns. `rule` defaults to `exact` where
        the bundle has a drafter, else `ar`; `tree` to the bundle's first. The callback receives (tokens done,
        tokens in all).

        Raises CascadeError for settings that the model or the bundle cannot serve.
        """
        manifest = self.manifest
        conditioning = check_conditioning(manifest, prompts, features, features_mask, class_ids)
        count = len(conditioning)
        seeds = check_seeds(seed, count)
        sampling = check_sampling(manifest, guidance_scale, temperature, top_k, top_p)
        chosen, tree_name = self._choose(rule, tree)
        stats = Stats(chosen.name if chosen else PLAIN, tree_name)
        total, batch = count * manifest.model.image_tokens, manifest.batch
        output = Output([], np.zeros((0, manifest.model.image_tokens), np.int32), stats, [])
        with self._lock:
            started = time.perf_counter()
            try:
                for begin in range(0, count, batch):
                    part = slice(begin, min(begin + batch, count))
                    done = begin * manifest.model.image_tokens
                    report = None if callback is None else self._report(callback, done, total)
                    self._draw(conditioning.part(part), seeds[part], sampling, chosen, tree_name, output, report)
            except KeyboardInterrupt:
                output.interrupted = True
            stats.total_seconds = time.perf_counter() - started
        return output

    @staticmethod
    def _report(callback: Callback, before: int, total: int) -> Callable[[loop.State], None]:
        return lambda state: callback(before + int(state.done.sum()), total)

    def _choose(self, rule: str | Rule | None, tree: str | None) -> tuple[Rule | None, str | None]:
        """The rule object (None for plain decoding) and the tree's name."""
        if rule is None:
            rule = "exact" if self.manifest.trees else PLAIN
        if rule == PLAIN:
            return None, None
        chosen = get_rule(rule) if isinstance(rule, str) else rule
        return chosen, self.manifest.tree(tree).name

    def _draw(
        self, conditioning: Conditioning, seeds: list[int], sampling: Sampling, rule: Rule | None,
        tree: str | None, output: Output, report: Callable[[loop.State], None] | None,
    ) -> None:  # fmt: skip
        """One batch: condition, decode, draw the pixels, append to the output."""
        model, stats = self.manifest.model, output.stats
        layout = Layout(len(seeds), sampling.guidance_scale != 1)
        with stats.stage("condition"):
            prefix, mask, warnings = self._prefix(conditioning, layout)
        output.warnings += warnings
        state = loop.State.start(seeds, model.image_tokens)
        lane = self._lane(layout, tree)
        lane.run(prefix, mask, state, rule, sampling, stats, report or (lambda _: None))
        with stats.stage("decode"):
            output.images += self._pixels(state.codes)
        output.codes = np.concatenate([output.codes, state.codes])
        output.seeds += seeds
        stats.images += len(seeds)

    def _prefix(self, conditioning: Conditioning, layout: Layout) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Prefix embeddings [R, T, D], their mask bool [R, T], and warnings."""
        model, rows = self.manifest.model, layout.prompt_of_row()
        uncond = np.arange(layout.rows) >= layout.prompts
        warnings: list[str] = []
        prefix = np.zeros((layout.rows, model.prefix_len, model.dim), self._engines.target.input_dtype("embeds"))
        if conditioning.class_ids is not None:
            inputs = {"class_ids": conditioning.class_ids[rows], "uncond": uncond}
            mask = np.ones((layout.rows, model.prefix_len), bool)
        else:
            features, mask = conditioning.features, conditioning.mask
            if features is None or mask is None:
                features, mask, warnings = self._features(conditioning.prompts or [])
            inputs = {
                "features": np.ascontiguousarray(features[rows], dtype=self._condition.input_dtype("features")),
                "uncond": uncond,
            }
            mask = mask[rows]
        self._condition.bind(inputs, {"prefix": prefix}).run()
        return prefix, mask, warnings

    def _features(self, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Text features [P, T, C] of the bundle's own encoder, and their mask bool [P, T]."""
        text, encoder = self._text, self._prompts
        assert text is not None and encoder is not None  # check_conditioning refuses prompts otherwise
        ids, mask, warnings = encoder.encode(prompts)
        dtype = self._condition.input_dtype("features")
        features = np.zeros((*ids.shape, self.manifest.model.caption_dim or 0), dtype)
        text.bind({"ids": ids, "mask": mask}, {"features": features}).run()
        return features, mask, warnings

    def _pixels(self, codes: np.ndarray) -> list[Image.Image]:
        """PIL images of codes int32 [P, HW]."""
        size = self.manifest.model.image_size
        pixels = np.zeros((len(codes), 3, size, size), np.float32)
        self._decode.bind({"codes": codes.astype(np.int64)}, {"image": pixels}).run()
        return to_images(pixels)


__all__ = ["RULE_NAMES", "Engine", "Output", "Pipeline"]
