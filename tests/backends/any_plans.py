"""Plans of whatever graph of the contract is asked for, compiled when it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fake_trt
from contract import ROWS, SLOTS

from cascade_trt.runtime.bundle import PlanInfo
from cascade_trt.runtime.plans import BACKENDS, Here, Plans

Compile = Callable[[Path, Path, list[dict[str, int]]], object]  # graph, file, profiles


@dataclass(frozen=True)
class AnyPlans(Plans):
    """Of the graphs in `folder`, with a profile for every size of the contract. A graph that begins with "odd" is none,
    and so is its plan."""

    compile: Compile = lambda graph, file, profiles: fake_trt.write_plan(file, graph, profiles)

    def fitting(self, backend: str, here: Here, target: str | None = None) -> dict[str, PlanInfo]:
        assert backend in BACKENDS and here.gpu is not None and target is None
        plans = self

        class Compiled(dict[str, PlanInfo]):
            def get(self, name: str, default: Any = None) -> PlanInfo | None:  # noqa: ARG002
                graph, file = plans.folder / name, plans.folder / f"{name}.plan"
                profiles = [{"R": rows, "N": count} for rows in range(1, ROWS + 1) for count in range(1, SLOTS + 1)]
                if graph.read_bytes().startswith(b"odd"):
                    file.write_bytes(b"odd")
                else:
                    plans.compile(graph, file, profiles)
                return fake_trt.plan_info(name.removesuffix(".onnx"), file, profiles)

        slots = [{"P": count, "N": 1} for count in range(1, 9)]
        return Compiled({"embed.onnx": fake_trt.plan_info("embed", Path(__file__), slots)})


def any_plans(folder: Path, compile: Compile | None = None) -> AnyPlans:
    return AnyPlans(folder, {}, [], SLOTS, *([] if compile is None else [compile]))
