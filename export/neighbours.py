"""The neighbour table of LANTERN: for every token the tokens nearest to it in the VQ codebook."""

from __future__ import annotations

import numpy as np

from .checkpoints.source import TensorSource

FILE = "neighbours.npy"
MOST = 1024  # published settings look at 1,000 at most; the whole table of 16,384 tokens would take 537 MB
_ROWS = 512


def neighbour_table(vq: TensorSource, normalised: bool = True) -> np.ndarray:
    """uint16 or uint32 [V, min(V - 1, 1024)]: the other tokens, nearest first by L2 of the codes as they are decoded,
    normalised or not.

    Ids are the VQ's own; ties go to the smaller id. Source: LANTERN (Jang et al., ICLR 2025).
    """
    codes = vq.load("quantize.embedding.weight").double().numpy()  # [V, d]
    if normalised:
        codes = codes / np.maximum(np.linalg.norm(codes, axis=1, keepdims=True), 1e-12)
    vocab = len(codes)
    squares = np.zeros(vocab) if normalised else (codes**2).sum(axis=1)
    count = min(vocab - 1, MOST)
    table = np.zeros((vocab, count), np.uint16 if vocab <= 1 << 16 else np.uint32)
    for start in range(0, vocab, _ROWS):
        rows = np.arange(start, min(start + _ROWS, vocab))
        closeness = 2 * codes[rows] @ codes.T - squares  # [rows, V]; |a - b|^2 = |a|^2 + |b|^2 - 2 a.b
        closeness[np.arange(len(rows)), rows] = -np.inf
        nearest = np.argpartition(-closeness, count - 1, axis=1)[:, :count] if count else table[rows].astype(np.int64)
        nearest.sort(axis=1)  # so that the stable sort below leaves ties in the order of their ids
        order = np.argsort(-np.take_along_axis(closeness, nearest, axis=1), axis=1, kind="stable")
        table[rows] = np.take_along_axis(nearest, order, axis=1)
    return table
