"""The `decode` graph: image tokens to pixels, the VQ tokenizer's decoder.

| input | shape | what |
|---|---|---|
| codes | int64 [P, rows * columns] | codes in raster order |

| output | shape | what |
|---|---|---|
| image | float32 [P, 3, H, W] | nominally in [-1, 1], not clamped |

Convolutions and products follow the precision of the weight file; normalisation with its activation, and
softmax, are in float32. The maps between them are not normalised: whether fp16 holds their range depends on
the checkpoint, so the parity report has to look, and bf16 or fp32 are the safe choices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from ..checkpoints.source import TensorSource
from ..models.vq import VQConfig
from .builder import FLOAT, INT64, GraphBuilder, as_numpy

EPSILON = 1e-6


def build_decode(g: GraphBuilder, source: TensorSource, config: VQConfig, rows: int, columns: int) -> None:
    """Fills `g` with the decoder of `rows` x `columns` codes; names are those of LlamaGen's VQ checkpoint."""
    codes = g.input("codes", INT64, ["P", rows * columns])
    table = g.weight("vq.latents", lambda: latent_table(source, config.normalised))  # [V, Z]
    z = g.op("Transpose", g.op("Gather", table, codes, axis=0), perm=[0, 2, 1])
    x = g.reshape(z, [0, config.z_channels, rows, columns])
    layers = Layers(g, source, config.groups, rows, columns)
    with g.scope("decoder"):
        x = layers.conv(x, "decoder.conv_in")
        with g.scope("mid"):
            x = layers.residual(x, "decoder.mid.0")
            x = layers.attention(x, "decoder.mid.1")
            x = layers.residual(x, "decoder.mid.2")
        for level in range(len(config.ch_mult)):  # level 0 has the lowest resolution, and attention where there is any
            with g.scope(f"levels.{level}"):
                x, layers = decoder_level(layers, x, config, level)
        x = layers.conv(layers.norm(x, "decoder.norm_out", swish=True), "decoder.conv_out")
    g.output("image", g.to_float(x), FLOAT, ["P", 3, layers.height, layers.width])


def latent_table(source: TensorSource, normalised: bool = True) -> np.ndarray:
    """float32 [V, Z]: the latents of each code, from the codebook, L2-normalised or as it is, and post_quant_conv."""
    codebook = source.load("quantize.embedding.weight").double()  # [V, E]
    if normalised:
        codebook = codebook / codebook.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    weight = source.load("post_quant_conv.weight").double().flatten(1)  # [Z, E], a 1x1 convolution
    return as_numpy(codebook @ weight.T + source.load("post_quant_conv.bias").double())


def decoder_level(layers: Layers, x: ir.Value, config: VQConfig, level: int) -> tuple[ir.Value, Layers]:
    """The residual blocks of one resolution, then x2; returns the map and the layers of its new size."""
    name = f"decoder.conv_blocks.{level}"
    for index in range(config.num_res_blocks + 1):
        x = layers.residual(x, f"{name}.res.{index}")
        if level == 0 and config.attention:
            x = layers.attention(x, f"{name}.attn.{index}")
    if level == len(config.ch_mult) - 1:
        return x, layers
    x = layers.double(x)
    return layers.conv(x, f"{name}.upsample.conv"), replace(layers, height=2 * layers.height, width=2 * layers.width)


@dataclass(frozen=True)
class Layers:
    """The decoder's layers on maps [P, C, height, width]; every `name` is a prefix of the checkpoint's keys."""

    g: GraphBuilder
    source: TensorSource
    groups: int
    height: int
    width: int

    def load(self, name: str) -> np.ndarray:
        return as_numpy(self.source.load(name))

    def conv(self, x: ir.Value, name: str) -> ir.Value:
        """A convolution that keeps the map's size."""
        weight = self.g.weight(f"vq.{name}.weight", lambda: self.load(f"{name}.weight"))
        bias = self.g.weight(f"vq.{name}.bias", lambda: self.load(f"{name}.bias"))
        kernel = self.source.shape(f"{name}.weight")[-1]
        return self.g.op("Conv", x, weight, bias, kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4)

    def norm(self, x: ir.Value, name: str, swish: bool = False) -> ir.Value:
        """Group normalisation, optionally swish; in float32 up to the last cast.

        A layer normalisation of [P, groups, C / groups * height * width] with unit scale: ONNX's own GroupNormalization
        takes the variance as E[x^2] - E[x]^2 (0.1 off where the mean is 100 deviations), and InstanceNormalization has
        no CUDA kernel in ONNX Runtime.
        """
        g, channels = self.g, self.source.shape(f"{name}.weight")[0]
        size = channels // self.groups * self.height * self.width
        one = g.weight(f"vq.ones.{size}", lambda: np.ones(size, np.float32), FLOAT)
        groups = g.reshape(g.to_float(x), [0, self.groups, -1])
        unit = g.op("LayerNormalization", groups, one, axis=-1, epsilon=EPSILON)
        unit = g.reshape(unit, [0, channels, self.height, self.width])
        y = g.op("Mul", unit, self.per_channel(f"{name}.weight"))
        y = g.op("Add", y, self.per_channel(f"{name}.bias"))
        return g.from_float(g.op("Mul", y, g.op("Sigmoid", y)) if swish else y)

    def per_channel(self, name: str) -> ir.Value:
        """float32 [C, 1, 1]."""
        return self.g.weight(f"vq.{name}", lambda: self.load(name).reshape(-1, 1, 1), FLOAT)

    def residual(self, x: ir.Value, name: str) -> ir.Value:
        """Two normalised convolutions beside a skip, which is a 1x1 convolution where the width changes."""
        width, width_in = self.source.shape(f"{name}.conv1.weight")[:2]
        h = self.conv(self.norm(x, f"{name}.norm1", swish=True), f"{name}.conv1")
        h = self.conv(self.norm(h, f"{name}.norm2", swish=True), f"{name}.conv2")
        skip = x if width == width_in else self.conv(x, f"{name}.nin_shortcut")
        return self.g.op("Add", skip, h)

    def attention(self, x: ir.Value, name: str) -> ir.Value:
        """Attention of one head over the whole map.

        Plain products: no fused kernel takes a head of 512 channels. The scale is folded into the queries'
        weights, which also keeps the scores in fp16's range.
        """
        g, channels = self.g, self.source.shape(f"{name}.norm.weight")[0]

        def qkv(kind: str) -> np.ndarray:
            q, k, v = (self.load(f"{name}.{part}.{kind}") for part in "qkv")
            return np.concatenate([q * channels**-0.5, k, v])

        h = g.op("Transpose", g.reshape(self.norm(x, f"{name}.norm"), [0, channels, -1]), perm=[0, 2, 1])
        q, k, v = g.split(self.pointwise(h, f"{name}.qkv", qkv), [channels] * 3)
        scores = g.op("MatMul", q, g.op("Transpose", k, perm=[0, 2, 1]))  # [P, HW, HW]
        weights = g.from_float(g.op("Softmax", g.to_float(scores), axis=-1))
        out = f"{name}.proj_out"
        y = self.pointwise(g.op("MatMul", weights, v), out, lambda kind: self.load(f"{out}.{kind}"))
        y = g.reshape(g.op("Transpose", y, perm=[0, 2, 1]), [0, channels, self.height, self.width])
        return g.op("Add", x, y)

    def pointwise(self, x: ir.Value, name: str, load: Callable[[str], np.ndarray]) -> ir.Value:
        """A 1x1 convolution on [P, HW, C]; `load` gives its "weight" [out, in, 1, 1] and its "bias" [out]."""
        y = self.g.linear(x, f"vq.{name}", lambda: load("weight")[..., 0, 0])
        return self.g.op("Add", y, self.g.weight(f"vq.{name}.bias", lambda: load("bias")))

    def double(self, x: ir.Value) -> ir.Value:
        """Nearest-neighbour x2: [P, C, 2 * height, 2 * width]."""
        g = self.g
        scales = g.constant(np.array([1, 1, 2, 2], np.float32), "scales")
        wide = g.dtype == ir.DataType.BFLOAT16  # in which ONNX Runtime has no Resize; float32 copies the same numbers
        y = g.op(
            "Resize", g.to_float(x) if wide else x, None, scales, mode="nearest",
            coordinate_transformation_mode="asymmetric", nearest_mode="floor",
        )  # fmt: skip
        return g.from_float(y) if wide else y
