"""The published models of Chameleon's family: sizes and sampling defaults. Importable without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

from ...published import HubFiles, Published

CODES = 8192
# Anole's repository has Meta's layout, with Chameleon's VQGAN and tokenizer in it: both models draw with them.
_ANOLE = "GAIR/Anole-7b-v0.1"
_DRAFTER = "*.json", "*.bin", "*.safetensors"


@dataclass(frozen=True)
class Preset:
    """One published model. `published` says where its files lie on the hub."""

    name: str
    grid: int
    guidance_scale: float
    temperature: float
    top_k: int
    published: Published
    dim: int = 4096
    n_layer: int = 32
    n_head: int = 32
    head_dim: int = 128
    ffn_dim: int = 11008
    vocab_size: int = 65536
    vq_ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)

    @property
    def image_size(self) -> int:
        """Pixels of a side."""
        return self.grid * 2 ** (len(self.vq_ch_mult) - 1)

    @property
    def parameters(self) -> int:
        """Weights of the whole transformer, norms of heads counted once; a bundle has a head of 8,192 codes alone."""
        inner = self.n_head * self.head_dim
        layer = 4 * self.dim * inner + 3 * self.dim * self.ffn_dim + 2 * self.dim + 4 * self.head_dim
        return self.n_layer * layer + 2 * self.vocab_size * self.dim + self.dim


# Guidance 3, temperature 1 and top-k 2000 are the defaults of LANTERN's command line, which draws Anole with them; 3 is
# Anole's own guidance, too, beside temperature 0.7 and top-p 0.9.
ANOLE_7B = Preset("anole-7b", 32, 3.0, 1.0, 2000, Published({
    "checkpoint": HubFiles(_ANOLE, patterns=("models/7b/*", "tokenizer/*")),
    "drafter": HubFiles("jadohu/anole_drafter", patterns=_DRAFTER),
}))  # fmt: skip
# Those of Lumina-mGPT's README.
LUMINA_7B_768 = Preset("lumina-mgpt-7b-768", 48, 4.0, 1.0, 2000, Published({
    "checkpoint": HubFiles("Alpha-VLLM/Lumina-mGPT-7B-768", patterns=("*.json", "*.safetensors")),
    "vq": HubFiles(_ANOLE, "tokenizer/vqgan.ckpt"),
    "drafter": HubFiles("sihwanpark/LANTERN-Lumina-mGPT-7B-768", patterns=("config.json", "*.safetensors")),
}))  # fmt: skip
PRESETS: dict[str, Preset] = {preset.name: preset for preset in (ANOLE_7B, LUMINA_7B_768)}
