"""What a family says of one opened model, so that the graphs need to know no family.

Every target is a stack of pre-norm layers with rotary attention and SwiGLU, a readout and a conditioner. Graphs read
weights under canonical names; each family maps its checkpoints to them:

| tensor | shape | |
|---|---|---|
| embedding.weight | [tokens, D] | of codes and syntax tokens; a drafter has its own |
| layers.i.attention_norm.weight | [D] | where `input_norm` |
| layers.i.attention.qkv.weight, .bias | [(H + 2 Hkv) * Dh, D], [...] | rows of all queries, keys, then values |
| layers.i.attention.q_norm.weight, .bias | [H or 1, Dh] | where `qk_norm_eps`; one row serves all heads |
| layers.i.attention.k_norm.weight, .bias | [Hkv or 1, Dh] | the same |
| layers.i.attention.o.weight, .bias | [D, H * Dh], [D] | |
| layers.i.ffn_norm.weight | [D] | |
| layers.i.feed_forward.gate.weight, .up.weight | [F, D] | |
| layers.i.feed_forward.down.weight | [D, F] | |
| norm.weight | [D] | a target's final norm |
| readout.weight, .bias | [V, F], [V] | the linear map from features to codes |
| condition.embedding.weight | [vocabulary, D] | of a prompt's token ids, where the model reads those |
| fc.weight, .bias | [D, 2 D], [D] | a drafter's: of (embedding of the next token, hidden state) |

What a readout's features or a conditioner read has names of the family's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import onnx_ir as ir
from torch import Tensor

from ..runtime.bundle import TOKENS, ConditionInfo
from ..runtime.errors import CascadeError
from ..runtime.plan import TokenPlan
from .checkpoints.source import Shape, TensorSource

if TYPE_CHECKING:
    from .graphs.builder import GraphBuilder

ADJACENT, HALVES = "adjacent", "halves"
QKV, OUT = "attention.qkv", "attention.o"


@dataclass(frozen=True)
class StackSpec:
    """The layers of a transformer, as far as they differ between models.

    `rotary(rows)` gives the table of so many positions, float32 [rows, Dh/2, 2] of (cos, sin), whatever it counts
    (1-D, 2-D, sections of several counts); pair p of a head's channels is (2p, 2p + 1) when `pairing` is "adjacent"
    and (p, p + Dh/2) when it is "halves". `qk_norm_eps` is that of a LayerNorm over each head's queries and keys
    before they are rotated, None without one. `biases` names the linear maps that have one: "attention.qkv",
    "attention.o". Raises CascadeError for what makes no stack.
    """

    dim: int
    n_layer: int
    n_head: int
    n_kv_head: int
    head_dim: int
    ffn_dim: int
    eps: float
    rotary: Callable[[int], np.ndarray]
    pairing: str
    qk_norm_eps: float | None = None
    biases: frozenset[str] = frozenset()
    input_norm: bool = True

    def __post_init__(self) -> None:
        if self.n_head % self.n_kv_head or self.head_dim % 2:
            raise CascadeError(
                f"{self.n_kv_head} key heads do not divide {self.n_head} query heads, or their width {self.head_dim} "
                "is odd: correct the config."
            )
        if self.pairing not in (ADJACENT, HALVES) or not self.biases <= {QKV, OUT}:
            raise CascadeError(f"the stack's pairing {self.pairing!r} or biases {sorted(self.biases)} are unknown.")

    @property
    def qkv_rows(self) -> int:
        return (self.n_head + 2 * self.n_kv_head) * self.head_dim

    def shapes(self, weights: TensorSource) -> dict[str, Shape]:
        """Every tensor of the layers; norms of queries and keys have one row or one for each head in `weights`."""
        d, f, inner = self.dim, self.ffn_dim, self.n_head * self.head_dim
        shapes: dict[str, Shape] = {}
        for name in (f"layers.{i}" for i in range(self.n_layer)):
            shapes |= {
                f"{name}.{QKV}.weight": (self.qkv_rows, d),
                f"{name}.{OUT}.weight": (d, inner),
                f"{name}.ffn_norm.weight": (d,),
                f"{name}.feed_forward.gate.weight": (f, d),
                f"{name}.feed_forward.up.weight": (f, d),
                f"{name}.feed_forward.down.weight": (d, f),
            }
            rows = {QKV: self.qkv_rows, OUT: d}
            shapes |= {f"{name}.{part}.bias": (rows[part],) for part in self.biases}
            if self.input_norm:
                shapes[f"{name}.attention_norm.weight"] = (d,)
            if self.qk_norm_eps is not None:
                for part, heads in (("q", self.n_head), ("k", self.n_kv_head)):
                    for kind in ("weight", "bias"):
                        norm = f"{name}.attention.{part}_norm.{kind}"
                        shared = norm in weights and weights.shape(norm)[0] == 1
                        shapes[norm] = (1 if shared else heads, self.head_dim)
        return shapes


def identity(_: GraphBuilder, __: TensorSource, hidden: ir.Value) -> ir.Value:
    """The features of a model whose head reads the hidden states themselves."""
    return hidden


@dataclass(frozen=True)
class Readout:
    """From hidden states [R, N, D] to logits: `features` builds [R, N, width], then one linear map gives V of them.

    Guidance mixes the rows of an image between the two, so what is not linear belongs to `features`, which gets the
    builder, the canonical weights and the hidden states.
    """

    width: int
    features: Callable[[GraphBuilder, TensorSource, ir.Value], ir.Value] = identity
    bias: bool = False


@dataclass(frozen=True)
class Conditioner:
    """How a request becomes prefix rows: `build` gets the builder, the canonical weights, the request's input
    (features [R, T, C] or class ids int64 [R], as `info.kind` says) and `uncond` bool [R]; it gives [R, T, D].

    None where the model reads token ids: their rows of `condition.embedding.weight` are the prefix.
    """

    info: ConditionInfo
    build: Callable[[GraphBuilder, TensorSource, ir.Value, ir.Value], ir.Value] | None = None

    def __post_init__(self) -> None:
        if (self.build is None) != (self.info.kind == TOKENS):
            raise CascadeError(f"a conditioner of {self.info.kind} is built by the family, one of token ids is not.")


class TargetReference(Protocol):
    """The model in PyTorch, float32, written without the graphs' builders: what parity compares with."""

    def prefix(self, given: Tensor, uncond: Tensor) -> Tensor:
        """Prefix embeddings [R, T, D] of features [R, T, C], class ids [R] or token ids [R, T] (which are those of
        both kinds of rows); uncond bool [R]."""
        ...

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings [..., D] of token ids int64 [...]."""
        ...

    def hidden(self, x: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
        """States after the final norm [R, N, D] of embeddings x; positions int64 [R, N], visible bool [R, 1, N, N]."""
        ...

    def features(self, hidden: Tensor) -> Tensor:
        """What the readout's linear map reads, [..., F]."""
        ...

    def logits(self, features: Tensor) -> Tensor:
        """float32 [..., V]."""
        ...


class DrafterReference(Protocol):
    """The drafter in PyTorch, float32."""

    def states(self, hidden: Tensor, tokens: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
        """Predicted states [R, n, D] of the target's states [R, n, D] and the tokens int64 [R, n] that follow them;
        positions int64 [R, n], visible bool [R, 1, n, n]."""
        ...


@dataclass(frozen=True)
class TargetModel:
    """One opened target: `checkpoint` is what was given, `weights` the same under canonical names.

    `reference` makes the PyTorch model of a source with the checkpoint's own names; it loads weights as it goes.
    """

    family: str
    variant: str
    checkpoint: TensorSource
    weights: TensorSource
    stack: StackSpec
    readout: Readout
    conditioner: Conditioner
    plan: TokenPlan
    reference: Callable[[TensorSource], TargetReference]

    @property
    def prefix_len(self) -> int:
        return self.conditioner.info.length

    def shapes(self) -> dict[str, Shape]:
        """Every canonical tensor that any family's graphs read."""
        shapes = self.stack.shapes(self.weights) | {
            "embedding.weight": (self.plan.tokens, self.stack.dim),
            "norm.weight": (self.stack.dim,),
            "readout.weight": (self.plan.codes, self.readout.width),
        }
        if self.conditioner.info.kind == TOKENS:
            shapes["condition.embedding.weight"] = (self.conditioner.info.vocabulary, self.stack.dim)
        return shapes | ({"readout.bias": (self.plan.codes,)} if self.readout.bias else {})


@dataclass(frozen=True)
class DrafterModel:
    """One opened drafter of the EAGLE kind, its stack a single layer; the fields are those of `TargetModel`.

    `sees_padding`: it attends to the padded slots of the prefix. `fc_bias`: its first linear map has a bias.
    `prompt_ids`: ids of prompts that its table has behind the sequence's tokens; 0 where it does not read them.
    """

    kind: str
    checkpoint: TensorSource
    weights: TensorSource
    stack: StackSpec
    sees_padding: bool
    fc_bias: bool
    reference: Callable[[TensorSource], DrafterReference]
    prompt_ids: int = 0

    def shapes(self, plan: TokenPlan) -> dict[str, Shape]:
        """Every canonical tensor of a drafter for sequences of `plan`."""
        dim = self.stack.dim
        shapes = self.stack.shapes(self.weights) | {
            "embedding.weight": (plan.tokens + self.prompt_ids, dim),
            "fc.weight": (dim, 2 * dim),
        }
        return shapes | ({"fc.bias": (dim,)} if self.fc_bias else {})
