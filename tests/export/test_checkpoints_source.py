"""Reading weights: every container of checkpoints, damaged and hostile ones, dummy weights."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import random
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cascade_trt.export.checkpoints.reading import read_json
from cascade_trt.export.checkpoints.source import (
    DummySource,
    TensorSource,
    check_shapes,
    looks_like,
    open_source,
)
from cascade_trt.runtime.errors import CascadeError

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "b.weight": torch.ones(4, dtype=torch.bfloat16)}


class Hostile:
    """Creates a file when it is unpickled by an unrestricted unpickler."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def assert_holds_weights(source: TensorSource) -> None:
    assert isinstance(source, TensorSource)
    assert sorted(source.names()) == sorted(WEIGHTS)
    for name, tensor in WEIGHTS.items():
        assert name in source
        assert source.shape(name) == tuple(tensor.shape)
        assert source.load(name).dtype == tensor.dtype
        torch.testing.assert_close(source.load(name), tensor, rtol=0, atol=0)
    assert "c.weight" not in source


LEFTOVERS = {
    "freqs_cis": torch.zeros(3),
    "layers.0.attention.kv_cache.k_cache": torch.zeros(3),
    "causal_mask": torch.zeros(3),
    "quantize.codebook_used": torch.zeros(3),
}
PICKLES = {
    "flat": WEIGHTS,
    "model": {"model": WEIGHTS},
    "module": {"module": WEIGHTS},
    "state_dict": {"state_dict": WEIGHTS},
    "model before ema": {"ema": {"x": torch.ones(1)}, "model": WEIGHTS},
    "training": {
        "model": WEIGHTS,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4}]},
        "steps": 100,
        "args": argparse.Namespace(gpt_model="GPT-XL", image_size=256),
    },
    "leftovers": {"model": WEIGHTS | LEFTOVERS},
    "wrapper in a wrapper": {"model": {"module": WEIGHTS}},
    "empty wrapper": {"model": {}, "module": WEIGHTS},
    "distributed": {"model": {f"module.{name}": tensor for name, tensor in WEIGHTS.items()}},
    "compiled": {f"module._orig_mod.{name}": tensor for name, tensor in WEIGHTS.items()},
    "plain values": {"model": WEIGHTS, "loss": np.float64(3), "args": argparse.Namespace(folder=Path("x"))},
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("form", PICKLES)
def test_pickles(tmp_path: Path, form: str, zipped: bool) -> None:
    torch.save(PICKLES[form], tmp_path / "c.pt", _use_new_zipfile_serialization=zipped)
    assert_holds_weights(open_source(tmp_path / "c.pt", "checkpoint"))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_folders_with_one_file(tmp_path: Path, name: str) -> None:
    save_file(WEIGHTS, tmp_path / name) if name.endswith("tensors") else torch.save(WEIGHTS, tmp_path / name)
    assert_holds_weights(open_source(tmp_path, "checkpoint"))
    assert_holds_weights(open_source(tmp_path / name, "checkpoint"))


def test_safetensors_of_a_distributed_model(tmp_path: Path) -> None:
    save_file({f"module.{name}": tensor for name, tensor in WEIGHTS.items()}, tmp_path / "c.safetensors")
    assert_holds_weights(open_source(tmp_path / "c.safetensors", "checkpoint"))


def write_shards(folder: Path, kind: str) -> list[str]:
    stem, suffix = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
    parts = [f"{stem}-0000{i}-of-00002.{suffix}" for i in (1, 2)]
    for part, name in zip(parts, WEIGHTS, strict=True):
        tensors = {name: WEIGHTS[name]}
        save_file(tensors, folder / part) if kind == "safetensors" else torch.save(tensors, folder / part)
    index = {"metadata": {}, "weight_map": dict(zip(WEIGHTS, parts, strict=True))}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    return parts


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_sharded_folders(tmp_path: Path, kind: str) -> None:
    parts = write_shards(tmp_path, kind)
    assert_holds_weights(open_source(tmp_path, "checkpoint"))
    (tmp_path / parts[1]).unlink()
    with pytest.raises(CascadeError, match=f"lacks its part {parts[1]}"):
        open_source(tmp_path, "checkpoint")


@pytest.mark.parametrize("name", ["9f86d081884c7d65", "model.ckpt", "model.sft", "model.bin", "x.safetensors", "x.pt"])
@pytest.mark.parametrize("form", ["pickle", "safetensors"])
def test_a_file_is_what_its_first_bytes_say(tmp_path: Path, form: str, name: str) -> None:
    """Not what its name says; hub caches have links to files without one."""
    save_file(WEIGHTS, tmp_path / "blob") if form == "safetensors" else torch.save(WEIGHTS, tmp_path / "blob")
    (tmp_path / name).symlink_to(tmp_path / "blob")
    assert_holds_weights(open_source(tmp_path / name, "checkpoint"))
    (tmp_path / "pytorch_model.bin").symlink_to(tmp_path / "blob")
    assert_holds_weights(open_source(tmp_path, "checkpoint"))


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.mark.parametrize("name", ["c.pt", "model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"])
def test_a_git_lfs_pointer_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(POINTER)
    path = tmp_path / name if name == "c.pt" else tmp_path
    with pytest.raises(CascadeError, match=rf"{name} is a Git LFS pointer: fetch the file itself"):
        open_source(path, "checkpoint")


@pytest.mark.parametrize(
    ("head", "said"), [(b"GGUF\3\0", "GGUF file of quantised weights"), (b"\x1f\x8b\x08", "gzip"), (b"\x89HDF", "HDF5")]
)
def test_files_of_other_kinds_are_named(tmp_path: Path, head: bytes, said: str) -> None:
    (tmp_path / "c.pt").write_bytes(head + bytes(100))
    with pytest.raises(CascadeError, match=said):
        open_source(tmp_path / "c.pt", "checkpoint")


def test_what_is_no_file_is_told(tmp_path: Path) -> None:
    """And not waited for."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, said in ((tmp_path / "fifo", "is not a file"), (Path("/dev/zero"), "is not a file"),
                       (tmp_path / "loop", "cannot be read"), (tmp_path / ("a" * 300), "cannot be read")):  # fmt: skip
        with pytest.raises(CascadeError, match=said):
            open_source(path, "checkpoint")
        with pytest.raises(CascadeError):
            read_json(path)


@pytest.mark.parametrize("part", ["../x.safetensors", "/etc/passwd", "a" * 300, "a\0b", "nowhere", ""])
def test_an_index_names_files_beside_it(tmp_path: Path, part: str) -> None:
    save_file(WEIGHTS, tmp_path.parent / "x.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a.weight": part}}))
    with pytest.raises(CascadeError, match="lacks its part"):
        open_source(tmp_path, "checkpoint")


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a": ' + "9" * 5000 + "}", "\ufeff[]", POINTER])
def test_json_that_is_no_config(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CascadeError) as caught:
        read_json(tmp_path / "config.json")
    assert str(caught.value).isprintable()
    (tmp_path / "config.json").write_bytes(b"\xef\xbb\xbf" + '{"a": "ü"}'.encode())
    assert read_json(tmp_path / "config.json") == {"a": "ü"}


@pytest.mark.parametrize("content", ["{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "[]", "{"])
def test_a_broken_index_is_a_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CascadeError, match=r"index\.json"):
        open_source(tmp_path, "checkpoint")


def test_pickles_are_mapped_not_read(tmp_path: Path) -> None:
    """Opening costs no memory: what `load` gives are pages of the file."""
    torch.save({"w": torch.zeros(1 << 22)}, tmp_path / "c.pt")  # 16 MiB
    with open("/proc/self/statm") as statm:
        before = int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        source = open_source(tmp_path / "c.pt", "checkpoint")
        tensor = source.load("w")
        statm.seek(0)
        after = int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert tensor.shape == (1 << 22,)
    assert after - before < 8 << 20


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_hostile_pickle_runs_nothing(tmp_path: Path, zipped: bool) -> None:
    content = {"model": WEIGHTS, "extra": Hostile(tmp_path / "owned")}
    torch.save(content, tmp_path / "c.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CascadeError, match=r"wants to run code .*posix\.mkdir.*convert it to safetensors"):
        open_source(tmp_path / "c.pt", "checkpoint")
    assert not (tmp_path / "owned").exists()


def test_a_hostile_plain_pickle_runs_nothing(tmp_path: Path) -> None:
    (tmp_path / "c.pt").write_bytes(pickle.dumps({"extra": Hostile(tmp_path / "owned")}))
    with pytest.raises(CascadeError):
        open_source(tmp_path / "c.pt", "checkpoint")
    assert not (tmp_path / "owned").exists()


JUNK = {
    "empty": b"",
    "text": b"hello world",
    "zeros": bytes(1000),
    "html": b"<!DOCTYPE html><html></html>",
}


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("kind", JUNK)
def test_junk_is_one_sentence(tmp_path: Path, kind: str, suffix: str) -> None:
    file = tmp_path / f"c.{suffix}"
    file.write_bytes(JUNK[kind])
    with pytest.raises(CascadeError, match=rf"c\.{suffix} .*download it again") as caught:
        open_source(file, "checkpoint")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_truncated_and_damaged_files_are_sentences(tmp_path: Path, form: str) -> None:
    """Whatever bytes are missing or wrong, opening either works or raises CascadeError."""
    file = tmp_path / ("c.safetensors" if form == "safetensors" else "c.pt")
    if form == "safetensors":
        save_file(WEIGHTS, file)
    else:
        torch.save(WEIGHTS, file, _use_new_zipfile_serialization=form == "zip")
    whole, rng = file.read_bytes(), random.Random(0)
    for cut in (1, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:cut])
        with pytest.raises(CascadeError, match="download it again"):
            open_source(file, "checkpoint")
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(4):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        file.write_bytes(damaged)
        try:
            open_source(file, "checkpoint")
        except CascadeError:
            continue


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(CascadeError, match=r"checkpoint .*nowhere\.pt does not exist"):
        open_source(tmp_path / "nowhere.pt", "checkpoint")
    with pytest.raises(CascadeError, match=r"holds no model\.safetensors or pytorch_model\.bin"):
        open_source(tmp_path, "checkpoint")
    with pytest.raises(CascadeError, match="there is no file"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize("content", [[1, 2], {"steps": 3}, {"model": {}}])
def test_pickles_without_weights(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "c.pt")
    with pytest.raises(CascadeError, match=r"c\.pt holds"):
        open_source(tmp_path / "c.pt", "checkpoint")


def test_check_shapes_names_the_tensor(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "c.safetensors")
    source = open_source(tmp_path / "c.safetensors", "checkpoint")
    check_shapes(source, {"a.weight": (2, 3)}, "checkpoint")
    with pytest.raises(CascadeError, match=r"c\.safetensors lacks the tensor c\.weight"):
        check_shapes(source, {"c.weight": (2, 3)}, "checkpoint")
    with pytest.raises(CascadeError, match=r"a\.weight .*\[2, 3\], not \[3, 2\]"):
        check_shapes(source, {"a.weight": (3, 2)}, "checkpoint")
    assert "a.weight, b.weight" in looks_like(source)


SHAPES = {"layers.0.norm.weight": (64,), "fc.bias": (64,), "output.weight": (256, 64), "c.weight": (32, 16, 3, 3)}


def test_dummy_weights_are_reproducible_and_tame() -> None:
    first, second, other = DummySource(SHAPES), DummySource(SHAPES), DummySource(SHAPES, seed=1)
    for name, shape in SHAPES.items():
        assert first.shape(name) == tuple(first.load(name).shape) == shape
        assert torch.equal(first.load(name), second.load(name))
        assert torch.equal(first.load(name), first.load(name))
    assert not torch.equal(first.load("output.weight"), other.load("output.weight"))
    assert torch.equal(first.load("layers.0.norm.weight"), torch.ones(64))
    assert torch.equal(first.load("fc.bias"), torch.zeros(64))
    assert first.load("output.weight").std().item() == pytest.approx(64**-0.5, rel=0.05)
    assert first.load("c.weight").std().item() == pytest.approx((16 * 9) ** -0.5, rel=0.05)


def test_dummy_weights_are_quick() -> None:
    start = time.perf_counter()
    DummySource({"output.weight": (16384, 1280)}).load("output.weight")
    assert time.perf_counter() - start < 3  # 0.2 s on a quiet core
