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

from ..runtime.backends.kernels.info import ARCHITECTURES, OPTIONS, SUFFIX, KernelInfo, kernel_source, sources
from ..runtime.digests import whole_digest
from ..runtime.errors import CascadeError
from ..runtime.staging import write_file
from .publish import make_folder

FOLDER = "kernels"
_INSTALL = (
    "run `pip install 'cuda-bindings>=13,<14' 'nvidia-cuda-nvrtc>=13,<14'` (the extra cascade-trt[cuda] has both, and "
    "ONNX Runtime for GPUs)"
)


def compiler(architectures: Sequence[str] = ()) -> str:
    """The compiler that is installed, "nvrtc 13.5". Raises CascadeError without one, and where it compiles nothing for
    one of `architectures`."""
    nvrtc = _import_nvrtc()
    version, known = _version(nvrtc), [f"sm{number}" for number in _check(nvrtc.nvrtcGetSupportedArchs())]
    for architecture in architectures:
        if architecture not in known:
            raise CascadeError(
                f"NVRTC {version} compiles nothing for {architecture!r}: choose among {', '.join(known)}."
            )
    return f"nvrtc {version}"


def compile_kernels(
    out: Path, architectures: Sequence[str] = ARCHITECTURES, progress: Callable[[str], None] = lambda _: None
) -> list[KernelInfo]:
    """Compiles all kernels for each architecture into `out`/kernels, about a second each; `out` is a bundle's folder.

    The same source and compiler give the same files, and other ones other names. `progress` gets the architecture that
    is next. Raises CascadeError when NVRTC is missing or refuses; what has been written by then may stay.
    """
    by, nvrtc, source, found = compiler(architectures), _import_nvrtc(), kernel_source(), []
    key = hashlib.sha256(f"{source} {by}".encode()).hexdigest()[:16]
    make_folder(out, FOLDER)
    for architecture in architectures:
        progress(architecture)
        file = f"{FOLDER}/round-{key}.{architecture}{SUFFIX}"
        code = _compile(nvrtc, architecture)
        (out / file).unlink(missing_ok=True)  # never through a link, and a hard one that a published bundle shares
        write_file(out / file, code)
        found.append(KernelInfo(file, architecture, by, source, len(code), whole_digest(out / file)))
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
        raise CascadeError(f"NVRTC failed ({status.name}): {_INSTALL} anew.")
    return values[0] if len(values) == 1 else values
