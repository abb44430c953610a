"""The script that compiles a bundle's engines on the machine that will run them."""

from __future__ import annotations

from .. import __version__
from ..runtime.bundle import Manifest

SCRIPT = "build_on_target.sh"

# `compile` puts a new folder in the bundle's place, so the shell enters it anew before it goes on.
_TEXT = """\
#!/bin/sh
# Compiles the engines of this bundle ({name}) with TensorRT for the GPU of the machine it is started on.
# Needs: an NVIDIA driver, Python 3.11 or newer, and cascade-trt with TensorRT. It is on no index: carry its wheel here,
# which `pip wheel . --no-deps` makes in its checkout, and install it in an environment of its own:
#   python3 -m venv ~/cascade-trt
#   ~/cascade-trt/bin/pip install './{wheel}[tensorrt]'
#   . ~/cascade-trt/bin/activate
# On Jetson use the TensorRT of JetPack: give venv --system-site-packages, and take the extra [cpu].
set -eu
command -v cascade-trt >/dev/null || {{
    echo "cascade-trt is not on the path: install it as the head of $0 says, then start $0 again." >&2
    exit 2
}}
cd "$(dirname "$0")"
cascade-trt compile --target tensorrt .
cd "$PWD"
cascade-trt doctor .
"""


def build_script(manifest: Manifest) -> str:
    """Text of `build_on_target.sh` for this bundle."""
    name = "".join(letter for letter in manifest.name if letter.isprintable())  # a line break would end the comment
    return _TEXT.format(name=name, wheel=f"cascade_trt-{__version__}-py3-none-any.whl")
