"""Whole images, drawn in rounds on a device, whose kernels are their own source compiled for the CPU: those that the
host's rounds draw."""

from __future__ import annotations

import ctypes
from itertools import cycle

import numpy as np
import pytest
from kernels.backend import Pair
from support import random_features
from synthetic.family import build_synthetic

from cascade_trt.runtime.auto import Choice
from cascade_trt.runtime.pipeline import Pipeline
from cascade_trt.runtime.tree import AUTO


def check(pair: Pair, images: int = 5, **options: object) -> None:
    """Draws images in the bundle's slots on both ways; they end in different rounds and change slots."""
    given = random_features(pair.on_host, images)
    kernels = pair.backend.of_rounds
    kernels.launched.clear()
    kernels.under_way = 0  # Ctrl-C may have left some
    wanted, found = (pipe.generate(**given, seed=3, **options) for pipe in (pair.on_host, pair.on_device))
    assert "advance" in kernels.launched
    assert kernels.under_way == 0
    assert np.array_equal(found.codes, wanted.codes)
    assert np.array_equal(found.causes, wanted.causes)
    assert np.array_equal(found.origins, wanted.origins)
    assert found.rounds.tolist() == wanted.rounds.tolist()


TREES = ("chain", "small_9", "naive_extend_57", "jacobi_5", "jacobi_6x3", "mixed_4", "mixed_5x3", "fork", "deep",
         "beside", "bush")  # fmt: skip


@pytest.mark.parametrize("tree", TREES)
def test_exact(small: Pair, tree: str) -> None:
    check(small, rule="exact", tree=tree)


SETTINGS = [{"rule": "ar"}, {"temperature": 0, "tree": "jacobi_5"}, {"top_p": 0.7, "tree": "small_9"},
            {"guidance_scale": 1.0, "tree": "mixed_4"}]  # fmt: skip


@pytest.mark.parametrize("options", SETTINGS)
def test_settings(small: Pair, options: dict[str, object]) -> None:
    check(small, **options)


class Script:
    """The trees of the rounds, one after the other and round again; the contract of `runtime/chooser.py`."""

    asked = AUTO

    def __init__(self, trees: tuple[str, ...]) -> None:
        self.first, self._trees = trees[0], cycle(trees)

    def serves(self, _rule: object, _tree: str | None) -> bool:
        return True

    def choose(self, _drawings: object, _current: str) -> Choice:
        return Choice(next(self._trees), "")

    def observe(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def forced(library: ctypes.CDLL, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A model whose sequence forces tokens."""
    built = ("small_9", "chain_1", "dynamic_12x4x3")
    bundle = build_synthetic(tmp_path_factory.mktemp("synthetic"), built, batch=3)[0]
    return Pair(library, Pipeline.load(bundle, threads=1))


@pytest.mark.parametrize("tree", ["small_9", "jacobi_8x4", "mixed_4x2", "dynamic_12x4x3"])
def test_forced_tokens(forced: Pair, tree: str) -> None:
    check(forced, rule="exact", tree=tree)


@pytest.mark.parametrize("tree", ["small_9", "dynamic_12x4x3"])
def test_rules_with_forced_tokens(forced: Pair, tree: str) -> None:
    check(forced, rule="cascade:children=coupled,tau_pos=0.2,tau_seq=0.5", tree=tree)


MIXES = [("jacobi_8x4", "small_9", "none"), ("dynamic_12x4x3", "jacobi_4", "mixed_8", "small_9", "mixed_4x2")]


@pytest.mark.parametrize("trees", MIXES)
def test_trees_change_between_rounds(
    forced: Pair, monkeypatch: pytest.MonkeyPatch, trees: tuple[str, ...]
) -> None:
    for pipe in (forced.on_host, forced.on_device):
        monkeypatch.setattr(pipe, "_chooser", lambda *_: Script(trees))
    check(forced, images=6, rule="exact", tree=AUTO)


RULES = ("strict", "strict-topk", "cascade:tau_pos=0.2,tau_seq=0.5", "cascade:children=coupled,tau_pos=0.2,tau_seq=0.5",
         "cascade:children=topk,tau_pos=off,tau_seq=0.3,guard=0.5", "lantern:k=4,delta=0.3", "lantern++:k=3,lambda=4")


@pytest.mark.parametrize("rule", RULES)
def test_rules(small: Pair, rule: str) -> None:
    check(small, rule=rule, tree="small_9", top_p=0.95)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["exact", "strict-topk", "cascade:children=coupled,tau_pos=0.2,tau_seq=0.5"])
def test_dynamic_trees(library: ctypes.CDLL, tiny: Pipeline, rule: str) -> None:
    check(Pair(library, tiny), images=4, rule=rule, tree="eagle2_60")
