"""What a figure was measured on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

from ..runtime.machine import cores, engine_threads, processor


def describe_machine(threads: int | None) -> dict[str, object]:
    """Processor, cores, memory and versions; `threads` of every engine, where so many were asked for (None: none)."""
    found: dict[str, object] = {
        "processor": processor(),
        "cores": cores(),
        "threads": engine_threads(None if threads is None else min(threads, cores())),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "python": platform.python_version(),
    }
    for package in ("onnxruntime", "torch", "numpy", "cascade-trt"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
