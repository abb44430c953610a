"""The sampler at the end of the target's graph: top-k, top-p, the shared noise, forced tokens, what is not finite."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .builder import FLOAT, INT64, GraphBuilder

# A sum of squares beyond it is an overflow on its way: a float32 norm turns such a row into zeros, which look finite.
_LARGEST = np.float32(1e30)
_NEVER = np.float32(-1e30)  # the race of a token that the sampler does not keep


@dataclass(frozen=True)
class SamplerInputs:
    """top_k int64 [P], top_p [P], noise [P, L, V], depths int64 [P, N], forced int64 [P, L] where a plan has any."""

    top_k: ir.Value
    top_p: ir.Value
    noise: ir.Value
    depths: ir.Value
    forced: ir.Value | None


def sampler_inputs(g: GraphBuilder, codes: int, has_forced: bool) -> SamplerInputs:
    """Declares them."""
    return SamplerInputs(
        g.input("top_k", INT64, ["P"]), g.input("top_p", FLOAT, ["P"]), g.input("noise", FLOAT, ["P", "L", codes]),
        g.input("depths", INT64, ["P", "N"]), g.input("forced", INT64, ["P", "L"]) if has_forced else None,
    )  # fmt: skip


def finite(g: GraphBuilder, residual: ir.Value, states: ir.Value, rows_of_prompt: ir.Value) -> ir.Value:
    """bool [P, N, 1]: whether the residual stream [R, N, D] of all rows of a slot is finite at a node.

    In half precisions the guided states [P, N, F] count too, as the head reads them: mixing and a readout's own
    layers may pass fp16's range where the stream does not. Sums carry NaN and infinity, which no comparison passes.
    """
    squares = g.op("ReduceSumSquare", g.to_float(residual), g.constant([-1]), keepdims=0)  # [R, N]
    of_rows = g.op("Gather", squares, rows_of_prompt, axis=0)  # [P, G, N]
    ones = g.op("Cast", g.op("Equal", rows_of_prompt, rows_of_prompt), to=FLOAT)  # [P, G]
    # A product: on CUDA a sum over an axis in the middle needs cuDNN (readout.py).
    total = g.reshape(g.op("MatMul", g.reshape(ones, [0, 1, -1]), of_rows), [0, -1, 1])  # [P, N, 1]
    if g.dtype != FLOAT:
        read = g.to_float(g.from_float(states))
        total = g.op("Add", total, g.op("ReduceSumSquare", read, g.constant([-1]), keepdims=1))
    return g.op("Less", total, g.constant(_LARGEST))


def draw(
    g: GraphBuilder, codes: int, count: int, top: tuple[ir.Value, ir.Value], fine: ir.Value, inputs: SamplerInputs
) -> tuple[ir.Value, ir.Value]:
    """Twice int64 [P, N]: the token after each node and the one that came second, from the `count` largest logits and
    their ids, `top` [P, N, K] each.

    The token is the argmax of logits + noise over those that the sampler keeps: the first top_k, and of these each
    one before which there is a probability of at most top_p; of equal ones the likelier. The second is the token again
    where it is forced or the only one kept. Both are -1 where `fine` bool [P, N, 1] is False.
    """
    logits, ids = top
    never = g.constant(_NEVER)
    in_k = g.op("Less", g.constant(np.arange(count, dtype=np.int64), "ranks"), g.reshape(inputs.top_k, [-1, 1, 1]))
    first = g.op("Add", logits, g.op("Where", in_k, g.constant(np.float32(0)), never))  # cheaper than Where on a CPU
    before = g.op("CumSum", g.op("Softmax", first, axis=-1), g.constant(np.int64(2)), exclusive=1)  # [P, N, K]
    # Sums of all probabilities may round to more than 1, so 1 is no limit.
    is_limit = g.op("Less", inputs.top_p, g.constant(np.float32(1)))
    limit = g.op("Where", is_limit, inputs.top_p, g.constant(np.float32(2)))
    in_p = g.op("LessOrEqual", before, g.reshape(limit, [-1, 1, 1]))
    race = g.op("Add", first, noise_of(g, codes, count, ids, inputs))
    drawn, second = first_two(g, count, g.op("Where", in_p, race, never), ids)  # [P, N, 1]
    if inputs.forced is not None:
        forced = g.op("Unsqueeze", g.op("GatherElements", inputs.forced, inputs.depths, axis=1), g.constant([2]))
        is_free = g.op("Less", forced, g.constant(np.int64(0)))
        drawn, second = (g.op("Where", is_free, token, forced) for token in (drawn, second))
    drawn, second = (g.op("Where", fine, token, g.constant(np.int64(-1))) for token in (drawn, second))
    return g.op("Squeeze", drawn, g.constant([2])), g.op("Squeeze", second, g.constant([2]))


def first_two(g: GraphBuilder, count: int, race: ir.Value, ids: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Twice int64 [P, N, 1]: the ids [P, N, K] of the largest and the second largest of race [P, N, K]; the largest
    twice where the sampler keeps no other.

    TopK ranks equal ones by their place, as ArgMax does, and for two costs what ArgMax does; a second ArgMax without
    the winner costs a fifth of the whole draw (ONNX Runtime on a CPU).
    """
    if count == 1:
        return ids, ids
    best, at = g.op("TopK", race, g.constant([2]), outputs=2, axis=-1, largest=1, sorted=1)  # [P, N, 2]
    first, second = g.split(g.op("GatherElements", ids, at, axis=2), [1, 1], axis=2)
    is_kept = g.op("Greater", g.split(best, [1, 1], axis=2)[1], g.constant(_NEVER / 2))
    return first, g.op("Where", is_kept, second, first)


def noise_of(g: GraphBuilder, codes: int, count: int, ids: ir.Value, inputs: SamplerInputs) -> ir.Value:
    """float32 [P, N, K]: the noise of each token id [P, N, K] at its node's depth.

    Out of the rows laid end to end: gathering whole rows [P, N, V] first costs twice as much from 16,384 codes on,
    and gathering by pairs of indices costs four to eight times as much (ONNX Runtime on a CPU).
    """
    start = g.op("Unsqueeze", g.op("Mul", inputs.depths, g.constant(np.int64(codes))), g.constant([2]))
    flat = g.reshape(g.op("Add", ids, start), [0, -1])  # [P, N * K]
    noise = g.op("GatherElements", g.reshape(inputs.noise, [0, -1]), flat, axis=1)
    return g.reshape(noise, [0, -1, count])
