"""The published models: sizes, sampling defaults, what to download. Importable without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

from ...published import HubFiles, Published

GUIDANCE = 5.0  # of generation_inference.py, which cuts neither by top-k nor by top-p, at temperature 1
_FILES = "*.json", "pytorch_model*.bin", "*.safetensors"


@dataclass(frozen=True)
class Preset:
    """One Janus-Pro; `published` says where its files lie on the hub."""

    name: str
    dim: int
    n_layer: int
    n_head: int
    ffn_dim: int
    published: Published
    vocab_size: int = 102400
    codes: int = 16384
    code_dim: int = 8
    grid: int = 24
    guidance_scale: float = GUIDANCE
    vq_ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)

    @property
    def top_k(self) -> int:
        """No cut."""
        return self.codes

    @property
    def image_size(self) -> int:
        return self.grid * 2 ** (len(self.vq_ch_mult) - 1)

    @property
    def parameters(self) -> int:
        """Weights of the image path: the transformer, the table of text, and the two MLPs of codes."""
        d = self.dim
        layer = 4 * d * d + 3 * d * self.ffn_dim + 2 * d
        enter = self.codes * self.code_dim + (self.code_dim + 1) * d + (d + 1) * d
        leave = (d + 1) * d + (d + 1) * self.codes
        return self.n_layer * layer + d + self.vocab_size * d + enter + leave


def _model(size: str, dim: int, n_layer: int, n_head: int, ffn_dim: int) -> Preset:
    files = {"checkpoint": HubFiles(f"deepseek-ai/Janus-Pro-{size.upper()}", patterns=_FILES)}
    return Preset(f"janus-pro-{size}", dim, n_layer, n_head, ffn_dim, Published(files))


PRESETS: dict[str, Preset] = {
    preset.name: preset for preset in (_model("1b", 2048, 24, 16, 5632), _model("7b", 4096, 30, 32, 11008))
}
