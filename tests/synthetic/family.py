"""The synthetic model as a family from outside the package: registered by a call, built like any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from safetensors.torch import save_file

from cascade_trt.export.build import BuildOptions, build_bundle
from cascade_trt.export.checkpoints.source import (
    Derived,
    RenamedSource,
    TensorSource,
    check_shapes,
    open_source,
    renamed,
)
from cascade_trt.export.checkpoints.vq import open_vq
from cascade_trt.export.families import Family, register
from cascade_trt.export.graphs.builder import GraphBuilder, as_numpy
from cascade_trt.export.model import HALVES, OUT, QKV, Conditioner, DrafterModel, Readout, StackSpec, TargetModel
from cascade_trt.export.models.vq import VQConfig, VQModel
from cascade_trt.export.open import open_parts
from cascade_trt.export.parts import Parts
from cascade_trt.export.request import BuildRequest
from cascade_trt.runtime.bundle import FEATURES, OWN, ConditionInfo, Manifest, SamplingDefaults
from cascade_trt.runtime.plan import TokenPlan
from cascade_trt.runtime.tree import get_tree

from . import model as m

NAME = "synthetic"
PLAN = TokenPlan(m.ROWS, m.COLUMNS, m.CODES, m.ROW_END, [m.BEGIN])
CONDITION = ConditionInfo(FEATURES, m.PREFIX, width=m.CAPTION, uncond_length=m.UNCOND, positions=OWN)
SAMPLING = SamplingDefaults(2.5, 1.0, m.CODES, 1.0)


def stack(layers: int, o_bias: bool) -> StackSpec:
    s = m.SIZES
    return StackSpec(
        dim=s.dim, n_layer=layers, n_head=s.heads, n_kv_head=s.kv_heads, head_dim=s.head_dim, ffn_dim=s.ffn,
        eps=s.eps, rotary=lambda rows: m.rotary(torch.arange(rows)).float().numpy(), pairing=HALVES,
        qk_norm_eps=s.norm_eps, biases=frozenset({QKV, OUT} if o_bias else {QKV}),
    )  # fmt: skip


def layer_names(ours: str, theirs: str, source: TensorSource) -> dict[str, Derived]:
    """The canonical tensors of one layer."""
    names = {f"{ours}.attention_norm.weight": f"{theirs}.norm_in.weight", f"{ours}.ffn_norm.weight":
             f"{theirs}.norm_mid.weight", f"{ours}.attention.o.weight": f"{theirs}.attn.o.weight"}  # fmt: skip
    names |= {f"{ours}.feed_forward.{p}.weight": f"{theirs}.mlp.{p}.weight" for p in ("gate", "up", "down")}
    names |= {f"{ours}.attention.{p}_norm.{kind}": f"{theirs}.attn.{p}_norm.{kind}"
              for p in "qk" for kind in ("weight", "bias")}  # fmt: skip
    if f"{theirs}.attn.o.bias" in source:
        names[f"{ours}.attention.o.bias"] = f"{theirs}.attn.o.bias"
    tensors = renamed(source, names)
    for kind in ("weight", "bias"):
        tensors[f"{ours}.{QKV}.{kind}"] = joined(source, [f"{theirs}.attn.{p}.{kind}" for p in "qkv"])
    return tensors


def joined(source: TensorSource, names: list[str]) -> Derived:
    """Tensors one below the other."""
    rows = sum(source.shape(name)[0] for name in names)
    return Derived((rows, *source.shape(names[0])[1:]), lambda: torch.cat([source.load(name) for name in names]))


def caption_prefix(g: GraphBuilder, weights: TensorSource, features: ir.Value, uncond: ir.Value) -> ir.Value:
    """[R, T, D]: a linear map; the unconditional prefix in the last slots of its rows."""

    def null() -> np.ndarray:
        rows = as_numpy(weights.load("condition.null"))
        return np.pad(rows, ((m.PREFIX - len(rows), 0), (0, 0)))[None]

    prefix = g.linear(features, "condition.caption", lambda: as_numpy(weights.load("condition.caption.weight")))
    bias = g.weight("condition.caption.bias", lambda: as_numpy(weights.load("condition.caption.bias")))
    prefix = g.op("Add", prefix, bias)
    return g.op("Where", g.reshape(uncond, [-1, 1, 1]), g.weight("condition.null", null), prefix)


def mlp_features(g: GraphBuilder, weights: TensorSource, hidden: ir.Value) -> ir.Value:
    """gelu(W h + b) [R, N, F]."""
    h = g.linear(hidden, "target.readout.mlp", lambda: as_numpy(weights.load("readout.mlp.weight")))
    bias = g.weight("target.readout.mlp.bias", lambda: as_numpy(weights.load("readout.mlp.bias")))
    return g.op("Gelu", g.op("Add", h, bias))


def reference(kind: Callable[[m.Tensors], m.Target | m.Drafter]) -> Callable[[TensorSource], m.Target | m.Drafter]:
    return lambda source: kind({name: source.load(name).float() for name in source.names()})


def target_model(source: TensorSource) -> TargetModel:
    names = {"norm": "norm_out", "readout": "head.codes", "readout.mlp": "head.mlp", "condition.caption": "caption"}
    tensors = renamed(source, {f"{ours}.weight": f"{theirs}.weight" for ours, theirs in names.items()})
    biased = [ours for ours in names if ours != "norm"]
    tensors |= renamed(source, {f"{ours}.bias": f"{names[ours]}.bias" for ours in biased} | {"condition.null": "null"})
    tensors["embedding.weight"] = joined(source, ["codes.weight", "syntax.weight"])
    for i in range(m.SIZES.layers):
        tensors |= layer_names(f"layers.{i}", f"blocks.{i}", source)
    return TargetModel(
        family=NAME, variant="tiny", checkpoint=source, weights=RenamedSource(source.path, tensors),
        stack=stack(m.SIZES.layers, o_bias=False), readout=Readout(m.SIZES.features, mlp_features, bias=True),
        conditioner=Conditioner(CONDITION, caption_prefix), plan=PLAN, reference=reference(m.Target),  # type: ignore[arg-type]
    )  # fmt: skip


def drafter_model(source: TensorSource) -> DrafterModel:
    tensors = renamed(source, {"embedding.weight": "tokens.weight", "fc.weight": "join.weight", "fc.bias": "join.bias"})
    tensors |= layer_names("layers.0", "block", source)
    return DrafterModel(
        kind="eagle-1", checkpoint=source, weights=RenamedSource(source.path, tensors), stack=stack(1, o_bias=True),
        sees_padding=False, fc_bias=True, reference=reference(m.Drafter),  # type: ignore[arg-type]
    )  # fmt: skip


def open_checkpoints(request: BuildRequest) -> tuple[Parts, SamplingDefaults]:
    assert request.checkpoint is not None and request.vq is not None and request.drafter is not None
    source, drafter = open_source(request.checkpoint, "checkpoint"), open_source(request.drafter, "drafter")
    check_shapes(source, m.target_shapes(), "checkpoint")
    check_shapes(drafter, m.drafter_shapes(), "drafter")
    vq, vq_config = open_vq(request.vq, {})
    return Parts(target_model(source), vq, vq_config, drafter=drafter_model(drafter)), SAMPLING


FAMILY = Family(NAME, open_checkpoints)


def save_checkpoints(folder: Path, seed: int = 0) -> BuildRequest:
    """Random checkpoints in `folder`, and the request that opens them."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(m.random_tensors(m.target_shapes(), seed), folder / "target.safetensors")
    save_file(m.random_tensors(m.drafter_shapes(), seed + 1), folder / "drafter.safetensors")
    torch.manual_seed(seed)
    vq = VQModel(VQConfig(m.CODES, 8, 32, 32, (1, 1), 1), with_encoder=False)
    torch.save({"model": vq.state_dict()}, folder / "vq.pt")
    return BuildRequest(
        NAME, checkpoint=folder / "target.safetensors", vq=folder / "vq.pt", drafter=folder / "drafter.safetensors"
    )


def build_synthetic(
    folder: Path, trees: tuple[str, ...] = ("small_9",), precision: str = "fp32", batch: int = 2, seed: int = 0
) -> tuple[Path, Manifest]:
    """A bundle of random weights in `folder`, built as `cascade-trt build synthetic` would; its path and manifest."""
    register(FAMILY)
    parts, sampling = open_parts(save_checkpoints(folder / "checkpoints", seed))
    options = BuildOptions(
        folder / "bundle", tuple(get_tree(name) for name in trees), sampling, batch=batch, precision=precision
    )
    return options.out, build_bundle(parts, options, lambda *_: None)
