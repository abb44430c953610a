"""What TensorRT-RTX compiles when calls first run is kept on disk; nothing that is wrong with the files is fatal."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_trt
import numpy as np
import pytest
from fake_trt import RuntimeCache
from host_cuda import host_device
from support import random_features

from cascade_trt.runtime import machine
from cascade_trt.runtime.backends import runtime_cache
from cascade_trt.runtime.backends.tensorrt import TensorRtBackend
from cascade_trt.runtime.errors import CascadeWarning
from cascade_trt.runtime.pipeline import Pipeline
from cascade_trt.runtime.plans import Plans

Load = Callable[[], Pipeline]


@pytest.fixture(scope="module")
def plans(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Plans:
    return fake_trt.compiled(tiny_bundle, tmp_path_factory.mktemp("plans"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the files will be; what was compiled is counted anew."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(RuntimeCache, "compiled", [])
    return tmp_path / "cascade-trt" / "tensorrt-rtx"


@pytest.fixture
def load(folder: Path, monkeypatch: pytest.MonkeyPatch, plans: Plans) -> Load:  # noqa: ARG001 - it sets the place
    """The bundle on its engines, as another process would load it."""

    def loaded() -> Pipeline:
        device, driver = host_device()
        fake_trt.install(monkeypatch, driver)
        monkeypatch.setattr(runtime_cache, "cache_folder", machine.cache_folder)
        return Pipeline.load(plans.folder, TensorRtBackend("tensorrt-rtx", plans, device), warm=False)

    return loaded


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", CascadeWarning)
        yield


def draw(pipe: Pipeline) -> np.ndarray:
    return pipe.generate(**random_features(pipe, 1), rule="ar").codes


def compiled() -> list[str]:
    """What was, since this was last asked."""
    found = list(RuntimeCache.compiled)
    RuntimeCache.compiled.clear()
    return found


def test_the_next_process_compiles_nothing(load: Load, folder: Path) -> None:
    """After the first image, though the pipeline is not closed; and no process writes what it found."""
    with load() as pipe:
        codes = draw(pipe)
        first = compiled()
        assert any(kernel.startswith("target.onnx") for kernel in first)
        written = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
        assert {path.suffix for path in written} == {".cache"} and len(written) == len({k.split()[0] for k in first})
        with load() as other:
            np.testing.assert_array_equal(draw(other), codes)
    assert compiled() == [] and {path: path.stat().st_mtime_ns for path in folder.iterdir()} == written


def test_what_comes_later_is_kept_when_the_pipeline_is_closed(load: Load, folder: Path) -> None:
    """A tree that the first two images did not need; after the third nobody looks."""
    with load() as pipe:
        draw(pipe)
        draw(pipe)
        before = sum(path.stat().st_size for path in folder.iterdir())
        compiled()
        pipe.generate(**random_features(pipe, 1), rule="exact", tree="jacobi_8")
        more = compiled()
        assert more and sum(path.stat().st_size for path in folder.iterdir()) == before
    del pipe
    gc.collect()
    assert sum(path.stat().st_size for path in folder.iterdir()) > before
    with load() as pipe:
        pipe.generate(**random_features(pipe, 1), rule="exact", tree="jacobi_8")
        assert compiled() == []


def test_another_gpu_version_or_plan_has_another_file(
    tmp_path: Path, plans: Plans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    class Owner:
        """Something that can be gone."""

    def file(name: str = "A card", version: str = "1.7.1.116", number: int = 0) -> str:
        card: Any = SimpleNamespace(name=name, capability=(8, 9), make_current=lambda: None)
        caches, cache, owner = runtime_cache.RuntimeCaches(card, version), RuntimeCache(), Owner()
        caches.open(owner, cache, plans.entries[number])
        cache.need("a kernel")
        before = set(tmp_path.rglob("*.cache"))
        del owner
        (made,) = set(tmp_path.rglob("*.cache")) - before
        return made.name

    assert len({file(), file("Another"), file(version="1.7.2.1"), file(number=1)}) == 4


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "driver", "pipe", "folder"])
def test_a_file_that_cannot_be_taken_is_told_and_replaced(
    load: Load, folder: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with load() as pipe:
        codes, everything = draw(pipe), set(compiled())
    files = {path: path.read_bytes() for path in folder.iterdir()}
    for path, content in files.items():
        if damage in ("pipe", "folder"):
            path.unlink()
            (os.mkfifo if damage == "pipe" else os.mkdir)(path)
        elif damage != "driver":
            path.write_bytes({"cut": content[:-1], "changed": content[:-1] + b"?", "empty": b""}[damage])
    if damage == "driver":
        monkeypatch.setattr(RuntimeCache, "driver", "570.1")
    with pytest.warns(CascadeWarning) as warned:
        found = draw(load())
    np.testing.assert_array_equal(found, codes)
    assert set(compiled()) == everything
    said = [str(warning.message) for warning in warned]
    assert sum("compiled again, and written in its place" in one for one in said) == 1
    assert sum("so each process compiles" in one for one in said) == (damage == "folder")
    if damage == "folder":  # nothing can take its place
        return
    with load() as pipe:
        draw(pipe)
    assert compiled() == []


def test_a_place_that_cannot_be_written_is_told_once(load: Load, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.parent.parent.mkdir(exist_ok=True)
    folder.parent.write_text("a file")
    with pytest.warns(CascadeWarning) as warned:
        draw(load())
    assert ["set XDG_CACHE_HOME to a folder of yours" in str(warning.message) for warning in warned] == [True]
    folder.parent.unlink()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(machine.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError()))
    with load() as pipe:  # a user without a home
        draw(pipe)
    assert compiled() and not folder.exists()


def test_a_process_that_ends_without_closing_keeps_it(tmp_path: Path) -> None:
    """Or before its first image is there."""
    code = f"""if True:
        import sys; sys.path[:0] = {sys.path!r}
        from cascade_trt.runtime.backends.runtime_cache import RuntimeCaches
        from fake_trt import RuntimeCache
        class Any: name, capability, sha256 = "A card", (8, 9), "0"; make_current = lambda _: None
        owner, cache = Any(), RuntimeCache()
        RuntimeCaches(Any(), "1.7").open(owner, cache, Any())
        cache.need("a kernel")
    """
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    (made,) = tmp_path.rglob("*.cache")
    assert b"a kernel" in made.read_bytes()
