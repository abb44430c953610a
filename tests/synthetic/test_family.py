"""Families from outside the package: how they become known, and what is refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cascade_trt.export.build import BuildOptions, build_bundle
from cascade_trt.export.checkpoints.source import Derived, RenamedSource
from cascade_trt.export.families import Family, get_family, names, register
from cascade_trt.export.model import StackSpec
from cascade_trt.export.open import open_dummy, open_parts
from cascade_trt.export.parts import Parts
from cascade_trt.export.request import BuildRequest
from cascade_trt.runtime.bundle import SamplingDefaults
from cascade_trt.runtime.errors import CascadeError
from cascade_trt.runtime.tree import get_tree
from synthetic.family import FAMILY, save_checkpoints


@pytest.fixture
def opened(tmp_path: Path) -> tuple[Parts, SamplingDefaults]:
    register(FAMILY)
    return open_parts(save_checkpoints(tmp_path / "checkpoints"))


def build(opened: tuple[Parts, SamplingDefaults], folder: Path) -> None:
    build_bundle(opened[0], BuildOptions(folder / "bundle", (get_tree("chain_2"),), opened[1]), lambda *_: None)


def test_a_registered_family_is_known_by_its_name() -> None:
    register(FAMILY)
    register(FAMILY)  # the same one again changes nothing
    assert get_family("synthetic") is FAMILY and {"llamagen", "synthetic"} <= set(names())
    for name in ("llamagen", "synthetic"):
        with pytest.raises(CascadeError, match=f"a family '{name}' already"):
            register(Family(name, FAMILY.open))
    with pytest.raises(CascadeError, match=r"no model family 'gpt'.*llamagen"):
        get_family("gpt")
    with pytest.raises(CascadeError, match="unknown model 'gpt'"):
        open_parts(BuildRequest("gpt"))
    with pytest.raises(CascadeError, match="unknown model 'synthetic'"):
        open_dummy("synthetic", None)  # it has no published sizes


def test_a_canonical_tensor_that_is_missing_or_misshapen_is_named(
    opened: tuple[Parts, SamplingDefaults], tmp_path: Path
) -> None:
    """Before anything is written: what a family forgets would otherwise be found out by its users."""
    parts, sampling = opened
    weights = parts.target.weights
    for name in parts.target.shapes():
        kept = {other: Derived(weights.shape(other), lambda other=other: weights.load(other))
                for other in weights.names() if other != name}  # fmt: skip
        for tensors in (kept, kept | {name: Derived((3,), lambda: torch.zeros(3))}):
            target = replace(parts.target, weights=RenamedSource(weights.path, tensors))
            with pytest.raises(CascadeError, match=f"tensor {name}"):
                build((replace(parts, target=target), sampling), tmp_path)
    assert not (tmp_path / "bundle").exists()


def test_a_drafter_needs_a_row_for_every_syntax_token(tmp_path: Path) -> None:
    request = save_checkpoints(tmp_path / "checkpoints")
    assert request.drafter is not None
    tensors = load_file(request.drafter)
    register(FAMILY)
    parts, sampling = open_parts(request)
    assert parts.drafter is not None
    fewer = {"embedding.weight": Derived((24, 64), lambda: tensors["tokens.weight"][:24])}
    known = {name: Derived(parts.drafter.weights.shape(name), lambda name=name: parts.drafter.weights.load(name))
             for name in parts.drafter.weights.names()}  # fmt: skip
    drafter = replace(parts.drafter, weights=RenamedSource(request.drafter, known | fewer))
    with pytest.raises(CascadeError, match=r"tensor embedding.weight of the drafter .* \[24, 64\], not \[26, 64\]"):
        build((replace(parts, drafter=drafter), sampling), tmp_path)


def test_a_reference_that_disagrees_is_told_by_parity(tmp_path: Path) -> None:
    """Norms of queries and keys, biases, the readout's own layer: none may be left out unnoticed."""
    register(FAMILY)
    request = save_checkpoints(tmp_path / "checkpoints")
    assert request.checkpoint is not None
    tensors = load_file(request.checkpoint)
    for name in ("blocks.1.attn.q_norm.bias", "blocks.0.attn.k_norm.weight", "blocks.0.attn.v.bias", "head.mlp.bias",
                 "head.codes.bias", "caption.bias"):  # fmt: skip
        parts, sampling = open_parts(request)
        changed = tmp_path / "changed.safetensors"
        save_file(tensors | {name: tensors[name] + 0.5}, changed)
        checkpoint = open_parts(replace(request, checkpoint=changed))[0].target.checkpoint
        other = replace(parts.target, checkpoint=checkpoint)  # what PyTorch reads; the graphs read `weights`
        with pytest.raises(CascadeError, match="differs from PyTorch"):
            build((replace(parts, target=other), sampling), tmp_path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [({"n_kv_head": 3}, "3 key heads do not divide 4"), ({"head_dim": 33}, "width 33 is odd"),
     ({"pairing": "odd"}, "pairing 'odd'"), ({"biases": frozenset({"mlp"})}, "biases \\['mlp'\\]")],
)  # fmt: skip
def test_what_makes_no_stack_is_a_sentence(
    opened: tuple[Parts, SamplingDefaults], changes: dict, sentence: str
) -> None:
    stack: StackSpec = opened[0].target.stack
    with pytest.raises(CascadeError, match=sentence):
        replace(stack, **changes)
