"""The process in which plans are built: `python -m cascade_trt.engines.tensorrt.worker REQUEST PARENT`.

A process of its own, because TensorRT keeps memory, cannot be interrupted inside its library, and Polygraphy
serves one flavour per process. It prints one JSON object a line: `{"engine": ..., ...}` for each plan that it
wrote, `{"error": sentence}` when it gives up.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...runtime.errors import CascadeError
from .build import build_plan
from .loader import import_tensorrt, require_polygraphy
from .target import parse_target

_PR_SET_PDEATHSIG = 1


def main(request: dict[str, Any]) -> None:
    """Builds `request["jobs"]`; raises CascadeError when one fails."""
    targets = [parse_target(name) for name in request["targets"]]
    require_polygraphy()
    flavour = import_tensorrt(targets[0].backend)
    for job in request["jobs"]:
        reset_peak()
        plan = build_plan(
            flavour, Path(job["onnx"]), job["precision"], targets, job["profiles"], job["options"]
        )
        with open(job["plan"], "wb") as file:
            file.write(plan.data)
        Path(job["report"]).write_text(plan.report.to_json())
        say({"engine": job["engine"], "seconds": plan.seconds, "peak_memory": peak_memory(), "network": plan.network})


def end_with(parent: int) -> None:
    """Lets Linux end this process as soon as its parent ends, however that ends: nobody else could."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended already
        sys.exit(1)


def say(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


def reset_peak() -> None:
    """Starts the count of peak memory anew, where Linux lets us."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Bytes of resident memory at most since `reset_peak`; 0 where it cannot be told."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    line = next((line for line in status.splitlines() if line.startswith("VmHWM:")), "VmHWM: 0 kB")
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    end_with(parent=int(sys.argv[2]))
    try:
        main(json.loads(sys.argv[1]))
    except CascadeError as error:
        say({"error": str(error)})
    except MemoryError:
        say({"error": "memory ran out while TensorRT compiled: free some, or build on a larger machine."})
    except OSError as error:
        say({"error": f"cannot write the engine ({error.strerror}): free space or choose another folder."})
