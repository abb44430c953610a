"""What the device does in a round, by its own clock: marks on the stream around every engine call and kernel.

The marks are CUDA events. A backend without a device is timed by the host's clock, which is how the tests run this.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import click

from ..calibration.subjects import request
from ..runtime.backends import Backend, BoundCall, Engine
from ..runtime.options import DrawOptions
from ..runtime.pipeline import Pipeline
from ..runtime.tree import NO_TREE
from .gpu_results import BACKEND, BUNDLE, HOST, ROUNDS, HostRounds, show, store
from .timing import served

TREES = "jacobi_32", "mixed_32", "chain_7"
TARGET, IN_A_ROUND = "target", ("draft", "embed", "target", "kernel")


class Mark(Protocol):
    """A moment on the device."""

    def since(self, earlier: Any) -> float:
        """Milliseconds between two marks that have been waited for."""
        ...


class HostMark:
    def __init__(self) -> None:
        self._at = time.perf_counter()

    def since(self, earlier: HostMark) -> float:
        return 1e3 * (self._at - earlier._at)


class Timed:
    """A backend whose engine calls and kernels are marked; `spans` has (name, begin, end) of each, in order."""

    def __init__(self, backend: Backend) -> None:
        self._backend, self._device = backend, getattr(backend, "device", None)
        self.spans: list[tuple[str, Mark, Mark]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def load(self, path: Path) -> Engine:
        return TimedEngine(self, path.name.split(".")[0], self._backend.load(path))

    def load_merged(self, path: Path, files: Mapping[str, Path]) -> Mapping[str, Engine]:
        engines = self._backend.load_merged(path, files)
        return {name: TimedEngine(self, name.split(".")[0], engine) for name, engine in engines.items()}

    def kernels(self, *bundle: Any) -> Any:
        kernels = self._backend.kernels(*bundle)
        return None if kernels is None else TimedKernels(self, kernels)

    @property
    def clock(self) -> str:
        """What the marks are made by."""
        return "the host's clock" if self._device is None else "CUDA events"

    def mark(self) -> Mark:
        """Behind all that is queued so far."""
        if self._device is None:
            return HostMark()
        event = self._device.event(timed=True)
        event.record()
        return event

    def wait(self) -> None:
        if self._device is not None:
            self._device.synchronize()


class TimedEngine:
    def __init__(self, timed: Timed, name: str, engine: Engine) -> None:
        self._timed, self._name, self._engine = timed, name, engine

    def dtype(self, name: str) -> str:
        return self._engine.dtype(name)

    def bind(self, inputs: Any, outputs: Any) -> BoundCall:
        return TimedCall(self._timed, self._name, self._engine.bind(inputs, outputs))


class TimedCall:
    def __init__(self, timed: Timed, name: str, call: BoundCall) -> None:
        self._timed, self._name, self._call = timed, name, call

    def run(self, fetch: Any = ()) -> None:
        begin = self._timed.mark()
        self._call.run(fetch)
        self._timed.spans.append((self._name, begin, self._timed.mark()))


class TimedKernels:
    def __init__(self, timed: Timed, kernels: Any) -> None:
        self._timed, self._kernels = timed, kernels

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernels, name)

    def launch(self, name: str, *arguments: Any) -> None:
        begin = self._timed.mark()
        self._kernels.launch(name, *arguments)
        self._timed.spans.append((f"kernel {name}", begin, self._timed.mark()))


@click.command()
@BUNDLE
@BACKEND
@ROUNDS
@click.option("--slots", "sizes", type=int, multiple=True, default=(1, 8), show_default=True)
@click.option("--tree", "trees", multiple=True, default=TREES, show_default=True)
def stages(bundle: Path, backend: str, rounds: str, sizes: tuple[int, ...], trees: tuple[str, ...]) -> None:
    """Where the time of a round goes."""
    with Pipeline.load(bundle, backend, warm=False) as pipe:
        opened = pipe.backend.backend
    timed = Timed(HostRounds(opened) if rounds == HOST else opened)  # type: ignore[arg-type] - as a backend
    with Pipeline.load(bundle, timed) as pipe:  # type: ignore[arg-type] - as a backend
        rows = []
        for slots in sizes:
            for tree in (NO_TREE, *served(pipe, trees)):
                rows.append({"tree": tree, "slots": slots, **steady(pipe, timed, slots, tree)})
                show(rows[-1])
    store("stages", bundle.name, backend, {"rounds": rounds, "clock": timed.clock, "rows": rows})


def steady(pipe: Pipeline, timed: Timed, slots: int, tree: str) -> dict[str, Any]:
    """A row: the second set of `slots` images, from the round behind their prefill to the last."""
    options = DrawOptions(rule="ar") if tree == NO_TREE else DrawOptions(rule="exact", tree=tree)
    batch = pipe.batch(slots, options=options)
    for _ in range(2):
        for number in range(slots):
            batch.submit(request(pipe.manifest, (), number, number))
        batch.step()
        timed.spans.clear()
        while not batch.idle:
            batch.step()
    timed.wait()
    spans = [span for span in timed.spans if span[0].split()[0] in IN_A_ROUND]
    count = sum(name == TARGET for name, *_ in spans)
    taken: dict[str, float] = defaultdict(float)
    for name, begin, end in spans:
        taken[name] += end.since(begin)
    whole = spans[-1][2].since(spans[0][1])
    cache = batch.lane.memory.target.nbytes * slots / batch.slots
    weights = sum(pipe.manifest.files[name].bytes for name in pipe.manifest.engines[TARGET].weights)
    return {
        "rounds": count, "ms_a_round": whole / count, "gap": 1 - sum(taken.values()) / whole,
        "ms_by_stage": {name: ms / count for name, ms in sorted(taken.items(), key=lambda one: -one[1])},
        "target_gb_per_second": 1e-6 * (weights + cache) * count / taken[TARGET],
    }  # fmt: skip
