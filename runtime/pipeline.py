"""`Pipeline`: a bundle, loaded and ready to draw.

Lifecycle, all of it in `Pipeline.load`: check the files, load the engines, allocate the caches, bind the usual
shapes, warm up. `generate` then allocates nothing that grows with the cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Unpack

import numpy as np

from .auto import Auto, candidates_of
from .backends import Backend, Engine, Identity
from .backends.choice import AUTO as AUTO_BACKEND
from .backends.choice import Chosen, Offer, choose_backend
from .batch import Batch
from .bundle import MOST_SLOTS, CostInfo, Manifest, read_manifest
from .chooser import AutoTree, Chooser, FixedTree
from .conditioner import Conditioner
from .costs import Costs, measure_at_once, stored
from .decoder import Decoder
from .device_rounds import DeviceRounds
from .drafting import Eagle, Mixed
from .engines import TEXT, Engines
from .errors import CascadeError
from .files import as_folder, check_files, require_utf8
from .lane import Lane, Lanes
from .options import DrawOptions, DrawSettings, as_options, check_sampling
from .output import Interrupted, Output, UnfinishedError
from .plans import Plans
from .prompts import PromptEncoder
from .request import Checker, Drawing
from .rounds import HostRounds, Rounds
from .rulebook import Rulebook
from .rules import Rule
from .rules.registry import PLAIN
from .run import Callback, Run
from .slots import Memory
from .stats import Stats
from .tree import AUTO, NO_TREE, ROOT, AnyTree
from .turn import Turn
from .warm import anything, decode_once, warm_up
from .workspace import Workspace


class Pipeline:
    """Draws images from a bundle. Make one with `Pipeline.load`; close it, or use it in a `with` block.

    One pipeline may be shared by threads: calls wait for each other. Several pipelines run side by side.
    """

    def __init__(self, folder: Path, manifest: Manifest, chosen: Chosen, warm: bool = True) -> None:
        self.folder, self.manifest, self._chosen, self._backend = folder, manifest, chosen, chosen.backend
        self._warm, self._turn = warm, Turn()
        self._engines = Engines(self._backend, folder, manifest)
        self._kernels = self._backend.kernels(folder, manifest.kernels)
        encoder = PromptEncoder(folder, manifest.text) if manifest.text else None
        self._rulebook = Rulebook(folder, manifest)
        self._checker = Checker(manifest, self._rulebook, encoder)
        self._conditioner = Conditioner(self._backend, self._engines, manifest, self._kernels)
        self._reset()

    def _reset(self) -> None:
        """Forgets everything that is bound to the engines."""
        self._rounds: dict[int, list[Rounds]] = {}  # by rows, on the pipeline's own memory
        self._autos: dict[tuple[int, int], Auto] = {}  # by rows and slots
        self._memory: Memory | None = None
        self._decoder: Decoder | None = None
        self._conditioner.forget()

    @classmethod
    def load(
        cls, folder: str | Path, backend: str | Backend = AUTO_BACKEND, threads: int | None = None,
        device: int | None = None, warm: bool = True,
    ) -> Pipeline:  # fmt: skip
        """Loads the bundle in `folder` into a backend, given by name or as one of your own (`runtime/backends`).

        The default "auto" takes a GPU where one can be used (`runtime/backends/choice.py`); `Pipeline.backend` and
        every `stats` say what it took and why. threads is per engine, on the CPU (None: one for each core), device
        the number of a GPU. `warm` loads every engine of the usual calls and runs them once, so that the first image
        is not slower than the others; on a GPU these calls become graphs, for each number of slots that calls are
        bound for, and those of `batch` when it is made. Drafters of further trees are loaded with the first tree's,
        whose weights they share, and bound, and captured, when a call first asks for them. Raises CascadeError for a
        missing, changed or outdated bundle, and for a backend that is not installed or cannot take the bundle's
        precision.
        """
        own = not isinstance(backend, str)
        if own and (threads is not None or device is not None or not hasattr(backend, "load")):
            raise CascadeError("backend must be a name, or a backend that was made with its own threads or device.")
        folder = as_folder(folder)
        require_utf8(folder)
        manifest = read_manifest(folder)
        check_files(folder, manifest)
        if isinstance(backend, str):
            chosen = choose_backend(backend, Offer(manifest.backends, Plans.of(folder, manifest)), threads, device)
        else:
            chosen = Chosen(backend, backend.identity.backend, "given by the caller")
        pipeline = cls(folder, manifest, chosen, warm)
        if warm:
            pipeline._warm_up()
        return pipeline

    def _warm_up(self) -> None:
        for name in ("condition", "embed", *((TEXT,) if TEXT in self._engines else ())):
            self._engines[name]
        self._shared_decoder()
        rounds = self._shared_rounds(check_sampling(self.manifest, DrawOptions()).rows)
        tree, workspace = self.manifest.tree(None).name, rounds[-1].lanes.workspace
        costs = self._stored_costs(workspace)
        if costs is not None and costs.problem() is None:  # else the first image of `auto` measures them, or says so
            tree = self._auto_for(workspace).choose(1, 0, None).tree
        lane = rounds[0].lanes[tree]
        lane.run_target(1, ())
        if isinstance(lane.source, (Eagle, Mixed)):
            lane.source.run(1, 1, lane.verified)
        if self._backend.captures:
            decode_once(self._shared_decoder(), self.manifest)
            self._capture(rounds, tree, DrawOptions())

    def _capture(self, rounds: list[Rounds], tree: str, options: DrawOptions) -> None:
        """Makes graphs of the calls for images that are drawn with `tree`, and else as `options` say."""
        asked = {"rule": "ar", "tree": None} if tree == NO_TREE else {"rule": "exact", "tree": tree}
        with suppress(CascadeError):  # it belongs to an image that is asked for
            drawing = self._checker.all(**anything(self.manifest), seed=0, options=options.updated(asked))[0]
            chooser, stats = FixedTree(drawing.tree, ""), self._new_stats("mixed", None)
            batch = self._batch_of(rounds, chooser, self._shared_decoder(), DrawOptions(), stats)
            warm_up(batch, drawing, self._backend.sizes(batch.slots))

    # what it is made of -------------------------------------------------------------------------------------
    def engines(self) -> Mapping[str, Engine]:
        """The engines by their names in the manifest; each is loaded when it is first looked up."""
        return self._engines

    @property
    def backend(self) -> Chosen:
        """The backend, its name and the reason for it."""
        return self._chosen

    @property
    def loaded(self) -> list[str]:
        """Names of the engines that are in memory."""
        return self._engines.loaded

    def wrap_engines(self, wrap: Callable[[str, Engine], Engine] | None) -> None:
        """From now on `wrap(name, engine)` stands for each engine (None: the engine itself); bound calls are
        forgotten."""
        with self._exclusive():
            self._engines.replace(wrap)
            self._reset()

    def release(self, engine: str = TEXT) -> None:
        """Frees an engine's memory, as a rule the text encoder's; it is loaded again when it is next needed."""
        if engine not in self._engines:
            raise CascadeError(f"bundle {self.manifest.name} has no engine {engine!r}.")
        self._conditioner.forget()  # what it has bound keeps engines alive
        self._engines.release(engine)

    def rule(self, name: str) -> Rule:
        """The acceptance rule `name` (not `ar`) with this bundle's settings and tables. Raises CascadeError."""
        return self._rulebook.rule(name)

    def tree_for(self, rule: str | Rule, tree: str | None = None) -> str | None:
        """The tree that images of `rule` are drawn with when `tree` is asked for: a name, `auto`, or None (plain
        decoding). Raises CascadeError when one of them is unknown, or the bundle cannot serve them together."""
        return self._rulebook.choose(rule, tree, check_sampling(self.manifest, DrawOptions())).tree

    @property
    def identity(self) -> Identity:
        """What figures that are measured with this pipeline belong to."""
        return self._backend.identity

    def lane(self, tree: AnyTree | None, guided: bool = True, slots: int | None = None) -> Lane:
        """Bound calls for any tree (None: plain decoding), for those who measure them: on the pipeline's own memory, or
        on memory for so many slots."""
        return Lane(self.workspace(guided, slots), ROOT if tree is None else tree)

    def workspace(self, guided: bool = True, slots: int | None = None) -> Workspace:
        """What lanes share, for those who measure: on the pipeline's own memory, or on memory for so many slots."""
        if slots is None:
            return self._shared_rounds(2 if guided else 1)[-1].lanes.workspace
        return self._new_rounds(self._new_memory(slots), 2 if guided else 1)[-1].lanes.workspace

    def close(self) -> None:
        """Frees engines and caches. The pipeline cannot draw any more, nor can batches made from it begin images."""
        with self._turn.taken_or_own():  # an open stream of the caller's: it would wait for itself
            self._reset()
            self._engines.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _new_memory(self, slots: int) -> Memory:
        self._backend.check_slots(slots)  # before any is taken
        return Memory.allocate(self._backend, self._engines, self.manifest, slots)

    def _new_rounds(self, memory: Memory, rows: int) -> list[Rounds]:
        """Those on the device first, where the backend has kernels: they draw the images that they serve."""

        def lanes(on_device: bool) -> Lanes:
            return Lanes(Workspace(self._backend, self._engines, self.manifest, memory, rows, on_device))

        on_host = HostRounds(lanes(on_device=False))
        if self._kernels is None:
            return [on_host]
        return [DeviceRounds(lanes(on_device=True), self._kernels), on_host]

    def _shared_rounds(self, rows: int) -> list[Rounds]:
        """The rounds on the pipeline's own memory."""
        if self._memory is None:
            self._memory = self._new_memory(self.manifest.batch)
        if rows not in self._rounds:
            self._rounds[rows] = self._new_rounds(self._memory, rows)
        return self._rounds[rows]

    def _chooser(self, tree: str | None, why: str, rounds: list[Rounds]) -> Chooser:
        """What chooses the trees of images that ask for `tree`, for the reason `why`."""
        if tree != AUTO:
            return FixedTree(tree, why)
        return AutoTree(self._auto_for(rounds[-1].lanes.workspace), self.manifest.tree(None).name)

    def _auto_for(self, workspace: Workspace) -> Auto:
        """What chooses trees for images on so many rows and slots; what it sees of one batch serves the next."""
        key = workspace.rows, workspace.memory.slots
        if key not in self._autos:
            candidates = candidates_of(self.manifest)
            known = self._stored_costs(workspace)
            engines = {info.engine: info.tree() for info in candidates.values() if info.engine is not None}
            info = known or measure_at_once(workspace, engines)
            others = [entry for entry in self.manifest.costs if entry.problem() is None]  # of other machines, too
            accepted = {name: tau for entry in others for name, tau in entry.accepted.items()}
            self._autos[key] = Auto(Costs(info), candidates, accepted | info.accepted)
        return self._autos[key]

    def _stored_costs(self, workspace: Workspace) -> CostInfo | None:
        """What the bundle knows of this machine; it was measured with the rows of the bundle's own settings."""
        if workspace.rows != check_sampling(self.manifest, DrawOptions()).rows:
            return None
        identity = self._backend.identity
        return stored(self.manifest, identity.backend, identity.version, identity.machine, identity.threads)

    def _shared_decoder(self) -> Decoder:
        if self._decoder is None:
            self._decoder = Decoder(self._backend, self._engines, self.manifest, self._kernels)
        return self._decoder

    # drawing ------------------------------------------------------------------------------------------------
    def batch(
        self, slots: int | None = None, *, options: DrawOptions | None = None, **settings: Unpack[DrawSettings]
    ) -> Batch:
        """A batch of its own, with memory of its own, for callers that submit images one by one.

        slots: images at the same time (default: the bundle's batch). The options are the jobs' defaults. Their tree is
        the batch's, and with guidance_scale=1 it draws without guidance only; all else each job may have its own.
        Raises CascadeError.
        """
        given = as_options(options, settings)
        sampling = check_sampling(self.manifest, given)
        chosen = self._rulebook.choose(given.rule, given.tree, sampling)
        rounds = self._rounds_for(slots, sampling.rows)
        batch = self._new_batch(rounds, self._chooser(chosen.tree, chosen.why, rounds), given)
        if self._warm and self._backend.captures:
            self._capture(rounds, batch.lane.tree.name, given)
        return batch

    def batch_for(self, chooser: Chooser, slots: int) -> Batch:
        """A batch whose rounds have the trees that `chooser` says, for those who measure them; drawn as the bundle's
        own settings say."""
        options = DrawOptions()
        return self._new_batch(self._rounds_for(slots, check_sampling(self.manifest, options).rows), chooser, options)

    def _rounds_for(self, slots: int | None, rows: int) -> list[Rounds]:
        """Rounds on memory of their own. Raises CascadeError for numbers of slots that cannot be."""
        slots = self.manifest.batch if slots is None else slots
        if isinstance(slots, bool) or not isinstance(slots, int) or not 1 <= slots <= MOST_SLOTS:
            raise CascadeError(f"slots must be a whole number from 1 to {MOST_SLOTS}, not {slots!r}.")
        return self._new_rounds(self._new_memory(slots), rows)

    def _new_batch(self, rounds: list[Rounds], chooser: Chooser, defaults: DrawOptions) -> Batch:
        decoder = Decoder(self._backend, self._engines, self.manifest, self._kernels)
        stats = self._new_stats("mixed", chooser.asked)
        return self._batch_of(rounds, chooser, decoder, defaults, stats)

    def _batch_of(
        self, rounds: list[Rounds], chooser: Chooser, decoder: Decoder, defaults: DrawOptions, stats: Stats
    ) -> Batch:
        return Batch(rounds, chooser, self._conditioner, decoder, self._checker.one, defaults, stats)

    def _run(self, drawings: list[Drawing], callback: Callback | None) -> Run:
        """One `generate` or `stream`, on the pipeline's own memory."""
        first = drawings[0]
        stats = self._new_stats(PLAIN if first.rule is None else first.rule.name, first.tree)

        def batch() -> Batch:
            rounds = self._shared_rounds(first.sampling.rows)
            chooser, decoder = self._chooser(first.tree, first.why, rounds), self._shared_decoder()
            return self._batch_of(rounds, chooser, decoder, DrawOptions(), stats)

        return Run(drawings, callback, stats, batch, self._exclusive, self._turn.goes_on)

    def _new_stats(self, rule: str, tree: str | None) -> Stats:
        return Stats(rule, tree, backend=self._chosen.name, backend_why=self._chosen.why)

    def generate(
        self,
        prompts: Sequence[str] | str | None = None,
        *,
        features: np.ndarray | None = None,
        features_mask: np.ndarray | None = None,
        class_ids: Sequence[int] | None = None,
        seed: int | Sequence[int] = 0,
        options: DrawOptions | None = None,
        callback: Callback | None = None,
        **settings: Unpack[DrawSettings],
    ) -> Output:
        """Draws an image for each prompt, each row of features [P, T, C] (mask bool [P, T]), or each class id.

        Image i uses seed + i (or seed[i]) and does not depend on the others. `settings` are fields of `DrawOptions`,
        laid over `options`. callback(done, total) is told of progress in tokens. Images beyond the bundle's batch
        join as slots become free.

        Raises CascadeError, before anything is drawn, for what the model or the bundle cannot serve;
        UnfinishedError when an image was given up, Interrupted after Ctrl-C, both with what was finished.
        """
        given = as_options(options, settings)
        drawings = self._checker.all(prompts, features, features_mask, class_ids, seed, given)
        started, run = time.perf_counter(), self._run(drawings, callback)

        def output() -> Output:
            run.stats.total_seconds = time.perf_counter() - started
            return Output.of(run.finished(), run.stats, self.manifest.model.plan.image_tokens)

        try:
            for _ in run.rounds():
                pass
            return output()
        except KeyboardInterrupt:
            raise Interrupted(output()) from None
        except CascadeError as error:
            if not run.started:
                raise
            raise UnfinishedError(str(error), output()) from error

    def stream(
        self,
        prompts: Sequence[str] | str | None = None,
        *,
        features: np.ndarray | None = None,
        features_mask: np.ndarray | None = None,
        class_ids: Sequence[int] | None = None,
        seed: int | Sequence[int] = 0,
        options: DrawOptions | None = None,
        callback: Callback | None = None,
        **settings: Unpack[DrawSettings],
    ) -> Iterator[Output]:
        """As `generate`, but hands out images as soon as they are drawn: an output holds those of one round.

        `output.places` says which of the requested images they are: they come as they are done, not in order. The
        request is checked whole before this returns. `output.stats` is what the run has cost since the output before,
        so that the outputs' stats add up to the run's. Ctrl-C and CascadeError are raised after the images that were
        finished.
        """
        given = as_options(options, settings)
        drawings = self._checker.all(prompts, features, features_mask, class_ids, seed, given)
        run = self._run(drawings, callback)

        def outputs() -> Iterator[Output]:
            before, tokens = run.stats.copy(), self.manifest.model.plan.image_tokens
            for images in run.rounds():
                interrupt: KeyboardInterrupt | None = None
                try:
                    output = Output.of(images, run.stats.since(before), tokens)
                except KeyboardInterrupt as error:  # these images are drawn: they are handed out before it goes on
                    output, interrupt = Output.of(images, run.stats.since(before), tokens), error
                before = run.stats.copy()
                yield output
                if interrupt is not None:
                    raise interrupt

        return outputs()

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Waits until no other thread draws. Raises CascadeError where the caller would wait for itself."""
        self._engines.check_open()
        with self._turn.taken():
            yield
