"""The machine that figures were measured on."""

from __future__ import annotations

import os
import platform
import sys
from functools import cache
from pathlib import Path

_CPUINFO, _MEMINFO = Path("/proc/cpuinfo"), Path("/proc/meminfo")


@cache
def processor() -> str:
    """The processor's name as the system gives it."""
    names = (entry["model name"] for entry in _cpuinfo() if entry.get("model name"))
    return next(names, platform.processor() or platform.machine() or "unknown processor")


def cores() -> int:
    """Logical processors that this process may use."""
    return len(_usable())


def engine_threads(threads: int | None) -> int:
    """Threads of an engine that was loaded with `threads`: None is one for each physical core that may be used."""
    if threads is not None:
        return threads
    usable = _usable()
    of_core: dict[int, tuple[str, str]] = {}
    for entry in _cpuinfo():
        if entry.get("processor", "").isdigit() and "core id" in entry:
            of_core[int(entry["processor"])] = entry.get("physical id", ""), entry["core id"]
    if not usable <= of_core.keys():
        return len(usable)
    return len({of_core[number] for number in usable})


def free_memory() -> int | None:
    """Bytes that can be used without swapping; None where the system does not tell."""
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return None
    kilobytes = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return next((int(number) * 1024 for number in kilobytes), None)


def cache_folder() -> Path | None:
    """Where the platform keeps this program's files that can be made again; None for a user without a home."""
    asked = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(asked):  # another is to be ignored, says the specification
        return Path(asked) / "cascade-trt"
    try:
        home = Path.home()
    except RuntimeError:
        return None
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "cascade-trt" / "Cache"
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "cascade-trt"


def _usable() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


@cache
def _cpuinfo() -> list[dict[str, str]]:
    """An entry for each logical processor; empty where the system has no such file."""
    if not _CPUINFO.is_file():
        return []
    pairs = [[line.partition(":") for line in block.splitlines()] for block in _CPUINFO.read_text().split("\n\n")]
    return [{name.strip(): value.strip() for name, _, value in block} for block in pairs if block]
