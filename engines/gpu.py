"""The NVIDIA GPU of this machine, asked through nvidia-smi: no library is loaded."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Gpu:
    """`driver` is the driver's version, `cuda` the newest CUDA that it serves ("" unknown), memory in bytes."""

    name: str
    compute_capability: tuple[int, int]
    driver: str
    memory: int
    free: int
    cuda: str = ""


def find_gpu() -> Gpu | None:
    """The first GPU, or None when there is no driver, no GPU, or nvidia-smi does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    fields = "name,compute_cap,driver_version,memory.total,memory.free"
    try:
        command = [program, f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    gpu = parse_gpu(answer.stdout)
    return None if gpu is None else replace(gpu, cuda=_cuda_version(program))


def _cuda_version(program: str) -> str:
    """From the header of nvidia-smi's table, the only place where every version of it tells."""
    try:
        answer = subprocess.run([program], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return parse_cuda(answer.stdout)


def parse_cuda(text: str) -> str:
    """"13.0" of "CUDA Version: 13.0" (newer drivers write "CUDA UMD Version"); "" when it is not there."""
    match = re.search(r"CUDA (?:\w+ )?Version\s*:\s*([\d.]+)", text)
    return match[1] if match else ""


def parse_gpu(text: str) -> Gpu | None:
    """The first line of nvidia-smi's CSV; None when it does not read like a GPU."""
    parts = [part.strip() for part in text.strip().partition("\n")[0].split(",")]
    if len(parts) != 5:
        return None
    name, capability, driver, memory, free = parts
    major, dot, minor = capability.partition(".")
    if not (dot and major.isdigit() and minor.isdigit()):
        return None
    # Jetson shares memory with the CPU and answers [N/A].
    mebibytes = [int(value) if value.isdigit() else 0 for value in (memory, free)]
    return Gpu(name, (int(major), int(minor)), driver, mebibytes[0] << 20, mebibytes[1] << 20)
