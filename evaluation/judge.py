"""The judge: a small convolutional classifier of what an image shows and in which style.

It is trained on real images alone (for the demo model by `examples/emoji/judge.py`) and knows nothing of the model
that it judges. Its features serve the Fréchet distance, precision and recall. Loading it needs no training code.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..runtime.errors import CascadeError

_BATCH = 64
_SCALE = 16.0  # of the cosines in the heads: what softmax needs to tell a thousand concepts apart

FeatureMaker = Callable[[Tensor], Tensor]  # images [B, 3, H, W] in 0 ... 1 -> features [B, F]


@dataclass(frozen=True)
class JudgeConfig:
    """Labels and dimensions; `backgrounds` are the named colours (RGB) of the images' backgrounds."""

    concepts: tuple[str, ...]
    styles: tuple[str, ...]
    backgrounds: dict[str, tuple[int, int, int]]
    size: int = 64
    widths: tuple[int, ...] = (48, 96, 192)
    features: int = 64


class Judge(nn.Module):
    """Convolutions at falling resolution, one feature vector, and a cosine classifier for each question.

    Features have length sqrt(F): their coordinates are of the order of 1 whatever F is.
    """

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        for before, width in zip((3, *config.widths), config.widths, strict=False):
            layers += [*_convolution(before, width, stride=4 if before == 3 else 2), Residual(width)]
        self.body = nn.Sequential(*layers)
        self.project = nn.Linear(config.widths[-1], config.features)
        self.concept = nn.Linear(config.features, len(config.concepts), bias=False)
        self.style = nn.Linear(config.features, len(config.styles), bias=False)

    def features(self, pixels: Tensor) -> Tensor:
        """float32 [B, F] of images [B, 3, H, W] in 0 ... 1, of any size."""
        size = self.config.size
        if pixels.shape[-2:] != (size, size):
            pixels = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True, align_corners=False)
        h = self.body(pixels * 2 - 1).mean((2, 3))
        return F.normalize(self.project(h), dim=-1) * self.config.features**0.5

    def heads(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the concepts [B, concepts] and the styles [B, styles] of features [B, F]."""
        unit = F.normalize(features, dim=-1)
        first, second = (unit @ F.normalize(head.weight, dim=-1).T for head in (self.concept, self.style))
        return _SCALE * first, _SCALE * second

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        return self.heads(self.features(pixels))


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(*_convolution(width, width, stride=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def _convolution(before: int, width: int, stride: int) -> list[nn.Module]:
    """Convolution, batch norm, activation; strides of 4 see 7 pixels, the others 3."""
    side = 7 if stride == 4 else 3
    return [nn.Conv2d(before, width, side, stride, side // 2, bias=False), nn.BatchNorm2d(width), nn.SiLU()]


def save_judge(judge: Judge, file: Path, notes: dict[str, object]) -> None:
    """Writes `file` (safetensors, float16) and beside it a .json of labels and dimensions, with `notes`."""
    from safetensors.torch import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: x.detach().cpu() for name, x in judge.state_dict().items()}
    save_file({name: (x.half() if x.is_floating_point() else x).contiguous() for name, x in tensors.items()}, file)
    file.with_suffix(".json").write_text(json.dumps({"config": asdict(judge.config), "notes": notes}) + "\n")


def load_judge(file: Path) -> Judge:
    """The judge in `file`, in evaluation mode. Raises CascadeError when it or its .json is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not file.name:  # "." and "/": a name has to be there, which another end can be given
        raise CascadeError(f"there is no judge in {file}: give its .safetensors file with --judge.")
    labels = file.with_suffix(".json")
    for needed in (file, labels):
        if not needed.is_file():
            raise CascadeError(
                f"there is no judge in {needed}: give one with --judge, or train one with "
                "`python -m cascade_trt.examples.emoji judge`."
            )
    try:
        stored = json.loads(labels.read_text())["config"]
        names = {name: tuple(stored[name]) for name in ("concepts", "styles", "widths")}
        colours = {name: (int(rgb[0]), int(rgb[1]), int(rgb[2])) for name, rgb in stored["backgrounds"].items()}
        judge = Judge(JudgeConfig(**(stored | names | {"backgrounds": colours})))
        judge.load_state_dict({name: x.float() if x.is_floating_point() else x for name, x in load_file(file).items()})
    except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise CascadeError(f"{file} and {labels.name} are not one judge ({_first_line(error)}).") from None
    return judge.eval().requires_grad_(False)


def load_features(file: Path) -> FeatureMaker:
    """A TorchScript module that maps images [B, 3, H, W] in 0 ... 1 to features [B, F]: Inception's, CLIP's.

    It runs on the CPU. Raises CascadeError when it is missing or is no TorchScript.
    """
    if not file.is_file():
        raise CascadeError(f"there is no TorchScript module in {file}: save one with torch.jit.script(...).save().")
    try:
        module = torch.jit.load(str(file), map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        raise CascadeError(f"{file} is no TorchScript module ({_first_line(error)}).") from None
    return module


@torch.inference_mode()
def features_of(maker: FeatureMaker, images: Sequence[Image.Image]) -> np.ndarray:
    """float32 [n, F] of PIL images, in batches of images of one size.

    Raises CascadeError when the module fails on them or answers with something else than [B, F].
    """
    blocks: list[np.ndarray] = []
    begin = 0
    while begin < len(images):
        end = begin + 1
        while end < min(begin + _BATCH, len(images)) and images[end].size == images[begin].size:
            end += 1
        try:
            made = maker(to_pixels(images[begin:end]))
        except RuntimeError as error:
            raise CascadeError(f"the feature module fails on these images ({_first_line(error)}).") from None
        if not isinstance(made, Tensor) or made.ndim != 2 or len(made) != end - begin:
            raise CascadeError("the feature module must answer with one row of features for each image.")
        blocks.append(made.float().numpy())
        begin = end
    return np.concatenate(blocks)


def to_pixels(images: Sequence[Image.Image]) -> Tensor:
    """float32 [B, 3, H, W] in 0 ... 1 of PIL images of one size."""
    arrays = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 255


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0].rstrip(".:")
