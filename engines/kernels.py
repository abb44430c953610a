"""Compiles the kernels of a round (`runtime/backends/kernels/`) with NVRTC, which needs neither a GPU nor a driver.

Every architecture gets one file of machine code with all kernels in it, so a bundle runs without a compiler. No PTX: an
older driver refuses that of a newer compiler.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..runtime.backends.kernels.info import KernelInfo, source_digest, sources
from ..runtime.digests import whole_digest
from ..runtime.errors import CascadeError
from ..runtime.staging import write_file

ARCHITECTURES = ("sm75", "sm80", "sm86", "sm89", "sm90", "sm100", "sm120")
OPTIONS = ("--std=c++17", "--fmad=false")  # no fused multiply-add: what tests see on the CPU is what a GPU computes
_FOLDER = "kernels"
_INSTALL = "run `pip install 'cascade-trt[cuda]'`"


def kernel_source() -> str:
    """The digest that kernels of this version have (`KernelInfo.source`)."""
    return source_digest(OPTIONS)


def compile_kernels(
    out: Path, architectures: Sequence[str] = ARCHITECTURES, progress: Callable[[str], None] = lambda _: None
) -> list[KernelInfo]:
    """Compiles all kernels for each architecture into `out`/kernels, about a second each; `out` is a bundle's folder.

    The same source and compiler give the same files, and other ones other names. `progress` gets the architecture that
    is next. Raises CascadeError when NVRTC is missing or refuses; what has been written by then may stay.
    """
    nvrtc = _import_nvrtc()
    version, known = _version(nvrtc), _check(nvrtc.nvrtcGetSupportedArchs())
    for architecture in architectures:
        if architecture not in {f"sm{number}" for number in known}:
            raise CascadeError(
                f"NVRTC {version} compiles nothing for {architecture!r}: choose among "
                f"{', '.join(f'sm{number}' for number in known)}."
            )
    source, found = kernel_source(), []
    compiler = f"nvrtc {version}"
    key = hashlib.sha256(f"{source} {compiler}".encode()).hexdigest()[:16]
    for architecture in architectures:
        progress(architecture)
        file = f"{_FOLDER}/round-{key}.{architecture}.cubin"
        code = _compile(nvrtc, architecture)
        write_file(out / file, code)  # a new file: never through a hard link that a published bundle shares
        found.append(KernelInfo(file, architecture, compiler, source, len(code), whole_digest(out / file)))
    return found


def _import_nvrtc() -> Any:
    """cuda.bindings.nvrtc, its library loaded. Raises CascadeError."""
    try:
        nvrtc = importlib.import_module("cuda.bindings.nvrtc")
    except ImportError:
        raise CascadeError(f"cuda-bindings is not installed, which kernels are compiled with: {_INSTALL}.") from None
    try:
        nvrtc.nvrtcVersion()
    except RuntimeError as error:  # cuda.pathfinder's DynamicLibNotFoundError is one
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CascadeError(f"NVRTC, CUDA's compiler library, cannot be loaded ({reason[:200]}): {_INSTALL}.") from None
    return nvrtc


def _version(nvrtc: Any) -> str:
    major, minor = _check(nvrtc.nvrtcVersion())
    return f"{major}.{minor}"


def _compile(nvrtc: Any, architecture: str) -> bytes:
    """Machine code of all kernels. Raises CascadeError with the compiler's first error."""
    texts = sources()
    names = [name for name in texts if name.endswith(".cu")]
    whole = "".join(f'#include "{name}"\n' for name in names).encode()
    headers, titles = [text.encode() for text in texts.values()], [name.encode() for name in texts]
    program = _check(nvrtc.nvrtcCreateProgram(whole, b"round.cu", len(texts), headers, titles))
    try:
        options = [option.encode() for option in (f"--gpu-architecture=sm_{architecture[2:]}", *OPTIONS)]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if int(status):
            log = b" " * _check(nvrtc.nvrtcGetProgramLogSize(program))
            _check(nvrtc.nvrtcGetProgramLog(program, log))
            lines = log.decode(errors="replace").strip("\0 \n").splitlines()
            said = next((line for line in lines if "error" in line), "no reason given")
            raise CascadeError(f"NVRTC refuses the kernels for {architecture} ({said}): report this as a fault.")
        code = b" " * _check(nvrtc.nvrtcGetCUBINSize(program))
        _check(nvrtc.nvrtcGetCUBIN(program, code))
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return code


def _check(answer: tuple[Any, ...]) -> Any:
    """What a call answers behind its status. Raises CascadeError for any status but success."""
    status, *values = answer
    if int(status):
        raise CascadeError(f"NVRTC failed ({status.name}): install it anew with `pip install 'cascade-trt[cuda]'`.")
    return values[0] if len(values) == 1 else values
