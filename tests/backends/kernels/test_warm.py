"""What `Pipeline.load` and `Pipeline.batch` do ahead, where calls become graphs: on a TensorRT and a CUDA driver that
compute on the CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_trt
import numpy as np
import pytest
from host_cuda import HostDriver, host_device
from kernels.test_kernels_on_plans import StreamKernels
from support import build, random_features, save_checkpoints

from cascade_trt.runtime.backends.ort import OrtBackend
from cascade_trt.runtime.backends.tensorrt import TensorRtBackend
from cascade_trt.runtime.device_rounds import DeviceRounds
from cascade_trt.runtime.errors import CascadeError
from cascade_trt.runtime.pipeline import Pipeline
from cascade_trt.runtime.request import Request
from cascade_trt.runtime.warm import anything

Loaded = tuple[Pipeline, HostDriver]
Load = Callable[..., Loaded]


@pytest.fixture
def load(library: ctypes.CDLL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Loads a bundle on plans, with kernels or the host's rounds."""

    def on_plans(bundle: Path, kernels: bool = True, **options: Any) -> Loaded:
        device, driver = host_device()
        graphs = options.pop("graphs", True)
        own = fake_trt.backend(monkeypatch, fake_trt.compiled(bundle, tmp_path), device, driver, graphs=graphs)
        if kernels:
            monkeypatch.setattr(TensorRtBackend, "kernels", lambda *_: StreamKernels(device, driver, library))
        return Pipeline.load(bundle, own, **options), driver

    return on_plans


@pytest.mark.parametrize("tree", ["small_9", "mixed_4", "jacobi_5"])
def test_the_first_images_capture_nothing(
    small_vocabulary: Pipeline, load: Load, monkeypatch: pytest.MonkeyPatch, tree: str
) -> None:
    """Whatever their number, of the tree that is usual; they are those of the CPU, and no context is made for them."""
    manifest = small_vocabulary.manifest
    usual = type(manifest).tree
    monkeypatch.setattr(type(manifest), "tree", lambda self, name: usual(self, name or tree))
    pipe, driver = load(small_vocabulary.folder)
    captured, contexts = driver.captures, next(fake_trt.FakeContext.made)
    assert captured and isinstance(pipe._shared_rounds(2)[0], DeviceRounds)
    for images in (1, manifest.batch, manifest.batch + 2):
        given = random_features(small_vocabulary, images)
        found = pipe.generate(**given, seed=3, tree=tree).codes
        assert np.array_equal(found, small_vocabulary.generate(**given, seed=3, tree=tree).codes)
    assert driver.captures == captured and next(fake_trt.FakeContext.made) == contexts + 1
    pipe.generate(**random_features(small_vocabulary, 2), tree="chain")  # another's, when it is asked for
    assert driver.captures > captured


def test_a_batch_is_captured_when_it_is_made(small_vocabulary: Pipeline, load: Load) -> None:
    pipe, driver = load(small_vocabulary.folder)
    before = driver.captures
    batch, given = pipe.batch(2, tree="small_9"), random_features(small_vocabulary, 3)
    captured = driver.captures
    assert captured > before
    assert (batch.idle, batch.stats.rounds, batch.stats.target_calls, batch.stats.total_seconds) == (True, 0, 0, 0)
    requests = [{"features": given["features"][i], "features_mask": given["features_mask"][i]} for i in range(3)]
    jobs = [batch.submit(Request(**one, seed=i)) for i, one in enumerate(requests)]
    while not batch.idle:
        batch.step()
    assert driver.captures == captured
    wanted = small_vocabulary.generate(**given, seed=0, tree="small_9").codes
    assert [job.result().codes.tolist() for job in jobs] == wanted.tolist()


@pytest.mark.parametrize("options", [{"tree": None, "rule": "ar"}, {"temperature": 0, "tree": "jacobi_5"}])
def test_batches_of_other_kinds(small_vocabulary: Pipeline, load: Load, options: dict[str, Any]) -> None:
    """Without a tree, without noise."""
    pipe, driver = load(small_vocabulary.folder)
    batch, given = pipe.batch(1, **options), random_features(small_vocabulary, 1)
    captured = driver.captures
    job = batch.submit(Request(features=given["features"][0], features_mask=given["features_mask"][0], seed=4))
    wanted = small_vocabulary.generate(**given, seed=4, **options).codes[0]
    assert np.array_equal(job.result().codes, wanted) and driver.captures == captured


def test_rounds_on_the_host_are_captured_too(small_vocabulary: Pipeline, load: Load) -> None:
    """But for draft calls on more pairs, each of which comes when that many were accepted."""
    pipe, driver = load(small_vocabulary.folder, kernels=False)
    captured, tree = driver.captures, small_vocabulary.manifest.tree(None).name
    assert not isinstance(pipe._shared_rounds(2)[0], DeviceRounds)
    given = random_features(small_vocabulary, 1)
    found = pipe.generate(**given, seed=3, tree=tree).codes
    assert np.array_equal(found, small_vocabulary.generate(**given, seed=3, tree=tree).codes)
    pairs = pipe.backend.backend.sizes(small_vocabulary.manifest.tree(tree).tree().depth + 1)
    assert driver.captures - captured <= len(pairs) < captured


@pytest.mark.parametrize("options", [{"warm": False}, {"graphs": False}])
def test_who_does_not_ask_for_it_gets_none(small_vocabulary: Pipeline, load: Load, options: dict[str, bool]) -> None:
    pipe, driver = load(small_vocabulary.folder, **options)
    batch = pipe.batch(1, tree="small_9")
    assert driver.captures == 0 and not batch._slots and pipe._conditioner._bound == {}


def test_nothing_more_on_a_cpu(small_vocabulary: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise AssertionError

    for name in ("warm_up", "decode_once"):
        monkeypatch.setattr(f"cascade_trt.runtime.pipeline.{name}", fails)
    with Pipeline.load(small_vocabulary.folder, OrtBackend(1)) as pipe:
        pipe.batch(2)
    monkeypatch.setattr(OrtBackend, "captures", True)
    with pytest.raises(AssertionError):
        Pipeline.load(small_vocabulary.folder, OrtBackend(1))


def test_what_fails_ahead_is_said_to_the_image_that_meets_it(
    small_vocabulary: Pipeline, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise CascadeError("the GPU has not enough memory.")

    with monkeypatch.context() as patch:
        patch.setattr("cascade_trt.runtime.device_rounds.DeviceRounds.verify", fails)
        pipe, _ = load(small_vocabulary.folder)
        with pytest.raises(CascadeError, match="has not enough memory"):
            pipe.generate(**random_features(small_vocabulary, 1), tree="small_9")
    given = random_features(small_vocabulary, 2)
    found = pipe.generate(**given, seed=3, tree="small_9").codes
    assert np.array_equal(found, small_vocabulary.generate(**given, seed=3, tree="small_9").codes)


def test_every_kind_of_bundle_has_something_to_be_drawn_from(
    small_vocabulary: Pipeline, text_bundle: Path, tmp_path: Path
) -> None:
    """Features, prompts through an encoder, classes."""
    arguments = save_checkpoints(tmp_path, condition="class", prefix_len=1)
    build(*arguments, "--tree", "pair_4", "--out", tmp_path / "bundle")
    seen = []
    for folder in (small_vocabulary.folder, text_bundle, tmp_path / "bundle"):
        pipe = Pipeline.load(folder, threads=1)
        given = anything(pipe.manifest)
        seen += [name for name, value in given.items() if value is not None]
        assert len(pipe.generate(**given, seed=0).images) == 1
    assert seen == ["features", "prompts", "class_ids"]
