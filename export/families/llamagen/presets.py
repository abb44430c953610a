"""The published models: sizes, sampling defaults, what to download. Importable without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

from ....runtime.errors import CascadeError
from ....runtime.nearest import meant
from ...published import HubFiles, Published

_CLASS_REPO, _TEXT_REPO = "FoundationVision/LlamaGen", "peizesun/llamagen_t2i"
_DRAFTER = "config.json", "pytorch_model.bin"
_T5 = "config.json", "tokenizer.json", "*.safetensors", "*.safetensors.index.json"


@dataclass(frozen=True)
class Preset:
    """One LlamaGen model. `published` says where its files lie on the hub, None where nobody has published any."""

    name: str
    dim: int
    n_layer: int
    n_head: int
    grid: int
    condition: str
    prefix_len: int
    guidance_scale: float
    top_k: int
    published: Published | None
    vocab_size: int = 16384
    caption_dim: int = 2048
    num_classes: int = 1000
    vq_ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)

    @property
    def ffn_dim(self) -> int:
        """Two thirds of 4 x dim, rounded up to a multiple of 256 (LlamaGen's rule)."""
        return -(-int(8 * self.dim / 3) // 256) * 256

    @property
    def image_size(self) -> int:
        return self.grid * 2 ** (len(self.vq_ch_mult) - 1)

    @property
    def parameters(self) -> int:
        """Weights of the transformer; LlamaGen's count leaves the null caption out."""
        block = 4 * self.dim**2 + 3 * self.dim * self.ffn_dim + 2 * self.dim
        condition = (self.num_classes + 1) * self.dim
        if self.condition == "text":
            condition = self.dim * self.caption_dim + self.dim**2
        return self.n_layer * block + 2 * self.vocab_size * self.dim + self.dim + condition


_SIZES = {  # dim, n_layer, n_head
    "b": (768, 12, 12),
    "l": (1024, 24, 16),
    "xl": (1280, 36, 20),
    "xxl": (1536, 48, 24),
    "3b": (3200, 24, 32),
}


def _class_model(size: str, grid: int) -> Preset:
    dim, layers, heads = _SIZES[size]
    name = f"llamagen-c2i-{size}-{16 * grid}"
    files = {"checkpoint": HubFiles(_CLASS_REPO, f"c2i_{size.upper()}_{16 * grid}.pt"),
             "vq": HubFiles(_CLASS_REPO, "vq_ds16_c2i.pt")}  # fmt: skip
    return Preset(name, dim, layers, heads, grid, "class", 1, 4.0, 2000, Published(files, {"grid": grid}))


def _text_model(name: str, size: str, grid: int, file: str | None) -> Preset:
    dim, layers, heads = _SIZES[size]
    published = None if file is None else Published(
        {
            "checkpoint": HubFiles(_TEXT_REPO, file), "vq": HubFiles(_TEXT_REPO, "vq_ds16_t2i.pt"),
            "drafter": HubFiles(f"jadohu/{'llamagen2' if grid == 32 else 'llamagen'}_drafter", patterns=_DRAFTER),
            "text": HubFiles("google/flan-t5-xl", patterns=_T5),
        },
        {"grid": grid},
    )  # fmt: skip
    return Preset(name, dim, layers, heads, grid, "text", 120, 7.5, 1000, published)


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        *(_class_model(size, grid) for size, grid in (("b", 16), ("l", 16), ("b", 24), ("l", 24), ("xl", 24),
                                                      ("xxl", 24), ("3b", 24))),
        _text_model("llamagen-t2i-xl-stage1", "xl", 16, "t2i_XL_stage1_256.pt"),
        _text_model("llamagen-t2i-xl-stage2", "xl", 32, "t2i_XL_stage2_512.pt"),
        _text_model("llamagen-t2i-b", "b", 16, None),
    )
}  # fmt: skip


def get_preset(name: str) -> Preset:
    """The preset called `name`. Raises CascadeError when there is none."""
    if name not in PRESETS:
        raise CascadeError(f"unknown model {name!r}{meant(name, PRESETS)}: `cascade-trt models` lists the known ones.")
    return PRESETS[name]
