"""Weights by name, read one tensor at a time: from files in every form in which they are published, or random ones."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import torch

from ...runtime.errors import CascadeError
from .files import read_file, read_folder
from .names import Tensors, bare, check_floats, model_of, part_of
from .reading import spelt

Shape = tuple[int, ...]
Module = TypeVar("Module", bound=torch.nn.Module)
Read = tuple[Path, str, torch.Tensor]  # a tensor as it lies in a file, under its name there
INCOMPLETE = "it is incomplete or of another kind, so download it again, or give another."
_reads: ContextVar[list[Read] | None] = ContextVar("reads", default=None)


@runtime_checkable
class TensorSource(Protocol):
    """Named tensors; `load` gives one of them, as a view of the file where that is possible.

    `notes` are sentences that a user should know of how the file was read.
    """

    @property
    def path(self) -> Path: ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    def names(self) -> list[str]: ...

    def shape(self, name: str) -> Shape: ...

    def load(self, name: str) -> torch.Tensor: ...

    def __contains__(self, name: object) -> bool: ...


@dataclass(frozen=True)
class Derived:
    """A tensor made from others of a source when it is asked for."""

    shape: Shape
    load: Callable[[], torch.Tensor]


class RenamedSource:
    """Tensors of a file or a source under other names, some made of several (LANTERN keeps q, k and v apart)."""

    def __init__(self, path: Path, tensors: Mapping[str, Derived], notes: Iterable[str] = ()) -> None:
        self.path, self._tensors, self.notes = path, tensors, tuple(notes)

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> Shape:
        return self._tensors[name].shape

    def load(self, name: str) -> torch.Tensor:
        return self._tensors[name].load()

    def __contains__(self, name: object) -> bool:
        return name in self._tensors


def renamed(source: TensorSource, names: Mapping[str, str]) -> dict[str, Derived]:
    """The tensors of `source` as parts of a `RenamedSource`; `names` maps new names to those of `source`."""
    return {
        new: Derived(source.shape(old), lambda old=old: source.load(old)) for new, old in names.items()
    }


def with_notes(source: TensorSource, *notes: str) -> TensorSource:
    """The same tensors, with more for a user to know."""
    return RenamedSource(source.path, renamed(source, {name: name for name in source.names()}), (*source.notes, *notes))


class DummySource:
    """Random weights of given shapes, the same for the same seed and name, made when they are asked for."""

    def __init__(self, shapes: Mapping[str, Shape], seed: int = 0) -> None:
        self.path, self._shapes, self._seed = Path("dummy"), dict(shapes), seed
        self.notes: tuple[str, ...] = ()

    def names(self) -> list[str]:
        return list(self._shapes)

    def shape(self, name: str) -> Shape:
        return self._shapes[name]

    def load(self, name: str) -> torch.Tensor:
        """Norm scales are 1, biases 0, tables and matrices normal with variance 1 / fan-in."""
        shape = self._shapes[name]
        if len(shape) == 1:
            return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
        key = hashlib.sha256(f"{self._seed} {name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)
        fan_in = max(1, int(torch.Size(shape[1:]).numel()))
        return torch.empty(shape).normal_(0, fan_in**-0.5, generator=generator)

    def __contains__(self, name: object) -> bool:
        return name in self._shapes


def open_source(
    path: Path, what: str, anchors: Iterable[str] = (), harmless: tuple[str, ...] = ()
) -> TensorSource:
    """Opens a file of tensors (PyTorch's or safetensors, whatever its name), or a folder of such (sharded or not).

    `what` names the part in messages ("checkpoint", "drafter", ...). `anchors` are tensors of which each file of the
    part has one: a prefix before them is left away. Tensors whose names then begin with one of `harmless` are left
    out. Raises CascadeError for a file that is missing, damaged, unsafe or quantised.
    """
    path = Path(path)
    where = f"the {what} {path}"
    tensors: Tensors = {}
    notes: list[str] = []
    for content in read_folder(path, what) if os.path.isdir(path) else [read_file(path, what)]:
        found, said = model_of(content.tree, f"the {what} {content.path}")
        notes += said
        found = {name: replace(x, load=_told(content.path, name, x.load)) for name, x in found.items()}
        for name, tensor in bare(found, where).items():
            if name in tensors:
                raise CascadeError(f"{where} holds the tensor {spelt(name)} in two files: download it again.")
            tensors[name] = tensor
    tensors, said = part_of(tensors, anchors, where)
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(harmless)}
    check_floats(kept, where)
    return RenamedSource(path, {name: Derived(x.shape, x.load) for name, x in kept.items()}, [*notes, *said])


def files_read(load: Callable[[], object]) -> list[Read]:
    """The tensors that `load` reads of files, whatever is made of them and whatever they are called here."""
    reads: list[Read] = []
    token = _reads.set(reads)
    try:
        load()
    finally:
        _reads.reset(token)
    return reads


def _told(file: Path, name: str, load: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """`load`, told to who asks what is read."""

    def told() -> torch.Tensor:
        tensor = load()
        if (reads := _reads.get()) is not None:
            reads.append((file, name, tensor))
        return tensor

    return told


def load_module(module: Module, source: TensorSource, prefix: str = "") -> Module:
    """Fills a module from the source in float32, by name."""
    state = {name: source.load(prefix + name).float() for name in module.state_dict()}
    module.load_state_dict(state, assign=True)
    return module.eval()


def matrix(source: TensorSource, name: str) -> tuple[int, int]:
    """The shape of a tensor that has to be there and have two dimensions. Raises CascadeError otherwise."""
    if name not in source:
        raise CascadeError(f"{source.path} lacks the tensor {name}: {INCOMPLETE}")
    shape = source.shape(name)
    if len(shape) != 2 or 0 in shape:
        raise CascadeError(f"tensor {name} of {source.path} has the shape {list(shape)}, not two dimensions.")
    return shape[0], shape[1]


def is_language_model(source: TensorSource) -> bool:
    """Whether this is a Llama, a Chameleon or the like: its layers are LANTERN's or Llama's, but it draws nothing."""
    layers = any(name.endswith(("self_attn.q_proj.weight", "attention.wq.weight")) for name in source.names())
    return layers and not any("cls_embedding" in name or name.endswith("fc.weight") for name in source.names())


def looks_like(source: TensorSource) -> str:
    """What a file given in the wrong place is, and where it belongs: the end of a sentence."""

    def has(tail: str) -> bool:
        return any(name == tail or name.endswith(f".{tail}") for name in source.names())

    if is_language_model(source):
        return "the transformer of a language model (Llama, Chameleon or the like): give the file of this part"
    if has("quantize.embedding.weight"):
        return "a VQ tokenizer: pass it with --vq"
    if has("fc.weight") and has("embed_tokens.weight"):
        return "a drafter: pass it with --drafter"
    if has("tok_embeddings.weight") or has("embed_tokens.weight"):
        return "a transformer: pass it with --checkpoint"
    if has("shared.weight"):
        return "a text encoder: pass its folder with --text"
    return f"unknown (it starts with the tensors {', '.join(map(spelt, source.names()[:3]))}): check the path"


def check_shapes(
    source: TensorSource, shapes: Mapping[str, Shape], what: str, check: str = "--config, --grid and --n-head"
) -> None:
    """Compares the tensors that a part needs with what the source holds, before anything is read.

    `check` is where the sizes come from. Raises CascadeError naming the first missing or misshapen tensor.
    """
    for name, expected in shapes.items():
        if name not in source:
            raise CascadeError(
                f"the {what} {source.path} lacks the tensor {name}: {INCOMPLETE}"
            )
        if source.shape(name) != tuple(expected):
            raise CascadeError(
                f"tensor {name} of the {what} {source.path} has the shape {list(source.shape(name))}, "
                f"not {list(expected)}: check {check}, or the file."
            )


def check_all_read(source: TensorSource, shapes: Mapping[str, Shape], what: str) -> None:
    """Raises CascadeError where the source holds a tensor that is not among `shapes`: it is another model."""
    unread = [name for name in source.names() if name not in shapes]
    if unread:
        raise CascadeError(
            f"the {what} {source.path} holds {spelt(unread[0])}, which would be left unread: it is of another kind, "
            "or leave that tensor out of the file."
        )


def count(source: TensorSource, prefix: str, what: str) -> int:
    """How many there are of what the names number behind `prefix`; at most as many as there are names.

    Raises CascadeError where a number below the highest is missing.
    """
    pattern = re.compile(re.escape(prefix) + r"([0-9]+)\.")
    numbers = {found[1] for name in source.names() if (found := pattern.match(name))}
    for number in range(len(numbers)):
        if str(number) not in numbers:
            raise CascadeError(
                f"the {what} {source.path} lacks the tensors {prefix}{number}: {INCOMPLETE}"
            )
    return len(numbers)
