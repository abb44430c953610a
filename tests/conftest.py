"""Bundles that many tests share."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from apart import ApartBackend, ApartCall
from support import FIXTURE, Golden, build, fixture_arguments, save_checkpoints, save_text_encoder

from cascade_trt.runtime.pipeline import Pipeline
from cascade_trt.runtime.tree import EAGLE, JACOBI, TREE_NAMES

CHAINS = ("chain_1", "chain_2")  # what mixed trees draft

# Trees in files, by their nodes' paths; E stands for a drafted node, J for a guess.
FILES = {
    "fork": "E0 E1 J0.0 J1.0 J0.0.0 J1.0.0 J0.0.0.0",  # a chain of guesses behind each of two drafted nodes
    "deep": "E0 E0.0 J0.0.0 J0.0.0.0 J0.0.0.1 J0.0.0.0.0 J0.0.0.1.0",
    "beside": "J0 E1 J2 J0.0 J1.0 J1.1 J2.0 J0.0.0 J1.0.0",  # guesses on both sides of the drafted node
    "bush": "J0 J1 J0.0 J0.1 J1.0 J0.0.0 J0.0.1 J0.1.0 J0.0.0.0 J0.0.0.1 J0.0.0.0.0",  # nothing is drafted
}
SPELT = {"E": EAGLE, "J": JACOBI}

# No test asks the hub for anything; those that ask a stand-in of it say so (test_hub.py).
os.environ["HF_HUB_OFFLINE"] = "1"

# A shell's background job ignores Ctrl-C, and so would the commands that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def golden() -> Golden:
    return Golden(dict(np.load(FIXTURE / "golden.npz")))


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixture's bundle with every named tree and the chains of mixed trees, for batches of three."""
    out = tmp_path_factory.mktemp("bundles") / "llamagen-tiny"
    trees = (part for name in (*TREE_NAMES, *CHAINS) for part in ("--tree", name))
    build(*fixture_arguments(out), "--batch", 3, *trees)
    return out


@pytest.fixture(scope="session")
def tiny(tiny_bundle: Path) -> Pipeline:
    return Pipeline.load(tiny_bundle, threads=1)


@pytest.fixture(scope="session")
def small_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Eight tokens: trees hold most of them, so long paths are accepted."""
    folder = tmp_path_factory.mktemp("small")
    for name, nodes in FILES.items():
        spelt = [{"path": [int(k) for k in node[1:].split(".")], "source": SPELT[node[0]]} for node in nodes.split()]
        (folder / f"{name}.json").write_text(json.dumps(spelt))
    arguments = save_checkpoints(folder / "checkpoints", vocab=8, grid=6)
    trees = ("chain", "small_9", "naive_extend_57", *CHAINS, *(folder / f"{name}.json" for name in FILES))
    build(*arguments, "--batch", 3, *(part for name in trees for part in ("--tree", name)), "--out", folder / "bundle")
    return Pipeline.load(folder / "bundle", threads=1)


@pytest.fixture(scope="session")
def apart(small_vocabulary: Pipeline) -> Pipeline:
    """The same bundle on device memory of its own."""
    return Pipeline.load(small_vocabulary.folder, backend=ApartBackend())


@pytest.fixture
def spoilt(monkeypatch: pytest.MonkeyPatch) -> None:
    """That memory's outputs are spoilt where nobody asked for them."""
    monkeypatch.setattr(ApartCall, "spoils", True)


@pytest.fixture(scope="session")
def text_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random text-to-image model with its own text encoder, batches of two."""
    folder = tmp_path_factory.mktemp("text")
    arguments = save_checkpoints(folder / "checkpoints", vocab=32, grid=6)
    text = save_text_encoder(folder / "encoder", width=16)
    build(*arguments, "--text", text, "--batch", 2, "--tree", "pair_4", "--out", folder / "bundle")
    return folder / "bundle"
