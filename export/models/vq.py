"""LlamaGen's VQ tokenizer in PyTorch, with the original checkpoint's key names (VQ-16, VQ-8 and small ones).

Source: LlamaGen (arXiv 2406.06525) after VQGAN (arXiv 2012.09841). Chameleon's VQGAN is the same decoder without
attention outside of the middle, on codes that are not normalised. The decoder is what gets exported; the encoder
and the quantiser's training side serve the demo recipe. Levels of the decoder count from the lowest resolution.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class VQConfig:
    """Dimensions of a VQ tokenizer; one downsampling between the levels of ch_mult.

    `attention`: also behind each block of the lowest resolution, not in the middle alone. `normalised`: codes are on
    the unit sphere.
    """

    codebook_size: int = 16384
    codebook_dim: int = 8
    z_channels: int = 256
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    groups: int = 32
    attention: bool = True
    normalised: bool = True

    @property
    def factor(self) -> int:
        """Pixels along the side of one token."""
        return 2 ** (len(self.ch_mult) - 1)


class GroupNorm(nn.GroupNorm):
    """PyTorch's, which also takes groups of one value, as a narrow decoder has on an image of one token: they are 0
    before the shift."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


def _norm(channels: int, groups: int) -> GroupNorm:
    return GroupNorm(groups, channels, eps=1e-6)


def _swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


class ResBlock(nn.Module):
    def __init__(self, channels_in: int, channels: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(channels_in, groups), _norm(channels, groups)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        if channels_in != channels:
            self.nin_shortcut = nn.Conv2d(channels_in, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(_swish(self.norm2(self.conv1(_swish(self.norm1(x))))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """Single-head attention over all positions."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = _norm(channels, groups)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (proj(h).flatten(2).transpose(1, 2) for proj in (self.q, self.k, self.v))  # [P, HW, C]
        y = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return x + self.proj_out(y.transpose(1, 2).reshape(x.shape))


class Resample(nn.Module):
    """Nearest x2 and a convolution, or a strided convolution."""

    def __init__(self, channels: int, up: bool) -> None:
        super().__init__()
        self.up = up
        self.conv = nn.Conv2d(channels, channels, 3, stride=1 if up else 2, padding=1 if up else 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest") if self.up else F.pad(x, (0, 1, 0, 1)))


class Level(nn.Module):
    """The Res blocks of one resolution, with attention after each where asked for."""

    def __init__(self, channels_in: int, channels: int, blocks: int, attention: bool, groups: int) -> None:
        super().__init__()
        self.res = nn.ModuleList(
            ResBlock(channels_in if j == 0 else channels, channels, groups) for j in range(blocks)
        )
        self.attn = nn.ModuleList(AttnBlock(channels, groups) for _ in range(blocks if attention else 0))
        self.upsample: Resample | None = None
        self.downsample: Resample | None = None

    def forward(self, x: Tensor) -> Tensor:
        for j, block in enumerate(self.res):
            x = block(x)
            if len(self.attn):
                x = self.attn[j](x)
        for resample in (self.upsample, self.downsample):
            x = x if resample is None else resample(x)
        return x


def _middle(channels: int, groups: int) -> nn.ModuleList:
    return nn.ModuleList(
        [ResBlock(channels, channels, groups), AttnBlock(channels, groups), ResBlock(channels, channels, groups)]
    )


class VQEncoder(nn.Module):
    """Pixels [P, 3, H, W] -> latents [P, z_channels, H / factor, W / factor]."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        groups, last = config.groups, len(config.ch_mult) - 1
        self.conv_in = nn.Conv2d(3, config.ch, 3, padding=1)
        self.conv_blocks = nn.ModuleList()
        channels = config.ch
        for index, mult in enumerate(config.ch_mult):
            attention = config.attention and index == last
            level = Level(channels, config.ch * mult, config.num_res_blocks, attention, groups)
            channels = config.ch * mult
            if index < last:
                level.downsample = Resample(channels, up=False)
            self.conv_blocks.append(level)
        self.mid = _middle(channels, groups)
        self.norm_out = _norm(channels, groups)
        self.conv_out = nn.Conv2d(channels, config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for block in [*self.conv_blocks, *self.mid]:
            h = block(h)
        return self.conv_out(_swish(self.norm_out(h)))


class VQDecoder(nn.Module):
    """Latents [P, z_channels, h, w] -> pixels [P, 3, h * factor, w * factor], not clamped."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        groups, last = config.groups, len(config.ch_mult) - 1
        channels = config.ch * config.ch_mult[-1]
        self.conv_in = nn.Conv2d(config.z_channels, channels, 3, padding=1)
        self.mid = _middle(channels, groups)
        self.conv_blocks = nn.ModuleList()
        for index, mult in enumerate(reversed(config.ch_mult)):
            attention = config.attention and index == 0
            level = Level(channels, config.ch * mult, config.num_res_blocks + 1, attention, groups)
            channels = config.ch * mult
            if index < last:
                level.upsample = Resample(channels, up=True)
            self.conv_blocks.append(level)
        self.norm_out = _norm(channels, groups)
        self.conv_out = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.conv_in(z)
        for block in [*self.mid, *self.conv_blocks]:
            h = block(h)
        return self.conv_out(_swish(self.norm_out(h)))


class Codebook(nn.Module):
    """Codes on the unit sphere: both the table's rows and the latents are L2-normalised, if `normalised` says so."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.normalised = config.normalised
        self.embedding = nn.Embedding(config.codebook_size, config.codebook_dim)
        nn.init.normal_(self.embedding.weight)

    def lookup(self, ids: Tensor) -> Tensor:
        """Codes [..., codebook_dim] of ids [...]."""
        codes = self.embedding.weight
        return F.embedding(ids, F.normalize(codes, dim=-1) if self.normalised else codes)

    def nearest(self, z: Tensor) -> Tensor:
        """Ids int64 [...] of the codes nearest to z [..., codebook_dim]."""
        codes = F.normalize(self.embedding.weight, dim=-1)
        return (F.normalize(z, dim=-1).flatten(0, -2) @ codes.T).argmax(-1).view(z.shape[:-1])


class VQModel(nn.Module):
    def __init__(self, config: VQConfig, with_encoder: bool = True) -> None:
        super().__init__()
        self.config = config
        if with_encoder:
            self.encoder = VQEncoder(config)
            self.quant_conv = nn.Conv2d(config.z_channels, config.codebook_dim, 1)
        self.quantize = Codebook(config)
        self.post_quant_conv = nn.Conv2d(config.codebook_dim, config.z_channels, 1)
        self.decoder = VQDecoder(config)

    def latents(self, pixels: Tensor) -> Tensor:
        """Unit vectors [P, h, w, codebook_dim] of pixels [P, 3, H, W] before quantisation."""
        return F.normalize(self.quant_conv(self.encoder(pixels)).permute(0, 2, 3, 1), dim=-1)

    def encode(self, pixels: Tensor) -> Tensor:
        """Codes int64 [P, h * w] in raster order."""
        return self.quantize.nearest(self.latents(pixels)).flatten(1)

    def decode_latents(self, z: Tensor) -> Tensor:
        """Pixels [P, 3, H, W] of code vectors [P, h, w, codebook_dim]."""
        return self.decoder(self.post_quant_conv(z.permute(0, 3, 1, 2)))

    def decode_codes(self, ids: Tensor, rows: int | None = None) -> Tensor:
        """Pixels [P, 3, H, W] of codes [P, h * w] in so many rows, by default as many as columns."""
        rows = int(ids.shape[1] ** 0.5) if rows is None else rows
        return self.decode_latents(self.quantize.lookup(ids.view(len(ids), rows, -1)))
