"""Reading weights one tensor at a time, from every form in which checkpoints are published.

Nothing here loads a whole model: pickles are memory-mapped and safetensors are read lazily. Pickles are
opened with PyTorch's restricted unpickler, which runs no code of the file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PosixPath
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch

from ...runtime.errors import CascadeError

Shape = tuple[int, ...]
Module = TypeVar("Module", bound=torch.nn.Module)
_WRAPPERS = ("model", "module", "state_dict")  # the order in which LlamaGen's own loaders try them
_LEFTOVERS = ("freqs_cis", "causal_mask", "kv_cache.", "codebook_used", "rotary_emb.inv_freq")
_TRAINERS = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile put before every name
# Plain values that training scripts save beside the weights; PyTorch's unpickler refuses them unless they are named.
_SCALAR = np.float64(0).__reduce__()[0]
_PLAIN: list[Any] = [
    argparse.Namespace, PosixPath, np.dtype, *(type(np.dtype(kind)) for kind in ("float32", "float64", "int64")),
    *((_SCALAR, f"numpy.{module}.multiarray.scalar") for module in ("core", "_core")),
]  # fmt: skip


@runtime_checkable
class TensorSource(Protocol):
    """Named tensors; `load` gives one of them, as a view of the file where that is possible."""

    @property
    def path(self) -> Path: ...

    def names(self) -> list[str]: ...

    def shape(self, name: str) -> Shape: ...

    def load(self, name: str) -> torch.Tensor: ...

    def __contains__(self, name: object) -> bool: ...


class StateDict:
    """A flat state_dict in (mapped) memory."""

    def __init__(self, path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
        self.path, self._tensors = path, tensors

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> Shape:
        return tuple(self._tensors[name].shape)

    def load(self, name: str) -> torch.Tensor:
        return self._tensors[name].detach()

    def __contains__(self, name: object) -> bool:
        return name in self._tensors


class Safetensors:
    """One or several safetensors files."""

    def __init__(self, path: Path, files: list[Path]) -> None:
        from safetensors import SafetensorError, safe_open

        self.path = path
        self._found: dict[str, tuple[Any, str]] = {}  # the file that holds a tensor, and its name there
        for file in files:
            try:
                handle = safe_open(file, framework="pt", device="cpu")
            except FileNotFoundError:
                raise CascadeError(f"{path} lacks its part {file.name}: download it again.") from None
            except (SafetensorError, OSError) as error:
                raise CascadeError(f"{file} is damaged ({error}): download it again.") from None
            for name in handle.keys():  # noqa: SIM118 - a safetensors handle is not a mapping
                if not _is_leftover(name):
                    self._found[_bare(name)] = handle, name

    def names(self) -> list[str]:
        return list(self._found)

    def shape(self, name: str) -> Shape:
        handle, stored = self._found[name]
        return tuple(handle.get_slice(stored).get_shape())

    def load(self, name: str) -> torch.Tensor:
        handle, stored = self._found[name]
        return handle.get_tensor(stored)

    def __contains__(self, name: object) -> bool:
        return name in self._found


@dataclass(frozen=True)
class Derived:
    """A tensor made from others of a source when it is asked for."""

    shape: Shape
    load: Callable[[], torch.Tensor]


class RenamedSource:
    """A source under other names, some tensors made of several (LANTERN keeps q, k and v apart)."""

    def __init__(self, path: Path, tensors: Mapping[str, Derived]) -> None:
        self.path, self._tensors = path, tensors

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


class DummySource:
    """Random weights of given shapes, the same for the same seed and name, made when they are asked for."""

    def __init__(self, shapes: Mapping[str, Shape], seed: int = 0) -> None:
        self.path, self._shapes, self._seed = Path("dummy"), dict(shapes), seed

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


def open_source(path: Path, what: str) -> TensorSource:
    """Opens a .pt/.pth/.bin pickle, a .safetensors file, or a folder that holds either (sharded or not).

    `what` names the part in messages ("checkpoint", "drafter", ...). Raises CascadeError for a missing,
    truncated or unsafe file.
    """
    path = Path(path)
    if not path.exists():
        raise CascadeError(f"the {what} {path} does not exist: check the path.")
    if path.is_dir():
        return _open_folder(path, what)
    if path.suffix == ".safetensors":
        return Safetensors(path, [path])
    return StateDict(path, _read_pickle(path, what))


def _open_folder(folder: Path, what: str) -> TensorSource:
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (folder / index).is_file():
            weight_map = read_json(folder / index).get("weight_map")
            if not isinstance(weight_map, dict) or not all(isinstance(f, str) for f in weight_map.values()):
                raise CascadeError(f"{folder / index} has no weight_map that names files: download it again.")
            parts = sorted(set(weight_map.values()))
            files = [folder / part for part in parts]
            if index.startswith("model"):
                return Safetensors(folder, files)
            merged: dict[str, torch.Tensor] = {}
            for file in files:
                if not file.is_file():
                    raise CascadeError(f"{folder} lacks its part {file.name}: download it again.")
                merged |= _read_pickle(file, what)
            return StateDict(folder, merged)
    if (folder / "model.safetensors").is_file():
        return Safetensors(folder, [folder / "model.safetensors"])
    if (folder / "pytorch_model.bin").is_file():
        return StateDict(folder, _read_pickle(folder / "pytorch_model.bin", what))
    raise CascadeError(
        f"the {what} folder {folder} holds no model.safetensors or pytorch_model.bin: give the file itself."
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises CascadeError when it is missing or malformed."""
    try:
        content = json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise CascadeError(f"there is no file {path}: check the path.") from None
    except (OSError, ValueError) as error:
        raise CascadeError(f"{path} is not readable JSON ({error}).") from None
    if not isinstance(content, dict):
        raise CascadeError(f"{path} must hold a JSON object.")
    return content


def _read_pickle(path: Path, what: str) -> dict[str, torch.Tensor]:
    """The flat state_dict inside a PyTorch file, unwrapped and without leftovers of training."""
    try:
        with torch.serialization.safe_globals(_PLAIN), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged files also warn; they get one sentence
            content = _load_mapped(path)
    except PermissionError:
        raise CascadeError(f"the {what} {path} may not be read: change its permissions.") from None
    except Exception as error:  # damaged pickles raise anything: struct.error, IndexError, ...
        if offender := _offender(error):
            raise CascadeError(
                f"the {what} {path} wants to run code when it is opened ({offender}), which is refused: "
                "convert it to safetensors where you trust it."
            ) from None
        raise CascadeError(
            f"the {what} {path} is truncated, damaged or not a PyTorch checkpoint: download it again."
        ) from None
    return _flatten(path, what, content)


def _load_mapped(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except RuntimeError as error:
        if "mmap can only be used" not in str(error):
            raise
        # Files from before PyTorch 1.6 are not zip archives and cannot be mapped.
        return torch.load(path, map_location="cpu", weights_only=True)


def _offender(error: Exception) -> str:
    """The function or class that the restricted unpickler refused, or nothing if that was not the trouble."""
    _, found, rest = str(error).partition("GLOBAL ")
    return rest.split()[0].strip(".,;") if found and rest.split() else ""


def _flatten(path: Path, what: str, content: Any) -> dict[str, torch.Tensor]:
    """The tensors of a state_dict, which may lie under one wrapper or several."""
    while wrapped := _unwrapped(content):
        content = wrapped
    if not isinstance(content, Mapping):
        raise CascadeError(f"the {what} {path} holds a {type(content).__name__}, not a state_dict.")
    found = {
        _bare(name): tensor
        for name, tensor in content.items()
        if isinstance(name, str) and isinstance(tensor, torch.Tensor) and not _is_leftover(name)
    }
    if not found:
        raise CascadeError(f"the {what} {path} holds no tensors under {', '.join(_WRAPPERS)} or at its top.")
    return found


def _unwrapped(content: Any) -> Mapping[Any, Any] | None:
    """What lies under the first wrapper, if there is one."""
    if not isinstance(content, Mapping):
        return None
    inner = (content.get(wrapper) for wrapper in _WRAPPERS)
    return next((found for found in inner if isinstance(found, Mapping) and found), None)


def _bare(name: str) -> str:
    """A tensor's name without what trainers put before it."""
    while name.startswith(_TRAINERS):
        name = name[name.index(".") + 1 :]
    return name


def _is_leftover(name: str) -> bool:
    return any(mark in name for mark in _LEFTOVERS)


def load_module(module: Module, source: TensorSource, prefix: str = "") -> Module:
    """Fills a module from the source in float32, by name."""
    state = {name: source.load(prefix + name).float() for name in module.state_dict()}
    module.load_state_dict(state, assign=True)
    return module.eval()


def matrix(source: TensorSource, name: str) -> tuple[int, int]:
    """The shape of a tensor that has to be there and have two dimensions. Raises CascadeError otherwise."""
    if name not in source:
        raise CascadeError(f"{source.path} lacks the tensor {name}: it is incomplete or of another kind.")
    shape = source.shape(name)
    if len(shape) != 2:
        raise CascadeError(f"tensor {name} of {source.path} has the shape {list(shape)}, not two dimensions.")
    return shape[0], shape[1]


def looks_like(source: TensorSource) -> str:
    """What a file given in the wrong place is, and where it belongs: the end of a sentence."""
    if "quantize.embedding.weight" in source:
        return "a VQ tokenizer: pass it with --vq"
    if "fc.weight" in source and "embed_tokens.weight" in source:
        return "a drafter: pass it with --drafter"
    if "tok_embeddings.weight" in source or "model.embed_tokens.weight" in source:
        return "a transformer: pass it with --checkpoint"
    if "shared.weight" in source:
        return "a text encoder: pass its folder with --text"
    return f"unknown (it starts with the tensors {', '.join(source.names()[:3])}): check the path"


def check_shapes(source: TensorSource, shapes: Mapping[str, Shape], what: str) -> None:
    """Compares the tensors that a part needs with what the source holds, before anything is read.

    Raises CascadeError naming the first missing or misshapen tensor.
    """
    for name, expected in shapes.items():
        if name not in source:
            raise CascadeError(
                f"the {what} {source.path} lacks the tensor {name}: it is incomplete or of another kind."
            )
        if source.shape(name) != tuple(expected):
            raise CascadeError(
                f"tensor {name} of the {what} {source.path} has the shape {list(source.shape(name))}, "
                f"not {list(expected)}: check --config, --grid and --n-head, or the file."
            )
