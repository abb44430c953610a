"""Settings of the demo recipe: one for two CPU cores, one for a GPU, one for the tests."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ...export.families.llamagen.model import LlamaGenConfig, llamagen_ffn_dim
from ...export.models.t5 import T5Config
from ...export.models.vq import VQConfig


@dataclass(frozen=True)
class Augment:
    """How far views go: shift and scale as shares of the side, shares of views in colour and mirrored."""

    shift: float = 0.06
    scale: float = 0.08
    coloured: float = 0.5
    mirrored: float = 0.3


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what is trained. Steps are optimiser steps, sizes are images."""

    styles: tuple[str, ...]
    groups: tuple[int, ...]  # emojibase groups: 0 smileys, 3 animals, 4 food, 5 travel, 6 activities, 7 objects
    target_groups: tuple[int, ...]  # groups that the target learns to draw; the tokenizer sees all
    image_size: int
    grid: int
    codebook_size: int
    vq_ch: int
    vq_ch_mult: tuple[int, ...]
    vq_z_channels: int
    vq_steps: int
    vq_batch: int
    dim: int
    n_layer: int
    n_head: int
    prefix_len: int
    text_dim: int
    text_layers: int
    text_steps: int  # of the text encoder alone, before the target's
    target_steps: int
    target_batch: int
    target_lr: float
    drafter_ffn: int  # width of the drafter's feed-forward part
    drafter_samples: int
    drafter_steps: int
    drafter_batch: int
    drafter_passes: tuple[float, ...]  # weights of the drafter's losses at depth 1, 2, ... below the target's states
    judge_groups: tuple[int, ...]  # groups whose concepts the judge learns: the target's, or more
    judge_steps: int
    judge_batch: int
    guidance_scale: float = 3.0  # of the drafter's samples, and the default of what is shipped
    temperature: float = 1.0  # the same
    top_k: int = 1000
    sample_batch: int = 64  # images drawn together for the drafter
    drafter_lr: float = 2e-3
    rules: tuple[tuple[str, str], ...] = ()  # operating points that measurement found: what a rule's bare name means
    caption_dropout: float = 0.1
    augment: Augment = field(default_factory=Augment)  # of the target's images; the tokenizer always sees the default
    rate: float = 0.005  # cosine that a rarer code must gain for each nat it costs (encode.py)
    grain: float = 0.01  # temperature, in cosine, of the draw among codes that show much the same (encode.py)
    grain_start: float = 0.7  # share of the target's steps before grain: shapes are learned from steady codes
    hidden: float = 0.8  # share of images with hidden codes while the target is trained; falls to 0 at the end
    device: str = "cpu"
    bf16: bool = False  # transformers in bfloat16 where autocast allows, weights in float32
    compile: bool = False  # torch.compile the target: with bf16 a quarter faster on a CPU, after a minute

    def vq(self) -> VQConfig:
        return VQConfig(
            codebook_size=self.codebook_size, codebook_dim=8, z_channels=self.vq_z_channels, ch=self.vq_ch,
            ch_mult=self.vq_ch_mult, num_res_blocks=1,
        )  # fmt: skip

    def target(self) -> LlamaGenConfig:
        return LlamaGenConfig(
            dim=self.dim, n_layer=self.n_layer, n_head=self.n_head, ffn_dim=llamagen_ffn_dim(self.dim),
            vocab_size=self.codebook_size, grid=self.grid, prefix_len=self.prefix_len, condition="text",
            caption_dim=self.text_dim,
        )  # fmt: skip

    def text(self, vocab_size: int) -> T5Config:
        heads = max(1, self.text_dim // 32)
        return T5Config(
            vocab_size=vocab_size, d_model=self.text_dim, d_kv=32, d_ff=2 * self.text_dim,
            num_layers=self.text_layers, num_heads=heads,
        )  # fmt: skip


RECIPES: dict[str, Recipe] = {
    "cpu": Recipe(
        styles=("noto", "fluent"), groups=(0, 3, 4, 5, 6, 7), target_groups=(4,),
        image_size=64, grid=16, codebook_size=1024,
        vq_ch=32, vq_ch_mult=(1, 1, 2), vq_z_channels=64, vq_steps=3600, vq_batch=32,
        dim=192, n_layer=12, n_head=6, prefix_len=20, text_dim=128, text_layers=2, text_steps=800,
        target_steps=2800, target_batch=8, target_lr=1.5e-3,
        drafter_ffn=1024, drafter_samples=4096, drafter_steps=2400, drafter_batch=16, drafter_passes=(1.0, 0.6),
        judge_groups=(3, 4), judge_steps=500, judge_batch=64, bf16=True, compile=True,
        guidance_scale=2.0, temperature=0.8,  # of 12 settings tried, the best concept accuracy and Fréchet distance
        rules=(("cascade", "cascade:children=coupled"), ("swap", "swap:tau_draw=0.68,balance=0.2")),
        # Two CPU hours are too short to learn what captions mean under strong augmentation: after 700 steps with it,
        # the loss did not depend on the caption's words at all.
        augment=Augment(shift=0.0, scale=0.0, coloured=0.35, mirrored=0.25),
    ),
    "gpu": Recipe(
        styles=("noto", "fluent", "twemoji"), groups=(0, 1, 3, 4, 5, 6, 7, 8, 9),
        target_groups=(0, 1, 3, 4, 5, 6, 7, 8, 9), image_size=64, grid=16, codebook_size=2048,
        vq_ch=64, vq_ch_mult=(1, 2, 2), vq_z_channels=128, vq_steps=12000, vq_batch=128,
        dim=384, n_layer=16, n_head=6, prefix_len=24, text_dim=192, text_layers=3, text_steps=4000,
        target_steps=12000, target_batch=128, target_lr=1e-3,
        drafter_ffn=1536, drafter_samples=32768, drafter_steps=8000, drafter_batch=128,
        drafter_passes=(1.0, 0.8, 0.64), sample_batch=2048,
        judge_groups=(0, 1, 3, 4, 5, 6, 7, 8, 9), judge_steps=6000, judge_batch=256, device="cuda", bf16=True,
    ),
    "tiny": Recipe(
        styles=("noto", "fluent"), groups=(3, 4), target_groups=(3, 4), image_size=32, grid=8, codebook_size=64,
        vq_ch=32, vq_ch_mult=(1, 1, 1), vq_z_channels=32, vq_steps=4, vq_batch=4,
        dim=64, n_layer=2, n_head=2, prefix_len=8, text_dim=32, text_layers=1, text_steps=2,
        target_steps=3, target_batch=4, target_lr=1e-3,
        drafter_ffn=192, drafter_samples=4, drafter_steps=2, drafter_batch=2, drafter_passes=(1.0, 0.6),
        judge_groups=(3, 4), judge_steps=4, judge_batch=8, top_k=64, bf16=True,
        rules=(("cascade", "cascade:children=coupled"),),
    ),
}  # fmt: skip

# Drafters for the demo's target, for --keep. One as weak as LlamaGen's public ones: minutes, after the sampling.
RECIPES["weak-drafter"] = replace(RECIPES["cpu"], drafter_samples=2048, drafter_steps=100, drafter_passes=(1.0,))
# One that saw far more of its images: minutes on an H200, 15 GB of samples. And more of that, for --drafter.
RECIPES["gpu-drafter"] = replace(
    RECIPES["cpu"], device="cuda", sample_batch=2048, drafter_samples=69632, drafter_steps=15200, drafter_batch=128,
    drafter_passes=(1.0, 0.8, 0.64),
)  # fmt: skip
RECIPES["gpu-drafter-more"] = replace(
    RECIPES["gpu-drafter"], drafter_samples=49152, drafter_steps=31900, drafter_lr=1.5e-3
)
