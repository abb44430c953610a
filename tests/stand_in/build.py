"""Builds the stand-in for CUDA (stand_in.h) with gcc.

The libraries bear the names, and their symbols the versions, that ONNX Runtime's CUDA provider was linked with.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

HERE = Path(__file__).parent
LIBRARIES = {
    "libcuda.so.1": "cuda.c", "libcudart.so.13": "cudart.c", "libcublas.so.13": "cublas.c",
    "libcublasLt.so.13": "cublas.c", "libcurand.so.10": "curand.c", "libcudnn.so.9": "cudnn.c",
}  # fmt: skip


def build(folder: Path) -> None:
    """Writes the libraries into `folder`. Raises CalledProcessError when gcc refuses."""
    for name, source in LIBRARIES.items():
        versions = folder / f"{name}.map"
        versions.write_text(f"{name} {{ global: *; }};\n")
        driver = [] if name == "libcuda.so.1" else [folder / "libcuda.so.1"]
        command = [
            "gcc", "-std=gnu17", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", f"-Wl,-soname,{name}",
            f"-Wl,--version-script={versions}", HERE / source, *driver, "-ldl", "-lpthread", "-o", folder / name,
        ]  # fmt: skip
        subprocess.run([str(word) for word in command], check=True)
