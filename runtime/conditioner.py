"""From a drawing's conditioning to the prefix of its rows: the text encoder and the `condition` engine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from .backends import Backend, BoundCall, Buffer
from .backends.host import to_dtype, to_float
from .backends.kernels import Arrival, Kernels
from .bundle import FEATURES, SLOT, TOKENS, Manifest
from .engines import TEXT, Engines
from .errors import CascadeError
from .prompts import rows_of
from .request import Conditioning

_CLASSES = "class ids"


@dataclass(frozen=True)
class Prefix:
    """What a slot is prefilled with: one row under plain drawing, the conditional and the unconditional with guidance.

    `embeds` are [G, T, D], of the dtype of engines as the host sees it. `mask` bool [G, T] marks the valid slots; they
    lie at the end. `first` int64 [G] is the position of slot 0: a slot's row of the rotary table is first + slot, 0
    where that is negative (padding). `read` int64 [T - 1]: the token behind each slot but the last, in the drafter's
    table; None where it does not read prompts.
    """

    embeds: np.ndarray
    mask: np.ndarray
    first: np.ndarray
    read: np.ndarray | None = None


@dataclass(frozen=True)
class _Bound:
    """The engines of one way to a prefix, bound: the host writes `given`, `run` queues them all but the last one,
    `condition`, which writes `prefix` [G, T, D]."""

    given: Mapping[str, Buffer]
    run: Callable[[], None]
    condition: BoundCall
    prefix: Buffer


class Conditioner:
    """Makes prefixes, one image at a time; its buffers and calls are made once. With `kernels` the host need not wait
    for a prefix, and text features stay where the encoder has left them."""

    def __init__(
        self, backend: Backend, engines: Engines, manifest: Manifest, kernels: Kernels | None = None
    ) -> None:
        self._backend, self._engines, self._manifest, self._kernels = backend, engines, manifest, kernels
        self._bound: dict[tuple[str, int], _Bound] = {}  # by what is given, and rows
        self._newest: Arrival | None = None
        self._turn = threading.Lock()  # batches share this, and threads may step them at the same time

    @property
    def is_late(self) -> bool:
        """Whether the device makes prefixes while the host goes on."""
        return self._kernels is not None

    def start(self, conditioning: Conditioning, rows: int) -> Callable[[], Prefix]:
        """Begins with the prefix of one image (P = 1) for `rows` rows; what is returned waits for it. That raises
        CascadeError when it is not finite."""
        with self._turn:
            bound, shown = self._load(conditioning, rows)
            bound.run()
            if self._kernels is None:
                bound.condition.run(fetch=("prefix",))
                embeds = bound.prefix.host.copy()  # the next image writes there, too
                return lambda: self._finished(conditioning, embeds, bound.prefix.dtype, shown)
            bound.condition.run()
            arrival = self._newest = self._kernels.bring(bound.prefix)
        return lambda: self._finished(conditioning, arrival.wait(), bound.prefix.dtype, shown)

    def prefix(self, conditioning: Conditioning, rows: int) -> Prefix:
        """The prefix of one image (P = 1) for `rows` rows. Raises CascadeError when it is not finite."""
        return self.start(conditioning, rows)()

    def forget(self) -> None:
        """Bound calls are forgotten, and with them the engines; what is under way is waited for."""
        with self._turn:
            if self._newest is not None:
                with suppress(CascadeError):  # a GPU that is lost: those who wait for a prefix are told
                    self._newest.wait()
            self._bound.clear()
            self._newest = None

    def _finished(self, conditioning: Conditioning, embeds: np.ndarray, dtype: str, shown: np.ndarray) -> Prefix:
        """embeds [G, T, D] of an engine's `dtype`; shown bool [T]: the valid slots of the conditional row."""
        info, rows = self._manifest.model.condition, len(embeds)
        mask = np.repeat(shown[None], rows, axis=0)
        if info.uncond_length is not None:
            mask[1:] = np.arange(info.length) >= info.length - info.uncond_length
        if not np.isfinite(to_float(embeds, dtype)[mask]).all():
            raise CascadeError(
                "the conditioning of this image leaves the range of the engines' numbers: check its features."
            )
        first = np.zeros(rows, np.int64) if info.positions == SLOT else mask.sum(axis=1) - info.length
        return Prefix(embeds, mask, first, self._read(conditioning))

    def _read(self, conditioning: Conditioning) -> np.ndarray | None:
        """The prompt as the drafter knows it: ids of the conditional row, behind the sequence's tokens. In the slots
        that the unconditional row shows, it has the same ones (`PromptForm` ends in what both rows end in)."""
        drafter = self._manifest.drafter
        if drafter is None or not drafter.prompt_ids or conditioning.ids is None:
            return None
        return self._manifest.model.plan.tokens + conditioning.ids[0, 1:]

    # what the engines read ----------------------------------------------------------------------------------
    def _load(self, conditioning: Conditioning, rows: int) -> tuple[_Bound, np.ndarray]:
        """The engines, with their inputs of one image, and the valid slots bool [T] of its conditional row."""
        info, ids, shown = self._manifest.model.condition, conditioning.ids, conditioning.mask
        if info.kind == TOKENS:
            text = self._manifest.text
            assert text is not None and ids is not None and shown is not None  # such a bundle takes prompts alone
            bound = self._bound_for(TOKENS, rows)
            bound.given["ids"].host[:] = rows_of(text, ids[0], shown[0])[:rows]
            return bound, shown[0]
        if info.kind != FEATURES:
            assert conditioning.class_ids is not None  # the other kinds are refused
            bound = self._bound_for(_CLASSES, rows)
            bound.given["class_ids"].host[:] = conditioning.class_ids
            return bound, np.ones(info.length, bool)
        assert shown is not None  # features and token ids come with theirs
        if conditioning.features is None:
            assert ids is not None  # prompts are refused otherwise
            bound = self._bound_for(TEXT, rows)
            bound.given["ids"].host[:], bound.given["mask"].host[:] = ids, shown
            return bound, shown[0]
        bound = self._bound_for(FEATURES, rows)
        given = bound.given["features"]
        with np.errstate(over="ignore"):  # what half precision cannot hold is found later
            given.host[:] = to_dtype(conditioning.features, given.dtype)
        return bound, shown[0]

    def _bound_for(self, source: str, rows: int) -> _Bound:
        if (source, rows) not in self._bound:
            self._bound[source, rows] = self._bind(source, rows)
        return self._bound[source, rows]

    def _bind(self, source: str, rows: int) -> _Bound:
        info, engine, buffer = self._manifest.model.condition, self._engines["condition"], self._backend.buffer
        run = _nothing
        if source == TOKENS:
            inputs = given = {"ids": buffer((rows, info.length), "int64", "in")}
        elif source == _CLASSES:
            inputs = given = {"class_ids": buffer((rows,), "int64", "in")}
        else:
            kind = "device" if source == TEXT else "in"
            inputs = given = {"features": buffer((rows, info.length, info.width), engine.dtype("features"), kind)}
            if source == TEXT:
                given, run = self._bind_text(inputs["features"])
        if source != TOKENS:
            uncond = buffer((rows,), "bool", "in")
            uncond.host[:] = np.arange(rows) == 1
            inputs = {**inputs, "uncond": uncond}
        prefix = buffer((rows, info.length, self._manifest.model.dim), engine.dtype("prefix"), "out")
        return _Bound(given, run, engine.bind(inputs, {"prefix": prefix}), prefix)

    def _bind_text(self, features: Buffer) -> tuple[dict[str, Buffer], Callable[[], None]]:
        """The bundle's own encoder, which writes the first row of features [G, T, C]; the others are copies of it."""
        rows, length, _ = features.shape
        given = {name: self._backend.buffer((1, length), dtype, "in") for name, dtype in
                 (("ids", "int64"), ("mask", "bool"))}  # fmt: skip
        call = self._engines[TEXT].bind(given, {"features": features.view(0, 1)})

        def run() -> None:
            call.run()
            for row in range(1, rows):
                features.move(0, row, 1)

        return given, run


def _nothing() -> None:
    """No engine comes before `condition`."""
