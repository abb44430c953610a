"""Counter-based random numbers: a draw depends on (seed, position, token id) and on nothing else.

So an image is the same for the same seed whatever the tree, the batch or the backend. The generator is
Philox4x64 (Salmon et al., 2011), keyed with the seed and the place of use; only its raw 64-bit stream is used,
which numpy keeps stable between versions.
"""

from __future__ import annotations

import threading
from enum import IntEnum
from typing import Any

import numpy as np

_STEP = np.float32(2.0**-24)


class Stream(IntEnum):
    """Independent uses of randomness at one position."""

    TOKEN = 0  # the target's own draw; shared with the drafter by the coupled tree
    DRAFT = 1  # the drafter's draw when it must not know the target's
    ACCEPT = 2  # is a draft accepted?
    RESIDUAL = 3  # the token drawn after every draft failed


class _Generator(threading.local):
    """One generator for each thread, set anew for each draw: making one costs seven times as much."""

    def __init__(self) -> None:
        self._philox = np.random.Philox(0)
        self._key, self._counter = np.zeros(2, np.uint64), np.zeros(4, np.uint64)
        self._state: Any = {  # numpy copies it
            "bit_generator": "Philox", "state": {"key": self._key, "counter": self._counter},
            "buffer": np.zeros(4, np.uint64), "buffer_pos": 4, "has_uint32": 0, "uinteger": 0,
        }  # fmt: skip

    def at(self, seed: int, position: int, stream: Stream, counter: int = 0) -> np.random.Philox:
        """The stream of a place, from `counter` on; valid until the thread's next call."""
        self._key[0], self._key[1] = seed, (stream << 32) | position
        self._counter[0] = counter
        self._philox.state = self._state
        return self._philox


_GENERATOR = _Generator()


def uniforms(seed: int, position: int, stream: Stream, count: int) -> np.ndarray:
    """float32 [count] in (0, 1), one for each token id, multiples of 2**-24 shifted by half a step."""
    raw = _GENERATOR.at(seed, position, stream).random_raw((count + 1) // 2)
    numbers = (raw.view(np.uint32)[:count] >> np.uint32(8)).astype(np.float32)
    numbers += np.float32(0.5)
    numbers *= _STEP
    return numbers


def gumbel(seed: int, position: int, stream: Stream, count: int) -> np.ndarray:
    """float32 [count] of standard Gumbel noise: argmax(log p + gumbel) is a draw from p."""
    return to_gumbel(uniforms(seed, position, stream, count))


def to_gumbel(noise: np.ndarray) -> np.ndarray:
    """Standard Gumbel noise from uniform numbers, in place."""
    # In float32, (2**24 - 1 + 0.5) rounds to 2**24, so the largest draw would be exactly 1 and its noise infinite.
    np.minimum(noise, np.float32(1 - 2.0**-24), out=noise)
    np.log(noise, out=noise)
    np.negative(noise, out=noise)
    np.log(noise, out=noise)
    return np.negative(noise, out=noise)


def uniform_of_token(seed: int, position: int, stream: Stream, token: int) -> float:
    """One number in [0, 1) that belongs to a token id at a position."""
    return int(_GENERATOR.at(seed, position, stream, counter=token + 1).random_raw()) * 2.0**-64


class NoiseWindow:
    """Gumbel noise of the next positions of every prompt, float32 [P, rows, V], kept while positions advance.

    Row d holds the noise of position start + d. When the window moves on, rows it still needs are moved
    instead of computed again, so each position's noise is computed once an image.
    """

    def __init__(self, noise: np.ndarray) -> None:
        self.noise = noise
        self._start: list[tuple[int, Stream, int] | None] = [None] * len(noise)

    def fill(self, prompt: int, seed: int, stream: Stream | None, start: int, end: int) -> None:
        """Sets the rows of one prompt to positions [start, ...); those from `end` on are left as they are."""
        window = self.noise[prompt]
        before, self._start[prompt] = self._start[prompt], None  # until it is whole: Ctrl-C may come in between
        if stream is None:
            window.fill(0)
            return
        rows, vocab = window.shape
        kept = 0
        if before is not None and before[:2] == (seed, stream) and 0 <= start - before[2] < rows:
            kept = rows - (start - before[2])
            for row in range(kept):  # one by one: all at once would need memory for as many rows
                window[row] = window[rows - kept + row]
        for row in range(kept, min(rows, end - start)):
            window[row] = gumbel(seed, start + row, stream, vocab)
        self._start[prompt] = (seed, stream, start)

    def clear(self, prompt: int) -> None:
        """The noise of one prompt is about to be written over."""
        self._start[prompt] = None

    def move(self, source: int, to: int) -> None:
        """The noise itself has been moved from one slot to another, which was cleared before."""
        self._start[to], self._start[source] = self._start[source], None
