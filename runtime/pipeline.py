"""`Pipeline`: a bundle, loaded and ready to draw.

Lifecycle, all of it in `Pipeline.load`: check the files, load the engines, allocate the caches, bind the usual
shapes, warm up. `generate` then allocates nothing that grows with the cache.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from . import loop
from .backends import open_backend
from .bundle import Manifest, check_files, read_manifest
from .cache import KVCache
from .calls import Layout
from .errors import CascadeError
from .images import to_images
from .lane import Engines, Lane
from .noise import Stream
from .prompts import PromptEncoder
from .request import Conditioning, check_conditioning, check_sampling, check_seeds
from .rules import Rule, get_rule
from .rules.cascade import Cascade
from .rules.registry import PLAIN
from .rules.states import StateTable
from .sampling import Sampling
from .stats import Stats

Callback = Callable[[int, int], None]


@dataclass
class Output:
    """What `generate` returns.

    `images` are PIL images in the order of the prompts, `codes` int32 [P, grid * grid] their tokens, `seeds`
    the seed of each, `warnings` sentences such as a prompt that was cut, `causes` int8 [P, grid * grid] how each
    token came (rules.Cause), `rounds` int64 [P] the target calls that each took (prefill not counted). After Ctrl-C
    (`interrupted`) it holds the images that were finished.
    """

    images: list[Image.Image]
    codes: np.ndarray
    causes: np.ndarray
    rounds: np.ndarray
    stats: Stats
    seeds: list[int]
    warnings: list[str] = field(default_factory=list)
    interrupted: bool = False

    def add(self, other: Output) -> None:
        """Appends the pictures of a later batch."""
        self.images = self.images + other.images
        self.codes = np.concatenate([self.codes, other.codes])
        self.causes = np.concatenate([self.causes, other.causes])
        self.rounds = np.concatenate([self.rounds, other.rounds])
        self.seeds = self.seeds + other.seeds
        self.interrupted = other.interrupted
        self.stats.add(other.stats)


@dataclass(frozen=True)
class Request:
    """A checked request: what to draw, and how."""

    conditioning: Conditioning
    seeds: list[int]
    sampling: Sampling
    rule: Rule | None
    tree: str | None
    image_tokens: int
    warnings: list[str] = field(default_factory=list)

    def part(self, begin: int, end: int) -> Request:
        """The pictures begin ... end - 1; warnings stay with the first part."""
        return replace(
            self, conditioning=self.conditioning.part(slice(begin, end)), seeds=self.seeds[begin:end],
            warnings=self.warnings if begin == 0 else [],
        )  # fmt: skip

    def output(self) -> Output:
        """An output without pictures yet."""
        stats = Stats(self.rule.name if self.rule else PLAIN, self.tree)
        shape = (0, self.image_tokens)
        codes, causes = np.zeros(shape, np.int32), np.zeros(shape, np.int8)
        return Output([], codes, causes, np.zeros(0, np.int64), stats, [], list(self.warnings))


class Pipeline:
    """Draws pictures from a bundle. Make one with `Pipeline.load`.

    One pipeline may be shared by threads: calls wait for each other. Several pipelines run side by side.
    """

    def __init__(self, folder: Path, manifest: Manifest, backend_name: str, threads: int | None) -> None:
        self.folder, self.manifest, self.backend_name = folder, manifest, backend_name
        self._lock = threading.Lock()
        self._drawing: int | None = None  # the thread that holds the lock
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
            drafted = self.manifest.tree(tree).tree() if tree is not None else None
            self._lanes[key] = Lane(
                self.manifest, self._engines, self._cache, self._drafter_cache, layout, drafted
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

        Raises CascadeError, before anything is drawn, for settings that the model or the bundle cannot serve.
        """
        request = self._request(
            prompts, features, features_mask, class_ids, seed, guidance_scale, temperature, top_k, top_p, rule, tree
        )
        merged = request.output()
        for output in self._batches(request, callback):
            merged.add(output)
        return merged

    def stream(
        self,
        prompts: Sequence[str] | str | None = None,
        *,
        class_ids: Sequence[int] | None = None,
        seed: int | Sequence[int] = 0,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        rule: str | Rule | None = None,
        tree: str | None = None,
        callback: Callback | None = None,
    ) -> Iterator[Output]:
        """As `generate`, but hands out the pictures of each batch as soon as they are drawn.

        The request is checked whole before this returns. After Ctrl-C the last output is empty and
        `interrupted`.
        """
        request = self._request(
            prompts, None, None, class_ids, seed, guidance_scale, temperature, top_k, top_p, rule, tree
        )
        return self._batches(request, callback)

    def _request(
        self, prompts: Sequence[str] | str | None, features: np.ndarray | None, features_mask: np.ndarray | None,
        class_ids: Sequence[int] | None, seed: int | Sequence[int], guidance_scale: float | None,
        temperature: float | None, top_k: int | None, top_p: float | None, rule: str | Rule | None, tree: str | None,
    ) -> Request:  # fmt: skip
        """Checks everything that was asked for, and tokenises the prompts."""
        conditioning = check_conditioning(self.manifest, prompts, features, features_mask, class_ids)
        seeds = check_seeds(seed, len(conditioning))
        sampling = check_sampling(self.manifest, guidance_scale, temperature, top_k, top_p)
        chosen, tree_name = self._choose(rule, tree, sampling)
        warnings: list[str] = []
        if conditioning.prompts is not None and self._prompts is not None:
            ids, mask, warnings = self._prompts.encode(conditioning.prompts)
            conditioning = Conditioning(ids=ids, mask=mask)
        return Request(conditioning, seeds, sampling, chosen, tree_name, self.manifest.model.image_tokens, warnings)

    def check_rule(self, rule: str, tree: str | None = None) -> None:
        """Raises CascadeError when the rule or the tree is unknown, or the bundle cannot serve them together."""
        self._choose(rule, tree, check_sampling(self.manifest, None, None, None, None))

    def _choose(
        self, rule: str | Rule | None, tree: str | None, sampling: Sampling
    ) -> tuple[Rule | None, str | None]:
        """The rule object (None for plain decoding) and the tree's name."""
        if rule is None:
            rule = "exact" if self.manifest.trees else PLAIN
        if rule == PLAIN:
            if tree is not None:
                self.manifest.tree(tree)  # a misspelt tree is told, even where it plays no part
            return None, None
        if isinstance(rule, str):
            rule = self.rule(rule)
        info = self.manifest.tree(tree)
        at_random = rule.noise not in (None, Stream.TOKEN) and not sampling.greedy
        if info.dynamic is not None and at_random:
            raise CascadeError(
                f"rule {rule.name} tests children that were drawn at random, and of those the dynamic tree "
                f"{info.name} keeps only the likeliest: use a static tree, rule exact or strict-topk, or children=topk."
            )
        return rule, info.name

    def rule(self, name: str) -> Rule:
        """The acceptance rule `name` (not `ar`) with this bundle's settings and tables. Raises CascadeError."""
        spelt = self.manifest.rules.get(name, name)
        states = self._states if spelt.startswith(Cascade.kind) else None  # read whole: not for those who need none
        return get_rule(spelt, self._neighbours, states)

    @cached_property
    def _neighbours(self) -> np.ndarray | None:
        """The table for LANTERN, int [V, K], mapped from the bundle's file."""
        name = self.manifest.neighbours
        return None if name is None else np.load(self.folder / name, mmap_mode="r")

    @cached_property
    def _states(self) -> StateTable | None:
        """The table for CASCADE's tau_draw."""
        name = self.manifest.states
        return None if name is None else StateTable.load(self.folder / name)

    def _batches(self, request: Request, callback: Callback | None) -> Iterator[Output]:
        """Draws batch by batch; the lock is held while one is drawn."""
        count, batch = len(request.seeds), self.manifest.batch
        for begin in range(0, count, batch):
            part = request.part(begin, min(begin + batch, count))
            done, total = begin * request.image_tokens, count * request.image_tokens

            def report(state: loop.State, done: int = done, total: int = total) -> None:
                if callback is not None:
                    callback(done + int(state.done.sum()), total)

            with self._turn():
                try:
                    output = self._draw(part, report)
                except KeyboardInterrupt:
                    output = part.output()
                    output.interrupted = True
            yield output
            if output.interrupted:
                return

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Waits until no other thread draws. Raises CascadeError in a callback, which would wait for itself."""
        if self._drawing == threading.get_ident():
            raise CascadeError("a callback cannot draw with the pipeline that calls it: load a second one.")
        with self._lock:
            self._drawing = threading.get_ident()
            try:
                yield
            finally:
                self._drawing = None

    def _draw(self, request: Request, report: Callable[[loop.State], None]) -> Output:
        """One batch: condition, decode, draw the pixels."""
        started, output = time.perf_counter(), request.output()
        model, stats = self.manifest.model, output.stats
        layout = Layout(len(request.seeds), request.sampling.guidance_scale != 1)
        with stats.stage("condition"):
            prefix, mask = self._prefix(request.conditioning, layout)
        state = loop.State.start(request.seeds, model.grid)
        lane = self._lane(layout, request.tree)
        lane.run(prefix, mask, state, request.rule, request.sampling, stats, report)
        with stats.stage("decode"):
            output.images = self._pixels(state.codes)
        output.codes, output.causes, output.rounds = state.codes, state.causes, state.rounds
        output.seeds = request.seeds
        stats.images = len(request.seeds)
        stats.count_causes(state.causes)
        stats.total_seconds = time.perf_counter() - started
        return output

    def _prefix(self, conditioning: Conditioning, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
        """Prefix embeddings [R, T, D] and their mask bool [R, T]."""
        model, rows = self.manifest.model, layout.prompt_of_row()
        uncond = np.arange(layout.rows) >= layout.prompts
        prefix = np.zeros((layout.rows, model.prefix_len, model.dim), self._engines.target.input_dtype("embeds"))
        if conditioning.class_ids is not None:
            inputs = {"class_ids": conditioning.class_ids[rows], "uncond": uncond}
            mask = np.ones((layout.rows, model.prefix_len), bool)
        else:
            features, mask = conditioning.features, conditioning.mask
            if features is None:
                features = self._features(conditioning)
            assert mask is not None  # features and token ids come with theirs
            inputs = {
                "features": np.ascontiguousarray(features[rows], dtype=self._condition.input_dtype("features")),
                "uncond": uncond,
            }
            mask = mask[rows]
        self._condition.bind(inputs, {"prefix": prefix}).run()
        return prefix, mask

    def _features(self, conditioning: Conditioning) -> np.ndarray:
        """Text features [P, T, C] of the bundle's own encoder."""
        assert self._text is not None and conditioning.ids is not None  # prompts are refused otherwise
        ids, mask = np.ascontiguousarray(conditioning.ids), np.ascontiguousarray(conditioning.mask)
        dtype = self._condition.input_dtype("features")
        features = np.zeros((*ids.shape, self.manifest.model.caption_dim or 0), dtype)
        self._text.bind({"ids": ids, "mask": mask}, {"features": features}).run()
        return features

    def _pixels(self, codes: np.ndarray) -> list[Image.Image]:
        """PIL images of codes int32 [P, HW]."""
        size = self.manifest.model.image_size
        pixels = np.zeros((len(codes), 3, size, size), np.float32)
        self._decode.bind({"codes": codes.astype(np.int64)}, {"image": pixels}).run()
        return to_images(pixels)

