"""A bundle with TensorRT-RTX engines, compiled once for all tests; skipped where the package is missing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest_trt import TARGETS, quiet, require_rtx
from support import build, save_checkpoints

from cascade_trt.engines import compile
from cascade_trt.engines.compile import add_plans
from cascade_trt.engines.tensorrt.target import parse_target


@pytest.fixture(scope="session")
def plain_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small fp16 bundle without TensorRT engines: two layers, head_dim 32, a tree of 9 nodes."""
    folder = tmp_path_factory.mktemp("trt")
    out = folder / "bundle"
    build(*save_checkpoints(folder / "checkpoints"), "--precision", "fp16", "--tree", "small_9", "--out", out)
    return out


@pytest.fixture(scope="session")
def compiled_bundle(plain_bundle: Path) -> Path:
    """`plain_bundle` with engines for sm86, sm89 and sm120. Tests that change it must copy it first."""
    require_rtx()
    out = plain_bundle.parent / "compiled"
    shutil.copytree(plain_bundle, out)
    assert add_plans(out, [parse_target(name) for name in TARGETS], quiet).built == 15
    return out


@pytest.fixture
def own_bundle(compiled_bundle: Path, tmp_path: Path) -> Path:
    """A copy of `compiled_bundle` that a test may damage."""
    return Path(shutil.copytree(compiled_bundle, tmp_path / "own"))


@pytest.fixture
def fake_worker(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Plans without TensorRT, in a blink; the list names what was built."""
    built: list[str] = []

    def worker(request: dict[str, Any], _: object) -> Iterator[dict[str, Any]]:
        for job in request["jobs"]:
            header = b"vtrt".ljust(24, b"\0") + bytes([1, 7, 1, 116])
            Path(job["plan"]).write_bytes(header + job["engine"].encode() * 20)
            Path(job["report"]).write_text('{"layers": [], "io": []}')
            built.append(f"{' '.join(request['targets'])} {job['engine']}")
            yield {"engine": job["engine"], "seconds": 0.1, "peak_memory": 1 << 20, "network": {}}

    monkeypatch.setattr(compile, "_worker", worker)
    monkeypatch.setattr(compile, "installed_version", lambda _: "1.7.1.116")
    return built


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need really compiled engines wait most of a minute for them."""
    for item in items:
        if {"compiled_bundle", "own_bundle"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
