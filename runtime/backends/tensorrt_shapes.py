"""Calls of the runtime on engines that are compiled for few shapes.

A plan has profiles, each for one shape of all inputs. A call that has none of its own takes the smallest profile with
room for it: its axis of nodes, pairs or levels is filled up, and what comes back is cut (`Padded`). Hardly anything of
that passes through the host. Plans for Ampere have one number of nodes, and of pairs, in every call (engines/tensorrt/
attention.py); the calls on a prefix, which are longer, become several (`NodesInPieces`, `PairsInPieces`).

What is filled up changes no answer: copies and zeros behind the last node are seen by themselves alone, pairs behind
`count` by nobody, no node asks for the rows of noise behind its tree. They are written to cache slots that are written
again before anybody sees them; a bundle's caches have room for the most nodes of a call behind their last token.

TensorRT takes addresses that are multiples of 256 bytes, and a slot's part of a buffer may lie anywhere. A call on such
parts, as that on a prefix is, has copies of them in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .cuda_memory import CudaBuffer, cuda_buffer
from .device import CudaDevice
from .host import host_dtype

Shapes = Mapping[str, tuple[int, ...]]
Buffers = Mapping[str, CudaBuffer]
_NODES = ("embeds", "positions", "depths", "tree_mask")  # inputs [P or R, N, ...] of the target
_PAIRS = ("path", "tokens", "positions")  # inputs [P or R, M] of a drafter
_GROW = frozenset({*_NODES, *_PAIRS, "noise", "forced", "hidden", "ids"})  # along axis 1
_ALIGNMENT = 256  # bytes, of every address that TensorRT takes


def is_odd(name: str, buffer: CudaBuffer) -> bool:
    """Whether TensorRT refuses a buffer's address. A cache is not asked: no copy could take its place."""
    return buffer.address % _ALIGNMENT > 0 and not name.startswith(("past_", "present_"))


def smallest(profiles: Sequence[Shapes], given: Shapes, most: int) -> int | None:
    """The number of the profile that takes inputs of the shapes `given` with the least filling, if any does.

    A shape is filled up to no more than `most` nodes or pairs: caches have no room for more.
    """

    def filling(profile: Shapes) -> int | None:
        added = 0
        for name, shape in profile.items():
            own = given[name]
            if shape == own:
                continue
            grows = name in _GROW and len(shape) == len(own) > 1 and own[1] < shape[1] <= most
            if not grows or (shape[0], *shape[2:]) != (own[0], *own[2:]):
                return None
            added += math.prod(shape) - math.prod(own)
        return added

    found = [(cost, index) for index, profile in enumerate(profiles) if (cost := filling(profile)) is not None]
    return min(found)[1] if found else None


def for_pieces(profiles: Sequence[Shapes], given: Shapes, names: Sequence[str], most: int) -> int | None:
    """The number of the profile that takes pieces of inputs `given`, cut along axis 1 of `names`, if any does."""
    for index, profile in enumerate(profiles):
        if not all(name in profile and name in given and profile[name][1] < given[name][1] for name in names):
            continue
        piece = {name: _along(shape, profile[name][1]) if name in names else shape for name, shape in given.items()}
        if smallest([profile], piece, most) is not None:
            return index
    return None


def _along(shape: tuple[int, ...], count: int) -> tuple[int, ...]:
    return (shape[0], count, *shape[2:])


class Padded:
    """A call in a larger profile: `own` inputs and `answers` have the profile's shapes, and stand for those in
    `inputs` and `outputs` whose shapes differ, or whose addresses TensorRT refuses."""

    def __init__(
        self, device: CudaDevice, inputs: Buffers, outputs: Buffers, profile: Shapes, results: Shapes
    ) -> None:
        self.device, self.inputs, self.outputs = device, inputs, outputs
        self.own = {name: self._own(name, profile[name]) for name in inputs if self._differs(name, profile)}
        self.answers = {
            name: cuda_buffer(device, results[name], outputs[name].dtype, "device")
            for name in outputs if results[name] != outputs[name].shape or is_odd(name, outputs[name])
        }  # fmt: skip
        for name, answer in self.answers.items():
            if answer.shape != outputs[name].shape:
                self._check(name, outputs[name].shape, answer.shape)
        if "tree_mask" in self.own:
            self._fill_mask()

    def _check(self, name: str, wanted: tuple[int, ...], made: tuple[int, ...]) -> None:
        """Raises ValueError where an output cannot be cut out of what the engine makes."""
        fits = len(made) == len(wanted) > 1 and made[0] == wanted[0] and wanted[1] <= made[1]
        if not fits or (made[2:] != wanted[2:] and not (len(made) == 3 and wanted[2] <= made[2])):
            raise ValueError(f"{name} is {list(made)} here, the buffer is {list(wanted)}")

    def _differs(self, name: str, profile: Shapes) -> bool:
        return profile[name] != self.inputs[name].shape or is_odd(name, self.inputs[name])

    def _own(self, name: str, shape: tuple[int, ...]) -> CudaBuffer:
        kind = "in" if name == "tree_mask" or self._counts_on(name) else "device"
        return cuda_buffer(self.device, shape, self.inputs[name].dtype, kind)

    def _counts_on(self, name: str) -> bool:
        """Whether it holds the positions of a drafter's pairs, which go on behind the last one: they are also the
        slots of the cache."""
        return name == "positions" and "path" in self.inputs

    def _fill_mask(self) -> None:
        """Lets the nodes behind the call's see themselves: a row without any slot would not be finite."""
        mask, nodes = self.own["tree_mask"], self.inputs["tree_mask"].shape[1]
        behind = np.arange(nodes, mask.shape[1])
        mask.host[:, behind, behind] = True
        mask.upload()

    @property
    def uploads(self) -> list[CudaBuffer]:
        """What `prepare` writes."""
        return [buffer for name, buffer in self.own.items() if self._counts_on(name)]

    def pieces(self) -> Iterator[object]:
        """One for each run of the engine."""
        yield None

    def prepare(self, piece: object) -> None:  # noqa: ARG002 - there is one
        """What the host has to do before its uploads."""
        for name, own in self.own.items():
            if self._counts_on(name):
                own.host[:] = self._known(name)[name][:, :1] + np.arange(own.shape[1])

    def _known(self, *names: str) -> dict[str, np.ndarray]:
        """Inputs as the host sees them. What kernels have written comes to it first, which is a wait in every call; for
        the trees of a bundle its plans have profiles without it, but for drafters on Ampere."""
        written = [self.inputs[name] for name in names if self.inputs[name].kind != "in"]
        for buffer in written:
            buffer.fetch()
        if written:
            self.device.synchronize()
        return {name: self.inputs[name].host for name in names}

    def before(self) -> None:
        """Queues the way of what differs into the engine's inputs."""
        for name, own in self.own.items():
            if not self._counts_on(name):
                copy_part(self.device, own, self.inputs[name])

    def after(self) -> None:
        """Queues the way of what differs out of the engine's outputs."""
        for name, answer in self.answers.items():
            copy_part(self.device, self.outputs[name], answer)

    def collect(self, piece: object) -> None:
        """Queues what follows a piece."""


@dataclass(frozen=True)
class Piece:
    """Nodes `start` to `start + count` of a call, in a call of their own."""

    start: int
    count: int


def cut(tree_mask: np.ndarray, fixed: int) -> list[Piece]:
    """Cuts a call with tree_mask [R, N, W + 1] into pieces of at most `fixed` nodes.

    Slots before a piece are seen by all of its nodes or none (`cache_mask` has no dimension for nodes), so a piece
    also ends where the mask says otherwise; in a causal prefix, padded on the left or not at all, it never does.
    """
    nodes, found, start = tree_mask.shape[1], [], 0
    while start < nodes:
        before = tree_mask[:, start : start + fixed, :start]
        agrees = (before == before[:, :1]).all(axis=(0, 2))
        count = len(agrees) if agrees.all() else int(np.argmin(agrees))
        found.append(Piece(start, count))
        start += count
    return found


class _InPieces(Padded):
    """The host writes every piece."""

    cuts: tuple[str, ...] = ()  # inputs that are cut along axis 1
    moves: tuple[str, ...] = ()  # inputs of their shape whose content differs from piece to piece

    def _differs(self, name: str, profile: Shapes) -> bool:
        return name in (*self.cuts, *self.moves) or super()._differs(name, profile)

    def _own(self, name: str, shape: tuple[int, ...]) -> CudaBuffer:
        if name not in (*self.cuts, *self.moves):
            return super()._own(name, shape)
        shape = shape if name in self.cuts else self.inputs[name].shape
        return cuda_buffer(self.device, shape, self.inputs[name].dtype, "in")

    @property
    def uploads(self) -> list[CudaBuffer]:
        return [self.own[name] for name in (*self.cuts, *self.moves) if name in self.own]

    def before(self) -> None:
        for name, own in self.own.items():
            if name not in (*self.cuts, *self.moves):
                copy_part(self.device, own, self.inputs[name])


class NodesInPieces(_InPieces):
    """The target on a prefix that is longer than the engine's number of nodes."""

    cuts, moves = _NODES, ("write_index", "cache_mask")

    def __init__(
        self, device: CudaDevice, inputs: Buffers, outputs: Buffers, profile: Shapes, results: Shapes
    ) -> None:
        if "similarity" in outputs:
            raise ValueError("similarity of nodes in different pieces is not known")
        super().__init__(device, inputs, outputs, profile, results)

    def _check(self, name: str, wanted: tuple[int, ...], made: tuple[int, ...]) -> None:
        """Raises ValueError where an output is not made of the pieces' nodes."""
        if (wanted[0], *wanted[2:]) != (made[0], *made[2:]):
            raise ValueError(f"{name} is {list(made)} in a piece, the buffer is {list(wanted)}")

    def _fill_mask(self) -> None:
        """Nothing: `prepare` writes it whole."""

    def pieces(self) -> Iterator[Piece]:
        yield from cut(self._known("tree_mask")["tree_mask"], self.own["embeds"].shape[1])

    def prepare(self, piece: object) -> None:
        """Fills the engine's inputs: the piece's nodes, then its last one again; a mask that begins at the piece."""
        assert isinstance(piece, Piece)
        given = self._known(*self.cuts, *self.moves)
        own = {name: self.own[name].host for name in (*self.cuts, *self.moves)}
        start, fixed = piece.start, self.own["embeds"].shape[1]
        nodes = start + np.minimum(np.arange(fixed), piece.count - 1)
        for name in ("embeds", "positions", "depths"):
            own[name][:] = given[name][:, nodes]
        own["write_index"][:] = given["write_index"] + start
        mask = given["tree_mask"]
        own["tree_mask"][:] = False
        own["tree_mask"][:, :, : mask.shape[2] - start] = mask[:, nodes, start:]
        own["cache_mask"][:] = given["cache_mask"]
        for row, first in enumerate(given["write_index"]):
            own["cache_mask"][row, first : first + start] = mask[row, start, :start]

    def after(self) -> None:
        """Nothing: `collect` knows where a piece belongs."""

    def collect(self, piece: object) -> None:
        assert isinstance(piece, Piece)
        for name, answer in self.answers.items():
            copy_part(self.device, self.outputs[name], answer, piece.start, piece.count)


class PairsInPieces(_InPieces):
    """A drafter on more pairs than the engine takes: each call reads the next ones, the last one the last, some of them
    once more with the same result. All draft a tree; that of the last call is the answer, and what the others wrote of
    theirs behind their pairs is overwritten by the next."""

    cuts, moves = _PAIRS, ("count", "write_index")

    def _check(self, name: str, wanted: tuple[int, ...], made: tuple[int, ...]) -> None:
        """Raises ValueError: of outputs for each pair, the last call has a part."""
        raise ValueError(f"{name} is {list(made)} in a piece, the buffer is {list(wanted)}")

    def pieces(self) -> Iterator[int]:
        count, fixed = self._known("count")["count"], self.own["path"].shape[1]
        yield from range(-(-int(count.max()) // fixed))

    def prepare(self, piece: object) -> None:
        assert isinstance(piece, int)
        given = self._known(*self.cuts, *self.moves, "prompt_of_row")
        own = {name: self.own[name].host for name in (*self.cuts, *self.moves)}
        count, fixed = given["count"], self.own["path"].shape[1]
        first = np.minimum(piece * fixed, np.maximum(count - fixed, 0))  # [P]
        pairs = np.minimum(first[:, None] + np.arange(fixed), count[:, None] - 1)  # [P, K]
        for name in ("path", "tokens"):
            own[name][:] = np.take_along_axis(given[name], pairs, axis=1)
        own["count"][:] = np.minimum(count - first, fixed)
        starts = first[given["prompt_of_row"]]
        own["write_index"][:] = given["write_index"] + starts
        own["positions"][:] = (given["positions"][:, 0] + starts)[:, None] + np.arange(fixed)


def copy_part(device: CudaDevice, to: CudaBuffer, source: CudaBuffer, at: int = 0, count: int | None = None) -> None:
    """Queues a copy between tensors of one shape, or [A, B, C, ...] that differ in B, or in B and C: what both have of
    the axes. With `at`, to place `at` of axis 1 of `to`, `count` places."""
    if to.shape == source.shape and count is None:
        device.copy(to.address, source.address, to.nbytes)
        return
    wide, narrow = (_extents(buffer) for buffer in (to, source))
    lines = min(wide[1], narrow[1]) if count is None else count
    if wide[2] == narrow[2]:  # whole places of axis 1 lie one behind the other
        size = wide[2]
        device.copy_strided(
            to.address + at * size, source.address, lines * size, wide[0], narrow[1] * size, to_pitch=wide[1] * size
        )
        return
    device.copy_strided(
        to.address + at * wide[2], source.address, min(wide[2], narrow[2]), lines, narrow[2], wide[0], narrow[1],
        to_pitch=wide[2], to_plane=wide[1],
    )  # fmt: skip


def _extents(buffer: CudaBuffer) -> tuple[int, int, int]:
    """A, B, and the bytes of what follows."""
    first, second, *rest = buffer.shape
    return first, second, math.prod(rest) * host_dtype(buffer.dtype).itemsize
