"""Meta's own layout of Chameleon under the names of transformers' checkpoints."""

from __future__ import annotations

import math
import re
from itertools import accumulate

import torch

from ....runtime.errors import CascadeError
from ...checkpoints.reading import spelt
from ...checkpoints.source import Derived, RenamedSource, TensorSource

_TOP = {
    "tok_embeddings.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}  # fmt: skip
_LAYER = {
    "attention.wq.weight": "self_attn.q_proj.weight", "attention.wk.weight": "self_attn.k_proj.weight",
    "attention.wv.weight": "self_attn.v_proj.weight", "attention.wo.weight": "self_attn.o_proj.weight",
    "feed_forward.w1.weight": "mlp.gate_proj.weight", "feed_forward.w3.weight": "mlp.up_proj.weight",
    "feed_forward.w2.weight": "mlp.down_proj.weight", "attention_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
} | {
    f"attention.{part}_normalization.{kind}": f"self_attn.{part}_norm.{kind}"
    for part in "qk" for kind in ("weight", "bias")
}  # fmt: skip
_JOINED = {"attention.wqkv.weight": "self_attn.{}_proj.weight", "feed_forward.w13.weight": "mlp.{}_proj.weight"}
_ROTATED = {
    f"self_attn.{part}.{kind}" for part in ("q_proj", "k_proj", "q_norm", "k_norm") for kind in ("weight", "bias")
}


def is_native(source: TensorSource) -> bool:
    """Whether the tensors have Meta's names."""
    return "tok_embeddings.weight" in source


def native_to_hf(source: TensorSource) -> TensorSource:
    """The source under the names of transformers' checkpoints, with the order of its channels.

    Meta rotates adjacent channels of a head, transformers its halves: rows of queries and keys, and their norms, are
    put into that order. Names that Meta's layout does not have stay as they are. Raises CascadeError where a name comes
    up twice, or a joined tensor cannot be split.
    """
    norm = "layers.0.attention.q_normalization.weight"
    head_dim = source.shape(norm)[-1] if norm in source and source.shape(norm) else 0
    tensors: dict[str, Derived] = {}

    def put(name: str, tensor: Derived) -> None:
        if name in tensors:
            raise CascadeError(f"the checkpoint {source.path} holds tensor {spelt(name)} twice: check the file.")
        end = name.split(".", 3)[-1]
        tensors[name] = _halves(tensor, head_dim, "_norm." in end) if end in _ROTATED and head_dim else tensor

    for name in source.names():
        whole = Derived(source.shape(name), lambda name=name: source.load(name))
        match = re.fullmatch(r"layers\.([0-9]+)\.(.+)", name)
        if match is None:
            put(_TOP.get(name, name), whole)
        elif match[2] in _JOINED:
            for part, tensor in _parts(source, name, match[2], head_dim).items():
                put(f"model.layers.{match[1]}.{_JOINED[match[2]].format(part)}", tensor)
        else:
            put(f"model.layers.{match[1]}.{_LAYER[match[2]]}" if match[2] in _LAYER else name, whole)
    return RenamedSource(source.path, tensors, source.notes)


def _parts(source: TensorSource, name: str, end: str, head_dim: int) -> dict[str, Derived]:
    """Queries, keys and values, or gate and up, of a tensor that holds them one below the other."""
    shape = source.shape(name)
    rows = shape[0] if len(shape) == 2 else 0
    if end.startswith("feed_forward"):
        sizes = {"gate": rows // 2, "up": rows // 2}
    else:
        queries = shape[1] if len(shape) == 2 else 0  # as many as the model is wide
        sizes = {"q": queries, "k": (rows - queries) // 2, "v": (rows - queries) // 2}
    if sum(sizes.values()) != rows or min(sizes.values()) <= 0 or (end == "attention.wqkv.weight" and not head_dim):
        raise CascadeError(
            f"tensor {spelt(name)} of {source.path} has the shape {list(shape)}, which cannot be split: it is of "
            "another kind, or incomplete."
        )
    ends = accumulate(sizes.values())
    return {
        part: Derived((size, shape[1]), lambda end=end, size=size: source.load(name)[end - size : end])
        for (part, size), end in zip(sizes.items(), ends, strict=True)
    }


def _halves(tensor: Derived, head_dim: int, is_norm: bool) -> Derived:
    """Rows [H * Dh, D] or norms [Dh], [H, Dh] with each head's even channels first, then its odd ones."""
    shape = tensor.shape or (0,)
    rows = math.prod(shape) if is_norm else shape[0]
    if head_dim % 2 or not rows or rows % head_dim or (is_norm and shape[-1] != head_dim):
        return tensor  # of no such shape, which is found when shapes are checked

    def load() -> torch.Tensor:
        x = tensor.load()
        return x.reshape(rows // head_dim, head_dim // 2, 2, -1).transpose(1, 2).reshape(x.shape)

    return Derived(tensor.shape, load)
