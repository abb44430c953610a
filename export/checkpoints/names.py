"""From what a file holds to the named tensors of one model: wrappers, averages, prefixes, leftovers of training."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ...runtime.errors import CascadeError
from .files import Stored
from .reading import spelt

_WRAPPERS = ("model", "module", "state_dict", "model_state_dict", "weights", "params", "shadow")  # in LlamaGen's order
_AVERAGE = re.compile(r"(^|[._])ema([._]|$)", re.IGNORECASE)  # an exponential moving average of the weights
# What belongs to the training, beside the weights.
_BESIDE = re.compile(
    r"optim|sched|scaler|rng|random|discriminator|loss|lpips|metric|(^|_)(disc|steps?|epochs?)(_|$)", re.IGNORECASE
)
# What trainers put into names: DistributedDataParallel, torch.compile, FSDP, activation checkpointing, DeepSpeed.
_TRAINERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
# Tables that a model computes, caches and counters. None is a weight.
_LEFTOVER = re.compile(
    r"(^|\.)(freqs_cis|causal_mask|kv_cache\..*|codebook_used|rotary_emb\.(inv_freq|cos_cached|sin_cached)"
    r"|position_ids|num_batches_tracked)$"
)
_FLOATS = {"float64", "float32", "float16", "bfloat16"}
_COUNTS = re.compile(r"u?int\d+|bool")
_QUANTISED = re.compile(r"q?u?int|bool|float[48]|f[468]_?|bits|bitsandbytes|hqq|optimum|quanto|torchao")
_MOST = 100_000  # tensors
Tensors = dict[str, Stored]


def model_of(tree: Any, where: str) -> tuple[Tensors, list[str]]:
    """The tensors of a state_dict, which may lie under one wrapper or several; and what a user should know of it.

    Weights go before their average; where both are there, a note says so. Raises CascadeError where there is none, or
    where tensors beside it would be left unread.
    """
    looked, notes, seen = _Looked(), [], set()
    while (key := _wrapper(tree, looked)) is not None and id(tree) not in seen:
        seen.add(id(tree))
        for other in _beside(tree, key, looked):
            if not _AVERAGE.search(other):
                raise CascadeError(
                    f"{where} holds {spelt(other)} beside {spelt(key)}, which would be left unread: "
                    "leave it out of the file."
                )
            notes.append(_taken(where, key, other))
        tree = tree[key]
    if not isinstance(tree, Mapping):
        raise CascadeError(f"{where} holds no state_dict: give a file of named tensors.")
    found = {name: value for name, value in tree.items() if isinstance(name, str) and isinstance(value, Stored)}
    if not found:
        raise CascadeError(f"{where} holds no tensors under {', '.join(_WRAPPERS)}, ema or at its top: check the file.")
    if len(found) > _MOST:
        raise CascadeError(f"{where} holds {len(found)} tensors, more than any model here: check the file.")
    return found, notes


class _Looked:
    """Which dicts hold tensors. Each is looked through once: a file may name one dict a million times."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], bool] = {}

    def holds_tensors(self, value: Any, depth: int = 2) -> bool:
        """Whether a dict holds tensors, or a dict of it does."""
        if not isinstance(value, Mapping) or not depth:
            return isinstance(value, Stored)
        key = id(value), depth
        if key not in self._known:
            self._known[key] = False  # for a dict that holds itself
            self._known[key] = any(self.holds_tensors(entry, depth - 1) for entry in value.values())
        return self._known[key]


def _wrapper(tree: Any, looked: _Looked) -> str | None:
    """The key of the state_dict in a dict that wraps one."""
    if not isinstance(tree, Mapping):
        return None
    averages = [key for key in tree if isinstance(key, str) and _AVERAGE.search(key)]
    keys = [key for key in (*_WRAPPERS, *averages) if isinstance(tree.get(key), Mapping) and tree[key]]
    return next((key for key in keys if looked.holds_tensors(tree[key])), keys[0] if keys else None)


def _beside(tree: Mapping[Any, Any], taken: str, looked: _Looked) -> Iterable[str]:
    """Keys of what holds tensors beside the key that was taken, but for what belongs to the training."""
    for key, value in tree.items():
        if not isinstance(key, str) or key == taken or _BESIDE.search(key) or _LEFTOVER.search(key):
            continue
        if looked.holds_tensors(value):
            yield key


def _taken(where: str, taken: str, average: str) -> str:
    was = f"{spelt(taken.strip('.'))} was" if taken else "the plain weights were"
    return (
        f"{where} holds an average of the weights beside them: {was} taken, not {spelt(average.strip('.'))}; "
        "to build the average, save it alone."
    )


def bare(tensors: Tensors, where: str) -> Tensors:
    """Under names without what trainers put into them; without leftovers. Raises CascadeError for a name twice."""
    found: Tensors = {}
    for name, tensor in tensors.items():
        short = ".".join(part for part in name.split(".") if part not in _TRAINERS)
        counter = not tensor.shape and _COUNTS.fullmatch(tensor.kind)
        if _LEFTOVER.search(short) or counter:
            continue
        if short in found:
            raise CascadeError(f"{where} holds the tensor {spelt(short)} twice: check the file.")
        found[short] = tensor
    return found


def part_of(tensors: Tensors, anchors: Iterable[str], where: str) -> tuple[Tensors, list[str]]:
    """Without the prefix before the names of a part ("model.", "gpt."); and what a user should know of it.

    Every file of the part has one of the `anchors`, tried in turn; where it stands tells the prefix. Where an average
    has the same names under its own prefix it is left out with a note. Other names stay as they are.
    """
    for anchor in anchors:
        prefixes = [name.removesuffix(anchor) for name in tensors if name == anchor or name.endswith(f".{anchor}")]
        if prefixes:
            break
    else:
        return tensors, []
    taken = min(prefixes, key=lambda prefix: (_AVERAGE.search(prefix) is not None, prefix.count("."), prefix))
    averages = tuple(prefix for prefix in prefixes if prefix != taken and _AVERAGE.search(prefix))
    found: Tensors = {}
    for name, tensor in tensors.items():
        if averages and name.startswith(averages):
            continue
        short = name.removeprefix(taken)
        if short in found:
            raise CascadeError(f"{where} holds the tensor {spelt(short)} twice: check the file.")
        found[short] = tensor
    return found, [_taken(where, taken, average) for average in averages]


def check_floats(tensors: Tensors, where: str) -> None:
    """Raises CascadeError for a tensor that does not hold plain floating-point numbers."""
    for name, tensor in tensors.items():
        if tensor.kind not in _FLOATS:
            if name.rpartition(".")[2] == "d2t":  # which ids of a smaller vocabulary mean
                raise CascadeError(f"{where} is an EAGLE-3 drafter: give one of the form of EAGLE-1 or EAGLE-2.")
            quantised = " (quantised)" if _QUANTISED.match(tensor.kind) else ""
            raise CascadeError(
                f"tensor {spelt(name)} of {where} holds {tensor.kind}{quantised} weights: give fp32, fp16 or bf16."
            )
