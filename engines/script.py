"""The script that compiles a bundle's engines on the machine that will run them."""

from __future__ import annotations

from ..runtime.bundle import Manifest

SCRIPT = "build_on_target.sh"

# `compile` puts a new folder in the bundle's place, so the shell enters it anew before it goes on.
_TEXT = """\
#!/bin/sh
# Compiles the engines of this bundle ({name}) with TensorRT for the GPU of the machine it is started on.
# Needs: an NVIDIA driver, Python 3.11 or newer, and cascade-trt with TensorRT:
#   pip install 'cascade-trt[tensorrt]'
# On Jetson use the TensorRT of JetPack (Python packages are there already) and leave the extra away.
set -eu
cd "$(dirname "$0")"
command -v cascade-trt >/dev/null || {{ echo "install it first: pip install 'cascade-trt[tensorrt]'" >&2; exit 2; }}
cascade-trt compile --target tensorrt .
cd "$PWD"
cascade-trt doctor .
"""


def build_script(manifest: Manifest) -> str:
    """Text of `build_on_target.sh` for this bundle."""
    name = "".join(letter for letter in manifest.name if letter.isprintable())  # a line break would end the comment
    return _TEXT.format(name=name)
