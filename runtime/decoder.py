"""From tokens to images: the VQ decoder, for finished images and for previews."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from .backends import Backend
from .backends.kernels import Kernels
from .bundle import Manifest
from .engines import Engines
from .errors import CascadeError
from .images import to_images

_UNDRAWN = (232, 232, 232)  # light grey


class Decoder:
    """Decodes one image at a time; its buffers are made once. With `kernels` the host need not wait for the pixels."""

    def __init__(
        self, backend: Backend, engines: Engines, manifest: Manifest, kernels: Kernels | None = None
    ) -> None:
        self._kernels = kernels
        self._engines, self._plan, self._pixels = engines, manifest.model.plan, manifest.model.pixels
        self._rounding = manifest.model.rounding
        plan, side = self._plan, self._pixels
        self._codes = backend.buffer((1, plan.image_tokens), "int64", "in")
        self._image = backend.buffer((1, 3, plan.rows * side, plan.columns * side), "float32", "out")
        self._call = engines["decode"].bind({"codes": self._codes}, {"image": self._image})

    @property
    def is_late(self) -> bool:
        """Whether the device decodes while the host goes on."""
        return self._kernels is not None

    def start(self, codes: np.ndarray) -> Callable[[], Image.Image]:
        """Begins with codes int [rows * columns]; what is returned waits for the image. That raises CascadeError when
        its pixels are not finite."""
        self._codes.host[0] = codes
        if self._kernels is None:
            self._call.run(fetch=("image",))
            return lambda: _image_of(self._image.host, self._rounding)
        self._call.run()
        arrival = self._kernels.bring(self._image)
        return lambda: _image_of(arrival.wait(), self._rounding)

    def image(self, codes: np.ndarray) -> Image.Image:
        """The image of codes int [rows * columns]. Raises CascadeError when its pixels are not finite."""
        return self.start(codes)()

    def preview(self, codes: np.ndarray, drawn: int) -> Image.Image:
        """The image of the first `drawn` codes of [rows * columns]; what is not drawn yet is grey."""
        plan, side = self._plan, self._pixels
        if drawn == 0:
            return Image.new("RGB", (plan.columns * side, plan.rows * side), _UNDRAWN)
        known = codes.copy()
        known[drawn:] = codes[drawn - 1]  # something that the decoder knows: it looks around each token
        image = self.image(known)
        row, column = divmod(drawn, plan.columns)
        if row < plan.rows:
            image.paste(_UNDRAWN, (column * side, row * side, plan.columns * side, (row + 1) * side))
            image.paste(_UNDRAWN, (0, (row + 1) * side, plan.columns * side, plan.rows * side))
        return image


def _image_of(pixels: np.ndarray, rounding: str) -> Image.Image:
    """float32 [1, 3, H, W]."""
    if not np.isfinite(pixels).all():
        raise CascadeError(
            "this image was drawn, but its pixels left the range of the decoder's numbers: build the bundle with "
            "--precision bf16 or fp32."
        )
    return to_images(pixels, rounding)[0]
